"""The status of a resource: conditions and live use, and the difference to the stored one. Pure.

A status is written only if it changed. Numbers of the live use are rounded, and small changes do not count:
each write is a write to etcd, and an event for every watcher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from coordinator.resources.fields import Json, camel
from coordinator.resources.merge import InForce, Verdict
from coordinator.resources.reading import Kind, Resource
from tokenpool.amounts import NO_KV_BOUND_FROM, NOTHING, Amount, Dimension
from tokenpool.entitlements import Entitlement, Pool

SIGNIFICANT = 0.1
"""The smallest relative change of a number of the live use that is written."""
OWN_CONDITIONS = ("Accepted", "ResolvedRefs", "Enforced", "Overcommitted")


class Said(NamedTuple):
    """The state of one condition."""

    status: str
    """``True``, ``False`` or ``Unknown``."""
    reason: str
    message: str


class Live(NamedTuple):
    """The state of a pool after a tick, as far as the status shows it."""

    overcommitted: Said
    capacity: Amount | None = None
    promised: Amount = NOTHING
    ready: int = 0
    desired: int | None = None
    entitlements: int = 0


class Use(NamedTuple):
    """The live use of an entitlement or a pool, and its bound."""

    use: Amount
    limit: Amount


UNKNOWN = Said("Unknown", "NoSidecars", "no sidecar reports its capacity; start the pool's replicas")
_NO_GUARANTEE = Said("False", "NoGuarantee", "the entitlement has no guarantee")


def overcommitted(
    promised: Amount, live: Amount | None, beyond_most: Iterable[Dimension], replicas: int
) -> Said:
    """Whether a pool promises more than it has, now or with all its replicas.

    ``live`` is its capacity now; ``None`` if no sidecar reports. ``beyond_most`` are the dimensions in which
    ``replicas``, the largest number, cannot serve the promises.
    """
    beyond = [camel(dimension.value) for dimension in beyond_most]
    if beyond:
        said = (
            f"the guarantees exceed the capacity of {replicas} replicas in {', '.join(beyond)};"
            " lower guarantees, or raise replicas.max"
        )
        return Said("True", "BeyondMaximum", said)
    if live is None:
        return UNKNOWN
    now = [camel(d.value) for d in Dimension if promised.get(d) > live.get(d) * (1 + 1e-9)]
    if now:
        said = (
            f"the guarantees exceed the live capacity in {', '.join(now)}: they shrink in proportion until"
            " more replicas are ready"
        )
        return Said("True", "BeyondLiveCapacity", said)
    return Said("False", "WithinCapacity", "the live capacity covers all guarantees")


def enforced(
    kept: InForce | None, accepted: Verdict, *, is_everywhere: bool, sidecars: int, behind: int
) -> Said:
    """Whether all sidecars of the pool enforce the object's present generation."""
    if kept is None:
        return Said("False", "NotAccepted", "the object is not part of the pool file; see Accepted")
    if not accepted.holds:
        return Said("False", "EarlierVersion", "sidecars enforce the last accepted version; see Accepted")
    if not sidecars:
        return Said("False", "NoSidecars", "the pool has no sidecar; start its replicas")
    if not is_everywhere:
        said = f"{behind} of {sidecars} sidecars enforce an older pool file; see their logs if this lasts"
        return Said("False", "RollingOut", said)
    return Said("True", "AllSidecars", "all sidecars of the pool enforce the object")


def status_of(
    resource: Resource,
    accepted: Verdict,
    resolved: Verdict | None,
    kept: InForce | None,
    rolled_out: Said,
    live: Live,
    use: Use | None,
    now: str,
) -> Json | None:
    """The new status as a merge patch; ``None`` if the stored one is as good. ``now`` is an RFC 3339 time."""
    before: Json = msgspec.json.decode(resource.status)
    wanted = {"Accepted": _verdict(accepted)}
    if resource.key.kind is Kind.ENTITLEMENT and resolved is not None:
        wanted["ResolvedRefs"] = _verdict(resolved)
    wanted["Enforced"] = rolled_out
    wanted["Overcommitted"] = _over(kept, live)
    made: Json = {
        "observedGeneration": resource.generation,
        "conditions": _conditions(before.get("conditions"), wanted, resource.generation, now),
    }
    if kept is not None and kept.generation:
        made["acceptedGeneration"] = kept.generation
    elif "acceptedGeneration" in before:
        made["acceptedGeneration"] = None
    made |= _shown(resource.key.kind, live, use)
    if not _differs(before, made):
        return None
    for name in ("use", "limit", "capacity", "promised", "replicas"):
        # In a merge patch, null removes a field.
        gone = _mapping(before.get(name)).keys() - made[name].keys() if name in made else ()
        made |= {name: made[name] | dict.fromkeys(gone)} if gone else {}
    return made


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _over(kept: InForce | None, live: Live) -> Said:
    record = kept.record if kept is not None else None
    if isinstance(record, Pool) or (isinstance(record, Entitlement) and any(record.guarantee.values())):
        return live.overcommitted
    return _NO_GUARANTEE if record is not None else Said("Unknown", "NotAccepted", "see Accepted")


def _verdict(verdict: Verdict) -> Said:
    return Said("True" if verdict.holds else "False", verdict.reason.value, verdict.message)


def _conditions(before: Any, wanted: Mapping[str, Said], generation: int, now: str) -> list[Json]:
    """The conditions. Those of other controllers stay; a transition has its time."""
    stored = {
        each["type"]: each
        for each in (before if isinstance(before, list) else [])
        if isinstance(each, Mapping) and isinstance(each.get("type"), str)
    }
    made = []
    for kind, said in wanted.items():
        old = stored.pop(kind, {})
        is_same = old.get("status") == said.status and old.get("lastTransitionTime")
        made.append(
            {
                "type": kind,
                "status": said.status,
                "reason": said.reason,
                "message": said.message,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if is_same else now,
            }
        )
    return made + [dict(each) for kind, each in stored.items() if kind not in OWN_CONDITIONS]


def _shown(kind: Kind, live: Live, use: Use | None) -> Json:
    made: Json = {}
    if use is not None:
        made["use"] = _amount(use.use)
        made["limit" if kind is Kind.ENTITLEMENT else "capacity"] = _amount(use.limit)
    if kind is Kind.POOL:
        made["promised"] = _amount(live.promised)
        made["entitlements"] = live.entitlements
        desired = {} if live.desired is None else {"desired": live.desired}
        made["replicas"] = {"ready": live.ready} | desired
    return made


def _amount(amount: Amount) -> Json:
    """Whole numbers, by the resource's spelling; a dimension without a bound is left out."""
    return {
        camel(d.value): round(value)
        for d in Dimension
        if math.isfinite(value := amount.get(d))
        and not (d is Dimension.KV_TOKENS and value >= NO_KV_BOUND_FROM)
    }


def _differs(before: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    for name, value in made.items():
        old = before.get(name)
        if name == "conditions":
            if [_essence(each) for each in old or []] != [_essence(each) for each in value]:
                return True
        elif name in ("use", "limit", "capacity"):
            if _moved(_mapping(old), value):
                return True
        elif old != value:
            return True
    return False


def _essence(condition: Any) -> Any:
    """A condition without its time. The message of a rollout counts sidecars; each count is no change."""
    if not isinstance(condition, Mapping):
        return condition
    kept = {name: value for name, value in condition.items() if name != "lastTransitionTime"}
    if condition.get("reason") == "RollingOut":
        kept.pop("message", None)
    return kept


def _moved(old: Mapping[str, Any], new: Mapping[str, int]) -> bool:
    if old.keys() != new.keys():
        return True
    for name, value in new.items():
        was = old[name]
        if not isinstance(was, int) or (was == 0) != (value == 0):
            return True
        if abs(value - was) > SIGNIFICANT * max(was, value):
            return True
    return False
