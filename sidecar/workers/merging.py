"""Merges the answers of several workers into one: readiness, state and live page. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dashboard.snapshot import ShownEntitlement, ShownHandover, ShownPool, Snapshot, Tally, Vector
from runtime.admin import Readiness

State = dict[str, Any]

ADDED = frozenset(
    {"in_flight", "queued", "waiting", "in_use", "held", "demand", "outcomes", "surplus", "decisions"}
)
"""Fields of ``/debug/state`` of which each worker has a part."""
_RATE_HELD = "held.tokens_per_second"
"""No worker holds a part of a rate: this is the limit, as at each of them."""
OWN = ("lease_store", "handover", "in_flight", "queued")
"""Fields that are shown for each worker, too."""


def readiness(workers: Mapping[int, Readiness | None], *, is_draining: bool) -> Readiness:
    """Whether requests may be sent here: at least one worker serves. ``None``: a worker does not answer.

    The kernel gives new connections to the workers that listen. One that was started again listens when it
    is ready, so the others get its share meanwhile.
    """
    if is_draining:
        return Readiness(["draining"])
    serving = [each for each in workers.values() if each is not None and not each.problems]
    problems: dict[str, None] = {}
    degraded: dict[str, None] = {}
    for number, each in workers.items():
        if each is None:
            degraded[f"worker {number} does not answer"] = None
            continue
        for problem in each.problems:
            problems[problem] = None
            if serving:
                degraded[f"worker {number}: {problem}"] = None
        degraded.update((notice, None) for notice in each.degraded)
    if serving:
        return Readiness([], list(degraded))
    return Readiness(list(problems) or ["no worker answers"], list(degraded))


def state(workers: Mapping[int, State], about: Mapping[int, State]) -> State:
    """The state of all workers. ``about`` has what the supervisor knows about each."""
    made = _merged([workers[number] for number in sorted(workers)])
    made["workers"] = [
        {**about[number], **{name: workers.get(number, {}).get(name) for name in OWN}}
        for number in sorted(about)
    ]
    return made


def _merged(parts: Sequence[State]) -> State:
    """Values that are the same at all workers come from the first one."""
    made: State = {}
    for part in parts:
        for name, value in part.items():
            if name not in made:
                made[name] = value
            elif name in ADDED:
                made[name] = _sum(made[name], value, name)
            elif name == "level":
                made[name] = min(made[name], value)
            elif name in ("draining", "up"):
                made[name] = made[name] or value
            elif name == "config_is_current":
                made[name] = made[name] and value
            elif isinstance(value, dict) and isinstance(made[name], dict):
                made[name] = _merged([made[name], value])
    return made


def _sum(one: Any, other: Any, name: str = "") -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {each: _sum(one.get(each), other.get(each), f"{name}.{each}") for each in {**one, **other}}
    if name == _RATE_HELD:
        return one
    if one is None or other is None:
        return other if one is None else one
    return one + other


def snapshot(workers: Mapping[int, Snapshot], name: str, planner: str = "") -> Snapshot:
    """The content of the live page: all workers as one sidecar. ``planner`` names their own planner."""
    shown = [workers[number] for number in sorted(workers)]
    if not shown:
        return Snapshot("sidecar", name, notices=("no worker answers",))
    pools: dict[str, ShownPool] = {}
    for number, each in sorted(workers.items()):
        for pool in each.pools:
            named = _with_tallies(pool, f"worker {number} {each.name}")
            pools[pool.name] = _pool(pools[pool.name], named) if pool.name in pools else named
    notices = dict.fromkeys(notice for each in shown for notice in each.notices)
    if planner:
        # The workers are holders of a lease store, but the pool has no other sidecar.
        led = [msgspec.structs.replace(each, leader=planner) for each in pools.values()]
        return Snapshot("sidecar", name, tuple(led), tuple(notices))
    return Snapshot("sidecar", name, tuple(pools.values()), tuple(notices), shown[0].about)


def _with_tallies(pool: ShownPool, name: str) -> ShownPool:
    return msgspec.structs.replace(pool, tallies=dict(zip([name], pool.tallies.values(), strict=True)))


def _pool(one: ShownPool, other: ShownPool) -> ShownPool:
    entitlements = {each.name: each for each in one.entitlements}
    for each in other.entitlements:
        known = entitlements.get(each.name)
        entitlements[each.name] = each if known is None else _entitlement(known, each)
    tallies: dict[str, Tally] = {**one.tallies, **other.tallies}
    return msgspec.structs.replace(
        one,
        in_use=_added(one.in_use, other.in_use),
        replicas=msgspec.structs.replace(
            one.replicas, engines_up=max(one.replicas.engines_up, other.replicas.engines_up)
        ),
        entitlements=tuple(entitlements.values()),
        tallies=tallies,
        waiting=_counts(one.waiting, other.waiting),
        handover=_handover(one.handover, other.handover),
    )


def _entitlement(one: ShownEntitlement, other: ShownEntitlement) -> ShownEntitlement:
    """The use of each worker includes that of all others, as last known; demand and spending do not."""
    decisions = dict(_counts(tuple(one.decisions.items()), tuple(other.decisions.items())))
    return msgspec.structs.replace(
        one,
        in_use=_largest(one.in_use, other.in_use),
        demand=_added(one.demand, other.demand),
        spent=one.spent + other.spent,
        decisions=decisions,
    )


def _handover(one: ShownHandover | None, other: ShownHandover | None) -> ShownHandover | None:
    if one is None or other is None:
        return one or other
    return ShownHandover(
        max(one.peers, other.peers),
        _counts(one.results, other.results),
        one.elsewhere + other.elsewhere,
        one.guests + other.guests,
        one.guests_waiting + other.guests_waiting,
    )


def _counts(one: Iterable[tuple[str, int]], other: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    made = dict(one)
    for name, count in other:
        made[name] = made.get(name, 0) + count
    return tuple(made.items())


def _added(one: Vector, other: Vector) -> Vector:
    a, b, c = (None if x is None or y is None else x + y for x, y in zip(one, other, strict=True))
    return a, b, c


def _largest(one: Vector, other: Vector) -> Vector:
    a, b, c = (None if x is None or y is None else max(x, y) for x, y in zip(one, other, strict=True))
    return a, b, c
