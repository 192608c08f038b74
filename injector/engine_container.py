"""The engine's container: its place in the pod, and its port in the manifest. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from injector import command_line, start
from injector.decisions import Denial, Reason
from injector.settings import PREFIX, Wish, annotation
from injector.shape import Json, is_tcp, ports
from injector.start import Start

_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """The engine, as the manifest describes it."""

    container: Json
    port: int
    """The port in the manifest, which the Service targets."""
    start: Start

    @property
    def name(self) -> str:
        """The name of the container."""
        return str(self.container["name"])

    @property
    def field(self) -> str:
        """The container as denials name it."""
        return f"container {self.name}"

    def option(self, name: str) -> str | None:
        """The last value of an option in its command line.

        Empty if the option has no value, or is somewhere in a script that cannot be read.
        """
        if self.start.is_read:
            return command_line.option(self.start.words, name)
        return "" if command_line.mentions(self.start.words, name) else None

    @property
    def is_on_the_loopback(self) -> bool:
        """Whether its command binds it to the loopback."""
        return command_line.is_on_the_loopback(self.start.words)

    def interpreter(self) -> str | None:
        """A Python interpreter that its image certainly has; ``None`` if none is known."""
        named = command_line.interpreter(self.start.words) if self.start.is_read else None
        return named or ("python3" if self.start.is_vllm else None)


def is_engine(container: Json) -> bool:
    """Whether a container certainly starts an inference server, by its command or by its image."""
    found = start.read(container)
    if found.is_vllm or command_line.starts_an_engine(found.words):
        return True
    return not container.get("command") and command_line.is_engine_image(container.get("image") or "")


def find(pod: Json, wish: Wish) -> EngineContainer | Denial:
    """The engine of a pod; the denial tells how to name it."""
    container = _container(pod, wish)
    if isinstance(container, Denial):
        return container
    found = start.read(container)
    port = _port(container, found, wish)
    return port if isinstance(port, Denial) else EngineContainer(container, port, found)


def _container(pod: Json, wish: Wish) -> Json | Denial:
    every: list[Json] = pod["spec"]["containers"]
    names = ", ".join(each["name"] for each in every)
    if wish.container is not None:
        named = [each for each in every if each["name"] == wish.container]
        problem = f"{wish.container!r} is no container here"
        fix = f"name one of {names}"
        return named[0] if named else Denial(Reason.ANNOTATION, f"annotation {PREFIX}container", problem, fix)
    candidates = _candidates(every, wish)
    if len(candidates) == 1:
        return candidates[0]
    return Denial(
        Reason.WHICH_ENGINE,
        "spec.containers",
        f"which container is the engine? {', '.join(each['name'] for each in candidates)} could be it",
        f"name it in annotation {PREFIX}container, or its port in annotation {annotation('upstream_port')}",
    )


def _candidates(every: list[Json], wish: Wish) -> list[Json]:
    """The containers with the port, those that start an engine first. A router may have the port, too."""
    wanted = wish.template.upstream_port
    declaring = [each for each in every if any(_means(port, wanted) for port in ports(each))]
    if "upstream_port" in wish.said and declaring:
        return declaring
    engines = [
        each for each in every if is_engine(each) and not command_line.is_headless(start.read(each).words)
    ]
    both = [each for each in declaring if each in engines]
    return both or engines or declaring or every


def _means(port: Json, wanted: int | str) -> bool:
    return is_tcp(port) and wanted in (port["containerPort"], port.get("name"))


def _port(container: Json, found: Start, wish: Wish) -> int | Denial:
    """The port in the pod's annotation, else in the command line, else the declared one."""
    stated = command_line.option(found.words, "--port") if found.is_read else None
    listens = int(stated) if stated is not None and stated.isascii() and stated.isdigit() else None
    is_said = "upstream_port" in wish.said
    # A port that already is the engine's port inside the pod is not the one that Services target.
    if listens is not None and listens == wish.template.engine_port:
        listens = stated = None
    if is_said:
        return _stated(container, listens, wish)
    if listens is not None:
        return listens
    name = container["name"]
    if stated is not None:
        return Denial(
            Reason.PORTS,
            f"container {name}",
            f"--port {stated} is not a number",
            f"give the number in annotation {annotation('upstream_port')}",
        )
    file = command_line.option(found.words, "--config") if found.is_vllm else None
    if file is not None:
        return _of_file(container, file)
    wanted = wish.template.upstream_port
    probed = _probed(container, wanted) if found.is_vllm and isinstance(wanted, int) else None
    return probed or _declared(container, wanted, "--upstream-port")


def _probed(container: Json, wanted: int) -> int | None:
    """The only declared and probed port of an engine that does not declare the usual one.

    The image may have a start of its own, which reads the port from somewhere else. Services target it.
    """
    declared = {int(each["containerPort"]): each.get("name") for each in ports(container) if is_tcp(each)}
    if wanted in declared:
        return None
    asked = {
        (each.get(kind) or {}).get("port")
        for each in (container.get(name) or {} for name in _PROBES)
        for kind in ("httpGet", "tcpSocket")
    }
    found = [port for port, name in declared.items() if asked & {port, str(port), name} - {None}]
    return found[0] if len(found) == 1 else None


def _stated(container: Json, listens: int | None, wish: Wish) -> int | Denial:
    source = f"annotation {annotation('upstream_port')}"
    port = _declared(container, wish.template.upstream_port, source)
    if isinstance(port, Denial) or listens in (None, port):
        return port
    return Denial(
        Reason.PORTS,
        source,
        f"container {container['name']} does not listen on {port}: its --port says {listens}",
        f'change the annotation to "{listens}", or remove it',
    )


def _declared(container: Json, wanted: int | str, source: str) -> int | Denial:
    if isinstance(wanted, int):
        return wanted
    named = [int(each["containerPort"]) for each in ports(container) if _means(each, wanted)]
    return (
        named[0]
        if named
        else Denial(
            Reason.PORTS,
            source,
            f"container {container['name']} declares no port named {wanted!r}",
            f"name a port of the container, or give its number in annotation {annotation('upstream_port')}",
        )
    )


def _of_file(container: Json, file: str) -> int | Denial:
    """The only declared port of an engine whose port may be in a file."""
    declared = {int(each["containerPort"]) for each in ports(container) if is_tcp(each)}
    if len(declared) == 1:
        return declared.pop()
    return Denial(
        Reason.CONFIG_FILE,
        f"container {container['name']}",
        f"its port may be in --config {file}, and it declares {len(declared) or 'no'} ports",
        f"give the port in annotation {annotation('upstream_port')}, or add --port to the command",
    )
