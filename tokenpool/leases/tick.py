"""One tick: a snapshot of the lease store goes in, the limit of every active entitlement comes out. Pure.

The coordinator leads, reads and publishes. The planner divides capacity, and does not depend on the lease
store. This module connects the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokenpool.accounting.bucket import bucket_depth
from tokenpool.accounting.group_accounts import PREFIX
from tokenpool.accounting.report import Report
from tokenpool.amounts import NO_KV_BOUND_FROM, NOTHING, Amount
from tokenpool.capacity.model import UNLEARNED_TOKENS_PER_SECOND
from tokenpool.entitlements import Entitlement, Group
from tokenpool.leases.leases import limit_of_group
from tokenpool.leases.messages import EntitlementRecord, Limit, PoolSnapshot
from tokenpool.leases.wire import SidecarReport, WireError, decode_report
from tokenpool.planning.planner import Plan, PlanInput, PlannerSettings, plan
from tokenpool.planning.profiles import Profile

RETIRE_S = 60.0
"""The idle time after which an entitlement loses its own limit: see ``IdleTerms``. Until then its largest
request is remembered (``messages.REQUEST_SIZE_MEMORY_S``)."""
NO_DEBT = 0.01
"""A smaller debt, in seconds, counts as zero."""
MOST_ELAPSED_S = 1.0
"""The longest time in seconds that one tick counts for debts, after a pause of the coordinator."""
_NO_RECORD = EntitlementRecord()
_DEFAULTS = PlannerSettings()


@dataclass(frozen=True, slots=True)
class Memory:
    """The state that one tick passes to the next. A new coordinator begins without it."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    idle_since: Mapping[str, float] = field(default_factory=dict)
    """Idle entitlements, with the start of the idle time by the clock of the lease store."""


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
        return round(sum(1 / max(report.workers, 1) for report in self.sidecars.values()))

    @property
    def engines_up(self) -> int:
        """The number of engines that answer."""
        return round(sum(report.engine_up / max(report.workers, 1) for report in self.sidecars.values()))


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
    sidecars, unreadable = _reports(snapshot.reports)
    capacity = NOTHING
    for report in sidecars.values():
        capacity = capacity + report.capacity
    snapshot, of_groups = _without_groups(snapshot)
    if before is not None:
        before, _ = _without_groups(before)
    idle_since = _idle_since(snapshot, memory.idle_since)
    records = {
        name: record
        for name, record in snapshot.records.items()
        if name in entitlements and snapshot.at - idle_since.get(name, snapshot.at) < RETIRE_S
    }
    if before is not None and not (before.is_open and snapshot.is_open):
        before = None  # a closed store has incomplete totals: their change is no service
    elapsed = max(snapshot.at - before.at, 0.0) if before is not None else 0.0
    service = _service(records, before.records, elapsed) if before is not None and elapsed > 0 else {}
    made = plan(
        PlanInput(
            capacity,
            [entitlements[name] for name in records],
            {name: _report(record, service.get(name, NOTHING)) for name, record in records.items()},
            {name: record.limit.debt for name, record in records.items()},
            min(elapsed, MOST_ELAPSED_S),
            settings,
            memory.profiles,
            groups,
            {name: record.limit.debt for name, record in of_groups.items()},
        )
    )
    # The limit of a group is its ceiling. Debts are stored with limits, so a new coordinator knows them.
    limits = {
        PREFIX + group.name: limit_of_group(group.ceiling, made.groups[group.name].debt) for group in groups
    }
    for name, part in made.entitlements.items():
        limit, assured = part.limit, part.assured
        typical = records.get(name, _NO_RECORD).floor.tokens_per_second
        limits[name] = Limit(
            limit.tokens_per_second,
            limit.kv_tokens,
            limit.concurrency,
            bucket_depth(limit.tokens_per_second, typical),
            assured.kv_tokens,
            assured.concurrency,
            part.debt,
        )
    memory = Memory(made.profiles, idle_since)
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
    """The start of the idle time, for entitlements with a full bucket and no demand, lease or debt."""
    return {
        name: before.get(name, snapshot.at)
        for name, record in snapshot.records.items()
        if record.demand == record.in_use == NOTHING
        and record.held.concurrency == 0
        and record.level >= record.limit.depth
        and abs(record.limit.debt) < NO_DEBT
    }


def _service(
    records: Mapping[str, EntitlementRecord], before: Mapping[str, EntitlementRecord], elapsed_s: float
) -> dict[str, Amount]:
    """The service of every entitlement between two snapshots, as a rate. Refunds may make tokens negative.

    Sequence-seconds never fall while a record exists. If they fell, the record is new.
    """
    per_second = 1 / elapsed_s
    return {
        name: (record.served - before[name].served) * per_second
        for name, record in records.items()
        if name in before and record.served.concurrency >= before[name].served.concurrency
    }


def _report(record: EntitlementRecord, service: Amount) -> Report:
    floor = record.floor
    return Report(record.demand, service, Amount(0.0, floor.kv_tokens, max(floor.concurrency, 1.0)))


def _reports(packed: Mapping[str, bytes]) -> tuple[dict[str, SidecarReport], list[str]]:
    sidecars, unreadable = {}, []
    for name, content in sorted(packed.items()):
        try:
            sidecars[name] = decode_report(content)
        except WireError:
            unreadable.append(name)
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
