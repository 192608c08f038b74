"""The decision: a pod and a template go in, a patch or a refusal comes out. Pure.

The decisions:

- The sidecar takes over the port that Services target, number and name, and the engine moves to a free
  port of the loopback. So no Service, client or gateway has to change, and no client can bypass the sidecar.
  With another ``listen-port`` the engine keeps its port, on the loopback, and the Service must be changed.
- A pod that would not work, or would be open to all clients, is refused, with the field and the fix. An
  annotation accepts it explicitly. A pod that would work less safely gets a warning, also as an annotation.
- A pod with a sidecar of ours already has one: a second injection changes nothing, and refuses what another
  webhook opened since.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from injector import (
    engine_container,
    engine_rules,
    engine_tls,
    exec_probes,
    mesh,
    other_containers,
    pod_rules,
    ports,
    probes,
    qos,
    routers,
    shape,
    sidecar_container,
    workers,
)
from injector.command_line import LOOPBACK
from injector.decisions import Denial, Injection, Note, Reason
from injector.engine_container import EngineContainer
from injector.move import is_rewritten, move
from injector.patch import difference
from injector.settings import STATUS, WARNINGS, Allow, Template, Wish, wish
from injector.shape import Json
from injector.sidecar_container import Settled, Surroundings
from runtime.options import SettingsError

_DEFAULT_GRACE_S = 30
"""Kubernetes' default."""


def inject(pod: Mapping[str, Any], template: Template, *, every: bool = False) -> Injection | Denial:
    """The decision about a new pod. With ``every``, pods without the label are also injected.

    Raises ``PodMalformed`` if the document is not a pod.
    """
    shape.check(pod)
    before = dict(pod)
    if not every and shape.metadata(before, "labels").get(template.label) != "true":
        return Injection()
    try:
        wished = wish(template, shape.metadata(before, "annotations"))
    except SettingsError as error:
        return _invalid(error)
    if denied := pod_rules.refusal(before, wished.allowed):
        return denied
    if pod_rules.is_injected(before) and (denied := _opened_since(before, wished)):
        return denied
    if (unchanged := pod_rules.left_alone(before, wished.allowed)) is not None:
        return unchanged
    if (note := workers.note(before, wished)) is not None:
        denied = other_containers.second_engine(before, "", wished.allowed)
        return denied or Injection(notes=(note,))
    return _injected(before, wished)


def _invalid(error: SettingsError) -> Denial:
    field, _, problem = str(error).partition(": ")
    problem, _, fix = problem.partition("; ")
    return Denial(Reason.ANNOTATION, field, problem, fix or "correct it, or remove it")


def _opened_since(pod: Json, wished: Wish) -> Denial | None:
    """The denial if another webhook opened the engine, or added one, after the sidecar."""
    found = engine_container.find(pod, wished)
    if isinstance(found, Denial):
        return other_containers.second_engine(pod, "", wished.allowed)
    if is_rewritten(found) and Allow.OPEN_ENGINE not in wished.allowed and not found.is_on_the_loopback:
        return Denial(
            Reason.ENGINE_OPEN,
            found.field,
            f"after the sidecar was added, something removed --host {LOOPBACK} from its command or replaced"
            " it, so that clients can bypass the sidecar",
            "let the other webhook run first, or keep these options",
            opt_out=Allow.OPEN_ENGINE,
        )
    return other_containers.second_engine(pod, found.name, wished.allowed)


@dataclass(slots=True)
class _Plan:
    """What the steps of an injection have decided."""

    found: EngineContainer
    template: Template
    settled: Settled
    around: Surroundings
    fields: dict[str, dict[str, Any]]
    """The changed fields of each container, by its name."""
    annotations: dict[str, str]
    notes: list[Note]


def _injected(before: Json, wished: Wish) -> Injection | Denial:
    plan = _planned(_seen(before, wished), wished)
    if isinstance(plan, Denial):
        return plan
    after = copy.deepcopy(before)
    _put(after, plan)
    volumes = _volumes(after["spec"], plan.template)
    if isinstance(volumes, Denial):
        return volumes
    _add(after, volumes, plan)
    return Injection(tuple(difference(before, after)), tuple(plan.notes))


def _seen(before: Json, wished: Wish) -> Json:
    """The pod as its author wrote it: with the probes that Istio redirected."""
    if not mesh.has_run(before):
        return before
    every = [mesh.restored(each, before) for each in before["spec"]["containers"]]
    return {**before, "spec": {**before["spec"], "containers": every}}


def _planned(pod: Json, wished: Wish) -> _Plan | Denial:
    """All decisions about a pod that gets a sidecar."""
    found = engine_container.find(pod, wished)
    if isinstance(found, Denial):
        return found
    if denied := (
        engine_rules.refusal(found, wished)
        or other_containers.second_engine(pod, found.name, wished.allowed)
        or pod_rules.never_completes(pod, wished.template, wished.allowed)
    ):
        return denied
    settled = ports.settle(pod, found, wished)
    if isinstance(settled, Denial):
        return settled
    certificate = engine_tls.taken(found, pod)
    if isinstance(certificate, Denial):
        return certificate
    template, notes = qos.fitted(pod, wished)
    places = _places(found, template, settled, is_tls=certificate is not None, is_in_mesh=mesh.is_in(pod))
    metrics = routers.metrics(pod, wished, places.asked, settled.listen)
    excluded, late = mesh.excluded(pod, settled.admin, settled.peer)
    spec = pod["spec"]
    around = Surroundings(
        certificate=certificate,
        exposes_metrics=metrics.are_exposed,
        shares_processes=bool(spec.get("shareProcessNamespace") or spec.get("hostPID")),
        is_in_mesh=places.is_in_mesh,
    )
    plan = _Plan(found, template, settled, around, {}, {**metrics.annotations, **excluded}, [])
    if denied := _moved(plan, wished) or _probed(plan, pod, places, wished):
        return denied
    plan.notes += [
        *engine_rules.notes(found),
        *(certificate.notes if certificate else ()),
        *other_containers.callers(pod, found.name, settled.listen, settled.engine),
        *ports.notes(settled, wished),
        *notes,
        *metrics.notes,
        *late,
    ]
    return plan


def _places(
    found: EngineContainer, template: Template, settled: Settled, *, is_tls: bool, is_in_mesh: bool
) -> probes.Places:
    names = {str(port["name"]) for port in settled.taken_over if port.get("name")}
    asked: frozenset[int | str] = frozenset({found.port, *names})
    inside = {"exec": found.interpreter() or "python3", "sidecar": None, "auto": found.interpreter()}
    python = inside[template.engine_probes]
    return probes.Places(
        asked, settled.engine, settled.listen, settled.admin, python, is_tls=is_tls, is_in_mesh=is_in_mesh
    )


def _moved(plan: _Plan, wished: Wish) -> Denial | None:
    """Move the engine to the loopback."""
    has_tls = plan.around.certificate is not None
    moved = move(
        plan.found,
        plan.settled.engine,
        wish=wished,
        drop=engine_tls.OPTIONS if has_tls else frozenset(),
        switches=engine_tls.SWITCHES if has_tls else frozenset(),
    )
    if isinstance(moved, Denial):
        return moved
    plan.fields[plan.found.name] = moved.fields
    plan.notes += moved.notes
    return None


def _probed(plan: _Plan, pod: Json, places: probes.Places, wished: Wish) -> Denial | None:
    """Make the probes and hooks of all containers follow the engine."""
    for each in other_containers.serving(pod):
        followed = exec_probes.followed(
            each, plan.found.port, places.engine_port, wished.allowed, was_tls=places.is_tls
        )
        if isinstance(followed, Denial):
            return followed
        seen = {**each, **followed}
        if each["name"] == plan.found.name:
            turned, doubts = probes.turned(seen, places)
        else:
            turned, doubts = probes.redirected(seen, places)
        plan.notes += doubts
        changed = {**followed, **turned}
        plan.fields.setdefault(each["name"], {}).update(changed)
        if each["name"] == plan.found.name:
            _wait_for_sidecar(plan, {**each, **changed}, places)
            if denied := _stopped_by_mesh(plan, pod, places):
                return denied
    return None


def _wait_for_sidecar(plan: _Plan, container: Json, places: probes.Places) -> None:
    """Make the engine end after the sidecar, unless it has a hook of its own."""
    hooks = container.get("lifecycle") or {}
    longest = sidecar_container.longest_drain(plan.template)
    if hook := hooks.get("preStop"):
        if probes.lasts(hook) < longest:
            text = (
                f"container {container['name']}: its preStop hook may end before the sidecar has drained,"
                f" which cuts streams: remove the hook, or let it last {longest} s"
            )
            plan.notes.append(Note(Reason.HOOK, text))
        return
    within = sidecar_container.drains_within(plan.template)
    waits = probes.waits_for_sidecar(places, drains_within=within, longest=longest)
    plan.fields[container["name"]]["lifecycle"] = {**hooks, "preStop": waits}


def _stopped_by_mesh(plan: _Plan, pod: Json, places: probes.Places) -> Denial | None:
    """The denial of probes over the network that Istio does not rewrite, because it ran first."""
    if not mesh.has_run(pod) or places.interpreter is not None:
        return None
    own = plan.fields[plan.found.name]
    over = [name for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in own]
    if not over:
        return None
    return Denial(
        Reason.MESH,
        f"container {plan.found.name}: {over[0]}",
        "Istio's injector ran first and does not rewrite it, and mutual TLS would stop it",
        "set annotation tokenpool.io/engine-probes: exec if the image has Python, or use an exec probe",
    )


def _put(pod: Json, plan: _Plan) -> None:
    """Write the changed fields into the pod's containers, and take the engine's ports away."""
    for each in shape.containers(pod):
        each.update(plan.fields.get(each["name"], {}))
        if each["name"] == plan.found.name and plan.settled.taken_over:
            each["ports"] = [port for port in each["ports"] if port not in plan.settled.taken_over]
            if not each["ports"]:
                del each["ports"]


def _add(pod: Json, volumes: list[Json], plan: _Plan) -> None:
    """Add the sidecar, its volumes, its annotations and the time to end."""
    spec = pod["spec"]
    place = "initContainers" if plan.template.native else "containers"
    # After the init containers of the pod: those that load a model need no sidecar.
    made = sidecar_container.sidecar(plan.template, plan.settled, plan.around)
    spec[place] = [*(spec.get(place) or []), made]
    spec["volumes"] = [*(spec.get("volumes") or []), *volumes]
    given, needed = spec.get("terminationGracePeriodSeconds"), sidecar_container.grace(plan.template)
    if (_DEFAULT_GRACE_S if given is None else given) < needed:
        spec["terminationGracePeriodSeconds"] = needed
    if not isinstance(pod.get("metadata"), dict):
        pod["metadata"] = {}
    said = {WARNINGS: "\n".join(note.text for note in plan.notes)} if plan.notes else {}
    pod["metadata"]["annotations"] = {
        **shape.metadata(pod, "annotations"),
        **plan.annotations,
        **said,
        STATUS: "injected",
    }


def _volumes(spec: Json, template: Template) -> list[Json] | Denial:
    named = {each["name"] for each in spec.get("volumes") or []}
    made = sidecar_container.volumes(template)
    for each in made:
        if each["name"] in named:
            return Denial(
                Reason.VOLUME,
                f"volume {each['name']}",
                "the sidecar's own volume has this name",
                "rename the pod's volume, and its mounts",
            )
    return made
