"""One tick: a snapshot of the lease store goes in, the limit of every active entitlement comes out. Pure.

The coordinator leads, reads and publishes. The planner divides capacity, and does not depend on the lease
store. This module connects the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from tokenpool.accounting.group_accounts import PREFIX
from tokenpool.accounting.report import Report
from tokenpool.amounts import NO_KV_BOUND_FROM, NOTHING, Amount
from tokenpool.capacity.model import UNLEARNED_TOKENS_PER_SECOND
from tokenpool.entitlements import Entitlement, Group
from tokenpool.leases.leases import limit_of_group
from tokenpool.leases.messages import EntitlementRecord, Limit, PoolSnapshot
from tokenpool.leases.resting import Resting, is_idle, limit_of, request_floor, rest
from tokenpool.leases.wire import SidecarReport, WireError, decode_report
from tokenpool.planning.idle import IdleTerms
from tokenpool.planning.planner import Plan, PlanInput, PlannerSettings, plan
from tokenpool.planning.profiles import Profile

RETIRE_S = 60.0
"""The idle time after which an entitlement loses its own limit: see ``IdleTerms``. Until then its largest
request is remembered (``messages.REQUEST_SIZE_MEMORY_S``)."""
MOST_ELAPSED_S = 1.0
"""The longest time in seconds that one tick counts for debts, after a pause of the coordinator."""
_NO_REPORT = b"", SidecarReport()
_DEFAULTS = PlannerSettings()


@dataclass(frozen=True, slots=True)
class Memory:
    """The state that one tick passes to the next. A new coordinator begins without it."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    idle_since: Mapping[str, float] = field(default_factory=dict)
    """Idle entitlements, with the start of the idle time by the clock of the lease store."""
    resting: Mapping[str, Resting] = field(default_factory=dict)
    """The entitlements that the last plan left out."""
    terms: tuple[IdleTerms, Set[str]] = (IdleTerms(), frozenset())
    """The terms of the last plan, and its groups with ceilings."""
    reports: Mapping[str, tuple[bytes, SidecarReport]] = field(default_factory=dict)
    """The reports of sidecars, encoded and decoded."""


NO_MEMORY = Memory()


@dataclass(frozen=True, slots=True)
class Tick:
    """The result of one tick, as it is published and shown."""

    plan: Plan
    limits: Mapping[str, Limit]
    """The limits of active entitlements; ``plan.idle`` gives the others."""
    memory: Memory
    sidecars: Mapping[str, SidecarReport]
    records: Mapping[str, EntitlementRecord]
    service: Mapping[str, Amount]
    """The service rate of every record since the last tick; empty at the first."""
    groups: Mapping[str, EntitlementRecord]
    """The records of groups, by name."""
    replica: Amount
    """The capacity of one engine: the mean over the sidecars that report one; zero if none does."""
    unreadable: Sequence[str] = ()
    """Sidecars with a report that could not be decoded. Their engines do not count."""

    @property
    def engines(self) -> int:
        """The number of engines. Each worker of a sidecar is a part of one."""
        return _whole(sum(1 / max(report.workers, 1) for report in self.sidecars.values()))

    @property
    def engines_up(self) -> int:
        """The number of engines that answer."""
        return _whole(sum(report.engine_up / max(report.workers, 1) for report in self.sidecars.values()))


def _whole(engines: float) -> int:
    """The nearest number of engines. One of two workers is an engine: the other one has just ended."""
    return math.floor(engines + 0.5)


def tick(
    snapshot: PoolSnapshot,
    entitlements: Mapping[str, Entitlement],
    before: PoolSnapshot | None,
    settings: PlannerSettings = _DEFAULTS,
    memory: Memory = NO_MEMORY,
    groups: Sequence[Group] = (),
) -> Tick:
    """Recompute all limits from the records and reports, and the change since the snapshot ``before``.

    ``memory`` is the memory of the last tick. A coordinator's first tick has neither, and moves no debts. The
    same applies after the lease store lost its content. The work is proportional to the active entitlements.
    """
    sidecars, unreadable = _reports(snapshot.reports, memory.reports)
    capacity = NOTHING
    for report in sidecars.values():
        capacity = capacity + report.capacity
    snapshot, of_groups = _without_groups(snapshot)
    if before is not None:
        before, _ = _without_groups(before)
    idle_since = _idle_since(snapshot, memory.idle_since)
    if before is not None and not (before.is_open and snapshot.is_open):
        before = None  # a closed store has incomplete totals: their change is no service
    elapsed = max(snapshot.at - before.at, 0.0) if before is not None else 0.0
    service = (
        _service(snapshot.records, before.records, elapsed) if before is not None and elapsed > 0 else {}
    )
    active, idle = _active(snapshot, entitlements, idle_since, service)
    profiles = memory.profiles
    last_at = before.at if before is not None else snapshot.at
    if woken := memory.resting.keys() & active.keys():
        profiles = {**profiles, **{name: memory.resting[name].profile_at(last_at) for name in woken}}
    made = plan(
        PlanInput(
            capacity,
            [entitlements[name] for name in active],
            {
                name: Report(record.demand, service.get(name, NOTHING), request_floor(record))
                for name, record in active.items()
            },
            {name: record.limit.debt for name, record in active.items()},
            min(elapsed, MOST_ELAPSED_S),
            settings,
            profiles,
            groups,
            {name: record.limit.debt for name, record in of_groups.items()},
        )
    )
    terms = made.idle, made.bounded
    resting = rest(
        idle, entitlements, made, memory.resting, profiles, last_at, are_terms_new=terms != memory.terms
    )
    # The limit of a group is its ceiling. Debts are stored with limits, so a new coordinator knows them.
    limits = {
        PREFIX + group.name: limit_of_group(group.ceiling, made.groups[group.name].debt) for group in groups
    }
    limits |= {name: limit_of(part, active[name]) for name, part in made.entitlements.items()}
    limits |= {name: each.limit for name, each in resting.items()}
    memory = Memory(
        made.profiles,
        idle_since,
        resting,
        terms,
        {name: (snapshot.reports[name], sidecars[name]) for name in sidecars},
    )
    if resting:
        parts = {**made.entitlements, **{name: each.part for name, each in resting.items()}}
        made = replace(made, entitlements=parts)
    return Tick(
        made,
        limits,
        memory,
        sidecars,
        snapshot.records,
        service,
        of_groups,
        _replica(sidecars),
        unreadable,
    )


def _active(
    snapshot: PoolSnapshot,
    entitlements: Mapping[str, Entitlement],
    idle_since: Mapping[str, float],
    service: Mapping[str, Amount],
) -> tuple[dict[str, EntitlementRecord], dict[str, EntitlementRecord]]:
    """The records to plan for, and those of idle entitlements that still have a limit."""
    active, idle = {}, {}
    for name, record in snapshot.records.items():
        if name not in entitlements:
            continue
        since = idle_since.get(name)
        if since is None or service.get(name, NOTHING) != NOTHING:
            active[name] = record
        elif snapshot.at - since < RETIRE_S:
            idle[name] = record
    return active, idle


def _without_groups(snapshot: PoolSnapshot) -> tuple[PoolSnapshot, dict[str, EntitlementRecord]]:
    """The snapshot with the records of entitlements alone, and the records of groups by name."""
    groups = {
        name.removeprefix(PREFIX): record
        for name, record in snapshot.records.items()
        if name.startswith(PREFIX)
    }
    if not groups:
        return snapshot, groups
    records = {name: each for name, each in snapshot.records.items() if not name.startswith(PREFIX)}
    return replace(snapshot, records=records), groups


def _idle_since(snapshot: PoolSnapshot, before: Mapping[str, float]) -> dict[str, float]:
    """The start of the idle time, for idle entitlements."""
    at = snapshot.at
    return {name: before.get(name, at) for name, record in snapshot.records.items() if is_idle(record)}


def _service(
    records: Mapping[str, EntitlementRecord], before: Mapping[str, EntitlementRecord], elapsed_s: float
) -> dict[str, Amount]:
    """The service of every entitlement between two snapshots, as a rate. Refunds may make tokens negative.

    Sequence-seconds never fall while a record exists. If they fell, the record is new.
    """
    per_second = 1 / elapsed_s
    service = {}
    for name, record in records.items():
        old = before.get(name)
        if old is None:
            continue
        if record.served is old.served:
            service[name] = NOTHING
            continue
        (a, b, c), (x, y, z) = record.served.values(), old.served.values()
        if c >= z:
            service[name] = Amount((a - x) * per_second, (b - y) * per_second, (c - z) * per_second)
    return service


def _reports(
    packed: Mapping[str, bytes], known: Mapping[str, tuple[bytes, SidecarReport]]
) -> tuple[dict[str, SidecarReport], list[str]]:
    """The decoded reports, and the names of those that cannot be decoded."""
    sidecars, unreadable = {}, []
    for name, content in sorted(packed.items()):
        last, report = known.get(name, _NO_REPORT)
        if last != content:
            try:
                report = decode_report(content)
            except WireError:
                unreadable.append(name)
                continue
        sidecars[name] = report
    return sidecars, unreadable


def _replica(sidecars: Mapping[str, SidecarReport]) -> Amount:
    """The mean capacity of an engine, over the sidecars that report one; zero if none does.

    The mean in a dimension leaves out numbers that represent an absent bound: they are no measurements.
    """
    known = [report.replica.values() for report in sidecars.values() if report.replica.kv_tokens > 0]
    if not known:
        return NOTHING
    return Amount(
        *(
            _mean([number for number in numbers if number < absent])
            for numbers, absent in zip(zip(*known, strict=True), _ABSENT, strict=True)
        )
    )


_ABSENT = (UNLEARNED_TOKENS_PER_SECOND, NO_KV_BOUND_FROM, math.inf)
"""In each dimension, the smallest number that represents an absent or not yet learned bound."""


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else 0.0
