"""The decision: a pod and a template go in, a patch or a refusal comes out. Pure.

The decisions:

- The sidecar takes over the port that Services target, number and name, and the engine moves to a free
  port of the loopback. So no Service, client or gateway has to change, and no client can bypass the sidecar.
  With another ``listen-port`` the engine keeps its port, on the loopback, and the Service must be changed.
- A pod that would not work, or would be open to all clients, is refused. A pod that would work less safely
  gets a warning.
- A pod with a container of the sidecar's name already has one: a second injection changes nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from injector import engine_container, probes, shape, sidecar_container
from injector.engine_container import EngineContainer
from injector.patch import Operation, difference
from injector.settings import STATUS, Template, Wish, annotation, wish
from injector.shape import Json
from injector.sidecar_container import Settled
from runtime.options import SettingsError

_FIRST_ENGINE_PORT = 18000
"""The first port for the engine, below the range of ports for outgoing connections."""
_DEFAULT_GRACE_S = 30
"""Kubernetes' default."""
_MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Injection:
    """The pod may be created, with this patch. An empty patch leaves it unchanged."""

    patch: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()
    """For the creator of the pod."""


@dataclass(frozen=True, slots=True)
class Denial:
    """The pod must not be created unchanged."""

    message: str
    """The problem and the fix."""


def inject(pod: Mapping[str, Any], template: Template, *, every: bool = False) -> Injection | Denial:
    """The decision about a new pod. With ``every``, pods without the label are also injected.

    Raises ``PodMalformed`` if the document is not a pod.
    """
    shape.check(pod)
    before = dict(pod)
    if not every and shape.metadata(before, "labels").get(template.label) != "true":
        return Injection()
    if (why := _left_alone(before)) is not None:
        return Injection(warnings=why)
    try:
        after, warnings = _injected(before, wish(template, shape.metadata(before, "annotations")))
    except SettingsError as error:
        return Denial(f"tokenpool: {error}")
    return Injection(tuple(difference(before, after)), tuple(f"tokenpool: {each}" for each in warnings))


def _left_alone(pod: Json) -> tuple[str, ...] | None:
    """The warnings for a pod that requests a sidecar and gets none; ``None`` if it gets one."""
    if any(each["name"] == sidecar_container.NAME for each in shape.containers(pod)):
        if shape.metadata(pod, "annotations").get(STATUS) == "injected":
            return ()
        return (f"tokenpool: not injected: there is a container {sidecar_container.NAME} already",)
    if pod["spec"].get("hostNetwork"):
        return (
            "tokenpool: not injected: a pod with hostNetwork shares its ports and its loopback with all"
            " processes of the node",
        )
    if _MIRROR in shape.metadata(pod, "annotations"):
        return ("tokenpool: not injected: the pod is a static one, which only its node can change",)
    return None


def _injected(before: Json, wished: Wish) -> tuple[Json, list[str]]:
    found = engine_container.find(before, wished)
    template, warnings = _as_native_as_possible(before, wished.template)
    settled = _ports(before, found, wished)
    moved = engine_container.move(found, settled.engine, is_said="engine_port" in wished.said)
    places = _places(found, template, settled)
    turned, doubts = probes.turned(found.container, places)
    warnings += [*moved.doubts, *doubts, *_about_keys(found, template), *_about_peers(settled, template)]
    fields = {**moved.fields, **turned}
    warnings += _wait_for_sidecar(found.container, fields, places, template)

    pod = copy.deepcopy(before)
    _put(pod, found, fields, settled)
    _add(pod, template, settled)
    return pod, warnings


def _as_native_as_possible(pod: Json, template: Template) -> tuple[Template, list[str]]:
    if not template.native or not pod["spec"].get("shareProcessNamespace"):
        return template, []
    # The hook that drains a native sidecar signals process 1, which is another process here.
    return replace(template, native=False), [
        "injected as a plain container: with shareProcessNamespace a native sidecar could not drain"
    ]


def _ports(pod: Json, found: EngineContainer, wished: Wish) -> Settled:
    """The ports of all containers. Raises ``SettingsError`` if two would be equal."""
    template = wished.template
    taken_over = [each for each in shape.ports(found.container) if _is_engines(each, found)]
    declared = {
        int(port["containerPort"]): str(each["name"])
        for each in shape.containers(pod)
        for port in shape.ports(each)
        if shape.is_tcp(port) and not (each is found.container and _is_engines(port, found))
    }
    listen = template.listen_port or found.port
    _must_be_free("listen_port", listen, declared)
    used = {*declared, listen, found.port}
    admin = template.admin_port
    if "admin_port" in wished.said:
        _must_be_free(
            "admin_port", admin, {**declared, listen: sidecar_container.NAME, found.port: found.name}
        )
    else:
        admin = _free(admin, used)
    ours = {listen: sidecar_container.NAME, admin: sidecar_container.NAME}
    peer = _peer_port({**declared, found.port: found.name, **ours}, wished)
    if peer is not None:
        ours[peer] = sidecar_container.NAME
    stays = found.port if listen != found.port else None
    local = template.engine_port or stays or _free(_FIRST_ENGINE_PORT, {*used, *ours})
    others = {port: name for port, name in declared.items() if name != found.name}
    _must_be_free("engine_port", local, {**others, **ours})
    return Settled(local, listen, admin, peer, tuple(taken_over))


def _peer_port(used: Mapping[int, str], wished: Wish) -> int | None:
    """The peer port; ``None`` without handover. Raises ``SettingsError``."""
    template = wished.template
    if not sidecar_container.hands_over(template):
        return None
    if "peer_port" in wished.said:
        _must_be_free("peer_port", template.peer_port, used)
        return template.peer_port
    return _free(template.peer_port, {*used, template.engine_port})


def _is_engines(port: Json, found: EngineContainer) -> bool:
    return bool(port["containerPort"] == found.port and shape.is_tcp(port))


def _must_be_free(field: str, port: int, declared: Mapping[int, str]) -> None:
    if port in declared:
        raise SettingsError(
            f"annotation {annotation(field)}: container {declared[port]} has port {port}; give another"
        )


def _free(first: int, used: Iterable[int | None]) -> int:
    return next(port for port in itertools.count(first) if port not in used)


def _places(found: EngineContainer, template: Template, settled: Settled) -> probes.Places:
    names = {str(port["name"]) for port in settled.taken_over if port.get("name")}
    asked: frozenset[int | str] = frozenset({found.port, *names})
    inside = {"exec": found.interpreter() or "python3", "sidecar": None, "auto": found.interpreter()}
    return probes.Places(asked, settled.engine, settled.listen, settled.admin, inside[template.engine_probes])


def _about_keys(found: EngineContainer, template: Template) -> list[str]:
    if not found.asks_for_a_key() or template.upstream_key_secret is not None:
        return []
    return [
        f"container {found.name} requires an API key of its own: name its Secret in annotation"
        f" {annotation('upstream_key_secret')}, or remove the key"
    ]


def _about_peers(settled: Settled, template: Template) -> list[str]:
    """A warning if the peer port is another one. Network policies name one port for all pods of a pool."""
    if settled.peer in (None, template.peer_port):
        return []
    return [
        f"the peer port is {settled.peer}, because another part of the pod has {template.peer_port}: open it"
        f" between the pool's pods, or give annotation {annotation('peer_port')}"
    ]


def _wait_for_sidecar(
    before: Json, fields: dict[str, Any], places: probes.Places, template: Template
) -> list[str]:
    """Make the engine end after the sidecar, unless it has a hook of its own."""
    hooks = fields.get("lifecycle") or before.get("lifecycle") or {}
    if hooks.get("preStop"):
        return [
            f"container {before['name']} has a preStop hook, which must last until the sidecar has drained"
            f" ({sidecar_container.longest_drain(template)} s at most), or streams are cut"
        ]
    waits = probes.waits_for_sidecar(
        places,
        drains_within=sidecar_container.drains_within(template),
        longest=sidecar_container.longest_drain(template),
    )
    fields["lifecycle"] = {**hooks, "preStop": waits}
    return []


def _put(pod: Json, found: EngineContainer, fields: dict[str, Any], settled: Settled) -> None:
    """Write the changed engine's container into the pod."""
    every = pod["spec"]["containers"]
    own = next(each for each in every if each["name"] == found.name)
    own.update(fields)
    if settled.taken_over:
        own["ports"] = [each for each in own["ports"] if each not in settled.taken_over]
        if not own["ports"]:
            del own["ports"]


def _add(pod: Json, template: Template, settled: Settled) -> None:
    """Add the sidecar, its volumes and the time to end."""
    spec = pod["spec"]
    place = "initContainers" if template.native else "containers"
    # After the init containers of the pod: those that load a model need no sidecar.
    spec[place] = [*(spec.get(place) or []), sidecar_container.sidecar(template, settled)]
    spec["volumes"] = [*(spec.get("volumes") or []), *_new_volumes(spec, template)]
    given = spec.get("terminationGracePeriodSeconds")
    if (_DEFAULT_GRACE_S if given is None else given) < sidecar_container.grace(template):
        spec["terminationGracePeriodSeconds"] = sidecar_container.grace(template)
    if not isinstance(pod.get("metadata"), dict):
        pod["metadata"] = {}
    pod["metadata"]["annotations"] = {**shape.metadata(pod, "annotations"), STATUS: "injected"}


def _new_volumes(spec: Json, template: Template) -> list[Json]:
    named = {each["name"] for each in spec.get("volumes") or []}
    made = sidecar_container.volumes(template)
    for each in made:
        if each["name"] in named:
            raise SettingsError(f"volume {each['name']} is the sidecar's; rename the pod's own volume")
    return made
