"""The engine's container: its place in the pod, its port, and its move to the loopback. Pure.

Only a command that is a list of words is rewritten: vLLM's, or one with a ``--port``. A shell command stays
unchanged, and the answer has a warning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from injector.settings import PREFIX, Wish, annotation
from injector.shape import Json, is_tcp, ports
from runtime.options import SettingsError

LOOPBACK = "127.0.0.1"
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_PYTHON = re.compile(r"python[0-9.]*")
_TAG = re.compile(r"(:[^/@]*)?(@.*)?$")
_MODULE = "vllm.entrypoints."
_ELSEWHERE = ("--uds", "--ssl-keyfile", "--ssl-certfile")
"""Options after which vLLM does not speak plain HTTP on a TCP port."""


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """The engine, as the manifest describes it."""

    container: Json
    port: int
    """The port in the manifest, which the Service targets."""
    words: tuple[str, ...]
    """Its command and arguments."""
    is_vllm: bool
    """Whether the command certainly starts vLLM, so that vLLM's options may be added."""

    @property
    def name(self) -> str:
        """The name of the container."""
        return str(self.container["name"])

    @property
    def is_shell(self) -> bool:
        """Whether a shell command starts it. Options in a shell command are not found."""
        return _is_shell(self.words)

    def option(self, name: str) -> str | None:
        """The last value of an option in its command line; empty if the option has no value."""
        return _option(self.words, name)

    def asks_for_a_key(self) -> bool:
        """Whether it serves only callers with its own API key."""
        named = {each["name"] for each in self.container.get("env") or []}
        return "VLLM_API_KEY" in named or self.option("--api-key") is not None

    def interpreter(self) -> str | None:
        """A Python interpreter that its image certainly has; ``None`` if none is known."""
        for word, following in itertools.pairwise(() if self.is_shell else self.words):
            if _PYTHON.fullmatch(_base(word)) and following == "-m":
                return word
        return "python3" if self.is_vllm else None


def find(pod: Json, wish: Wish) -> EngineContainer:
    """The engine of a pod. Raises ``SettingsError``, which tells how to name the engine."""
    container = _container(pod, wish)
    words = (*(container.get("command") or ()), *(container.get("args") or ()))
    port = _port(container, words, wish)
    return EngineContainer(container, port, words, _is_vllm(container, words))


def _container(pod: Json, wish: Wish) -> Json:
    every: list[Json] = pod["spec"]["containers"]
    if wish.container is not None:
        named = [each for each in every if each["name"] == wish.container]
        if not named:
            known = ", ".join(each["name"] for each in every)
            raise SettingsError(
                f"annotation {PREFIX}container: {wish.container!r} is no container here; there is {known}"
            )
        return named[0]
    wanted = wish.template.upstream_port
    declaring = [each for each in every if any(_means(p, wanted) for p in ports(each))]
    candidates = declaring or [each for each in every if _is_vllm(each, _words(each))] or every
    if len(candidates) != 1:
        raise SettingsError(
            f"which container is the engine? {', '.join(each['name'] for each in candidates)} could be it:"
            f" name it in annotation {PREFIX}container, or its port in {annotation('upstream_port')}"
        )
    return candidates[0]


def _words(container: Json) -> tuple[str, ...]:
    return (*(container.get("command") or ()), *(container.get("args") or ()))


def _means(port: Json, wanted: int | str) -> bool:
    return is_tcp(port) and wanted in (port["containerPort"], port.get("name"))


def _port(container: Json, words: Sequence[str], wish: Wish) -> int:
    """The port in the pod's annotation, else in the command line, else the declared one."""
    stated = None if _is_shell(words) else _option(words, "--port")
    listens = int(stated) if stated is not None and stated.isascii() and stated.isdigit() else None
    is_said = "upstream_port" in wish.said
    # A port that already is the engine's port inside the pod is not the one that Services target.
    if listens is not None and listens == wish.template.engine_port:
        listens = stated = None
    if listens is not None and not is_said:
        return listens
    port = _declared(container, wish.template.upstream_port, _source(is_said))
    if listens not in (None, port):
        raise SettingsError(
            f"{_source(is_said)}: container {container['name']} does not listen on {port}: its --port says"
            f" {listens}"
        )
    if stated is not None and not is_said:
        raise SettingsError(
            f"container {container['name']} has --port {stated}, which is no number: give it in annotation"
            f" {annotation('upstream_port')}"
        )
    return port


def _declared(container: Json, wanted: int | str, source: str) -> int:
    if isinstance(wanted, int):
        return wanted
    named = [int(each["containerPort"]) for each in ports(container) if _means(each, wanted)]
    if not named:
        raise SettingsError(f"{source}: container {container['name']} declares no port named {wanted!r}")
    return named[0]


def _source(is_said: bool) -> str:
    return f"annotation {annotation('upstream_port')}" if is_said else "--upstream-port"


def _is_shell(words: Sequence[str]) -> bool:
    return bool(words) and _base(words[0]) in _SHELLS


def _is_vllm(container: Json, words: Sequence[str]) -> bool:
    """By its command, or where only arguments are given by the image, whose entry point is vLLM's then."""
    if _is_shell(words):
        return False
    if container.get("command"):
        pairs = list(itertools.pairwise(words))
        is_server = any(_base(a) == "vllm" and b == "serve" for a, b in pairs)
        return is_server or any(a == "-m" and b.startswith(_MODULE) for a, b in pairs)
    return "vllm" in re.split(r"[/._-]", _TAG.sub("", container.get("image") or ""))


def _base(word: str) -> str:
    return word.rpartition("/")[2]


def _option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option, in both spellings. vLLM reads underscores as dashes."""
    value = None
    for index, word in enumerate(words):
        key, equals, text = word.partition("=")
        if key.startswith("--") and key.replace("_", "-") == name:
            following = words[index + 1] if index + 1 < len(words) else ""
            value = text if equals else following
    return value


@dataclass(frozen=True, slots=True)
class Moved:
    """The start of the engine on another port."""

    fields: dict[str, Any]
    """The changed fields of its container: ``command`` and ``args``."""
    doubts: tuple[str, ...]
    """Warnings about changes that are impossible or cannot be checked."""


def move(engine: EngineContainer, port: int, *, is_said: bool) -> Moved:
    """Make the engine listen on the loopback, on this port. Raises ``SettingsError`` if it cannot move.

    ``is_said``: the pod itself states the port, so an unknown command is accepted with a warning.
    """
    for option in _ELSEWHERE:
        if engine.option(option) is not None:
            raise SettingsError(
                f"container {engine.name} has {option}, and would not answer plain HTTP on {LOOPBACK}:{port};"
                " remove it, because only the sidecar connects to the engine"
            )
    if engine.is_vllm:
        return _with_options(engine, port)
    if not engine.is_shell and engine.option("--port") is not None:
        return _respelt(engine, port)
    if is_said:
        return Moved({}, (_unchecked(engine, port),))
    if port != engine.port:
        raise SettingsError(
            f"container {engine.name} cannot be moved from port {engine.port}, because its command is not a"
            " list of words with vLLM's options. Write it as one, or let it listen on another port of"
            f" {LOOPBACK} and name that port in annotation {annotation('engine_port')}"
        )
    return Moved({}, (_open(engine),))


def _unchecked(engine: EngineContainer, port: int) -> str:
    return f"container {engine.name} must listen on {LOOPBACK}:{port}; its command cannot be checked"


def _open(engine: EngineContainer) -> str:
    return (
        f"container {engine.name} may listen on other addresses, so that clients can bypass the sidecar: let"
        f" it listen on {LOOPBACK}"
    )


def _with_options(engine: EngineContainer, port: int) -> Moved:
    """The command with the injector's address options at the end, instead of its own."""
    ours = ["--host", LOOPBACK, "--port", str(port)]
    command, args = engine.container.get("command"), engine.container.get("args")
    if args is None and command:
        return Moved({"command": [*_without(command), *ours]}, ())
    fields: dict[str, Any] = {"args": [*_without(args or []), *ours]}
    if command and _without(command) != command:
        fields["command"] = _without(command)
    return Moved(fields, ())


def _without(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skips = False
    for word in words:
        key, equals, _ = word.partition("=")
        if skips:
            skips = False
        elif key in ("--host", "--port"):
            skips = not equals
        else:
            kept.append(word)
    return kept


def _respelt(engine: EngineContainer, port: int) -> Moved:
    """The command with changed values of its own options, for servers other than vLLM."""
    values = {"--host": LOOPBACK, "--port": str(port)}
    fields = {
        name: [*_replaced(words, values)]
        for name in ("command", "args")
        if (words := engine.container.get(name)) is not None
    }
    changed = {name: words for name, words in fields.items() if words != engine.container[name]}
    return Moved(changed, () if engine.option("--host") is not None else (_open(engine),))


def _replaced(words: Sequence[str], values: dict[str, str]) -> list[str]:
    made: list[str] = []
    pending = None
    for word in words:
        key, equals, _ = word.partition("=")
        if pending is not None:
            made.append(pending)
            pending = None
        elif key in values and equals:
            made.append(f"{key}={values[key]}")
        else:
            made.append(word)
            pending = values.get(key)
    return made
