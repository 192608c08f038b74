"""The engine's move to the loopback: the same start with another address. Pure.

vLLM's command is rewritten in a list of words, and in a shell that runs it as a plain command. Other servers
are rewritten in a list with a ``--port``. Any other command is denied, unless the pod itself names the port.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from injector import command_line
from injector.command_line import LOOPBACK
from injector.decisions import Denial, Note, Reason
from injector.engine_container import EngineContainer
from injector.settings import Allow, Wish, annotation

_ADDRESS = frozenset({"--host", "--port"})


@dataclass(frozen=True, slots=True)
class Moved:
    """The start of the engine on another port."""

    fields: dict[str, Any]
    """The changed fields of its container: ``command`` and ``args``."""
    notes: tuple[Note, ...] = ()
    """Warnings about changes that are impossible or cannot be checked."""


def is_rewritten(engine: EngineContainer) -> bool:
    """Whether ``move`` always writes the address into its command."""
    start = engine.start
    return start.is_vllm or (not start.is_shell and command_line.starts_sglang(start.words))


def move(
    engine: EngineContainer,
    port: int,
    *,
    wish: Wish,
    drop: Set[str] = frozenset(),
    switches: Set[str] = frozenset(),
) -> Moved | Denial:
    """Make the engine listen on the loopback, on this port.

    A pod that states the port itself is accepted with an unknown command, with a warning. ``drop`` and
    ``switches`` are options, with and without a value, that vLLM must not have there.
    """
    start = engine.start
    if is_rewritten(engine):
        fields = start.with_options(["--host", LOOPBACK, "--port", str(port)], drop | _ADDRESS, switches)
        return Moved(fields) if fields is not None else _cannot_cut(engine, drop | switches)
    if not start.is_shell and engine.option("--port") is not None:
        moved = _respelt(engine, port)
        return moved if engine.option("--host") is not None else _open(engine, moved, wish)
    if "engine_port" in wish.said:
        return Moved({}, (_unchecked(engine, port),))
    if port != engine.port:
        return Denial(
            Reason.COMMAND,
            engine.field,
            f"it cannot be moved from port {engine.port}: its command is neither a list of words with --port"
            " nor a shell that runs a plain vllm serve",
            f'write the command as a list, such as ["vllm", "serve", "MODEL", "--port", "{engine.port}"];'
            f" or let it listen on another port of {LOOPBACK}, named in annotation"
            f" {annotation('engine_port')}",
        )
    return _open(engine, Moved({}), wish)


def _cannot_cut(engine: EngineContainer, names: Set[str]) -> Denial:
    return Denial(
        Reason.COMMAND,
        engine.field,
        f"{', '.join(sorted(names & set(engine.start.words)))} cannot be cut out of its shell command",
        "remove it there, or write the command as a list of words",
    )


def _unchecked(engine: EngineContainer, port: int) -> Note:
    return Note(
        Reason.UNCHECKED,
        f"container {engine.name} must listen on {LOOPBACK}:{port} only; its command cannot be checked",
    )


def _open(engine: EngineContainer, moved: Moved, wish: Wish) -> Moved | Denial:
    """The move of an engine that may listen on every address of the pod."""
    problem = "it may listen on other addresses than the loopback, where clients can bypass the sidecar"
    if Allow.OPEN_ENGINE in wish.allowed:
        return Moved(moved.fields, (Note(Reason.ENGINE_OPEN, f"container {engine.name}: {problem}"),))
    return Denial(
        Reason.ENGINE_OPEN,
        engine.field,
        problem,
        f"add --host {LOOPBACK} to its command, or what this server has instead",
        opt_out=Allow.OPEN_ENGINE,
    )


def _respelt(engine: EngineContainer, port: int) -> Moved:
    """The command with changed values of its own options, for servers other than vLLM."""
    values = {"--host": LOOPBACK, "--port": str(port)}
    fields = {
        name: command_line.replaced(words, values)
        for name in ("command", "args")
        if (words := engine.container.get(name)) is not None
    }
    changed = {name: words for name, words in fields.items() if words != engine.container[name]}
    return Moved(changed)
