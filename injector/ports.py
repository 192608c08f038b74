"""The ports of an injected pod: those of the sidecar, and the engine's new one. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from injector import shape, sidecar_container
from injector.decisions import Denial, Note, Reason
from injector.engine_container import EngineContainer
from injector.settings import Wish, annotation
from injector.shape import Json
from injector.sidecar_container import Settled

_FIRST_ENGINE_PORT = 18000
"""The first port for the engine, below the range of ports for outgoing connections."""


def settle(pod: Json, found: EngineContainer, wished: Wish) -> Settled | Denial:
    """The ports of all containers. The denial names two that would be equal."""
    template = wished.template
    taken_over = [each for each in shape.ports(found.container) if _is_engines(each, found)]
    declared = {
        int(port["containerPort"]): str(each["name"])
        for each in shape.containers(pod)
        for port in shape.ports(each)
        if shape.is_tcp(port) and not (each is found.container and _is_engines(port, found))
    }
    listen = template.listen_port or found.port
    used = {*declared, listen, found.port}
    admin = template.admin_port if "admin_port" in wished.said else _free(template.admin_port, used)
    ours = {listen: sidecar_container.NAME, admin: sidecar_container.NAME}
    taken = {**declared, listen: sidecar_container.NAME, found.port: found.name}
    peer = _peer_port({**declared, found.port: found.name, **ours}, wished)
    if peer is not None:
        ours[peer] = sidecar_container.NAME
    stays = found.port if listen != found.port else None
    local = template.engine_port or stays or _free(_FIRST_ENGINE_PORT, {*used, *ours})
    others = {port: name for port, name in declared.items() if name != found.name}
    clashes = [
        _clash("listen_port", listen, declared),
        _clash("admin_port", admin, taken) if "admin_port" in wished.said else None,
        _clash("peer_port", peer, {**taken, admin: sidecar_container.NAME})
        if "peer_port" in wished.said
        else None,
        _clash("engine_port", local, {**others, **ours}),
    ]
    for clash in clashes:
        if clash is not None:
            return clash
    return Settled(local, listen, admin, peer, tuple(taken_over))


def notes(settled: Settled, wished: Wish) -> tuple[Note, ...]:
    """A warning if the peer port is another one. Network policies name one port for all pods of a pool."""
    wanted = wished.template.peer_port
    if settled.peer in (None, wanted):
        return ()
    text = (
        f"the peer port is {settled.peer}, because another part of the pod has {wanted}: open it between the"
        f" pool's pods, or set annotation {annotation('peer_port')} to a port that all of them have free"
    )
    return (Note(Reason.PORTS, text),)


def _peer_port(used: Mapping[int, str], wished: Wish) -> int | None:
    """The peer port; ``None`` without handover."""
    template = wished.template
    if not sidecar_container.hands_over(template):
        return None
    if "peer_port" in wished.said:
        return template.peer_port
    return _free(template.peer_port, {*used, template.engine_port})


def _is_engines(port: Json, found: EngineContainer) -> bool:
    return bool(port["containerPort"] == found.port and shape.is_tcp(port))


def _clash(field: str, port: int | None, declared: Mapping[int, str]) -> Denial | None:
    if port is None or port not in declared:
        return None
    problem = f"container {declared[port]} has port {port}"
    return Denial(Reason.PORTS, f"annotation {annotation(field)}", problem, "give a port that is free")


def _free(first: int, used: Iterable[int | None]) -> int:
    return next(port for port in itertools.count(first) if port not in used)
