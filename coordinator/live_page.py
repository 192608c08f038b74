"""The live page of a coordinator: its pools as records for the dashboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from coordinator.entitlement_view import EntitlementView, view
from coordinator.leader import PoolLeader, PoolState
from dashboard.snapshot import (
    EVERYTHING,
    Replicas,
    ShownEntitlement,
    ShownPool,
    Snapshot,
    Tally,
    Vector,
    Wanted,
    vector,
)
from tokenpool.amounts import NOTHING
from tokenpool.entitlements import Entitlement
from tokenpool.leases.tick import Tick
from tokenpool.leases.wire import FIRST_TOKEN_BOUNDS_S, MOST_REPORTED

_Promised = tuple[Sequence[Entitlement], Mapping[str, Entitlement], Vector]
"""The entitlements of a pool, the same by name, and the sum of their guarantees."""


class PoolsView:
    """Describes the pools of one coordinator."""

    def __init__(self, leaders: Callable[[], Mapping[str, PoolLeader]], clock: Callable[[], float]) -> None:
        self._leaders = leaders
        self._clock = clock
        self._entitlements: dict[str, _Promised] = {}

    def snapshot(self, wanted: Wanted = EVERYTHING, *, config_is_current: bool = True) -> Snapshot:
        """All pools, now."""
        leaders = self._leaders()
        now = self._clock()
        return Snapshot(
            process="coordinator",
            name=next((leader.candidate for leader in leaders.values()), ""),
            pools=tuple(
                _pool_snapshot(name, leader, now, wanted, self._promised(name, leader))
                for name, leader in leaders.items()
            ),
            notices=()
            if config_is_current
            else ("the pool file on disk is invalid; the old one is in force: see the log",),
        )

    def _promised(self, name: str, leader: PoolLeader) -> _Promised:
        """A pool's entitlements by name. They change only with the pool file."""
        promised, entitlements = self._entitlements.get(name), leader.entitlements
        if promised is None or promised[0] is not entitlements:
            whole = vector(*leader.promises.total.values())
            promised = self._entitlements[name] = entitlements, {e.name: e for e in entitlements}, whole
        return promised


def _pool_snapshot(
    name: str, leader: PoolLeader, now: float, wanted: Wanted, promised: _Promised
) -> ShownPool:
    state = leader.state
    leads, notices = _leading(leader), tuple(_notices(leader, now))
    if state is None:
        return ShownPool(name, leads, notices=notices)
    made = state.tick
    _, known, guarantees = promised
    in_use = NOTHING
    for page in made.records.values():
        in_use = in_use + page.in_use
    return ShownPool(
        name=name,
        leader=leads,
        capacity=vector(*made.plan.capacity.values()),
        in_use=vector(*in_use.values()),
        replicas=_replicas(leader, state, now),
        notices=notices,
        entitlements=tuple(
            _entitlement(entitlement, view(entitlement, made), made, is_enforced=leader.pool.enforce)
            for entitlement in map(known.__getitem__, wanted.choose(known, made.records))
        ),
        tallies={
            holder: Tally(
                report.outcomes,
                is_whole=len(report.outcomes) < MOST_REPORTED,
                first_tokens=report.first_tokens,
                has_all_first_tokens=False,
                bounds_s=FIRST_TOKEN_BOUNDS_S,
            )
            for holder, report in made.sidecars.items()
        },
        total=len(known),
        guarantees=guarantees,
    )


def _leading(leader: PoolLeader) -> str:
    if leader.epoch:
        return f"this coordinator (epoch {leader.epoch})"
    return (
        "unknown: the lease store does not answer"
        if leader.error
        else "another coordinator; this one does not lead"
    )


def _replicas(leader: PoolLeader, state: PoolState, now: float) -> Replicas:
    published = leader.hint()
    if published is None:
        desired, reason = None, leader.hints.problem(now)
    else:
        desired = published.hint.replicas
        reason = f"{published.hint.reason}; computed {leader.hints.age_s(now):.0f} s ago"
    return Replicas(
        sidecars=state.tick.engines,
        engines_up=state.tick.engines_up,
        least=leader.pool.min_replicas,
        most=leader.pool.max_replicas,
        desired=desired,
        reason=reason,
    )


def _entitlement(
    entitlement: Entitlement, shown: EntitlementView, made: Tick, *, is_enforced: bool
) -> ShownEntitlement:
    page = made.records.get(entitlement.name)
    return ShownEntitlement(
        name=entitlement.name,
        tier=entitlement.tier.value,
        guarantee=vector(*entitlement.guarantee.values()),
        ceiling=vector(*entitlement.ceiling.values()),
        limit=vector(*shown.limit.values()),
        in_use=vector(*shown.in_use.values()),
        demand=vector(*shown.demand.values()),
        debt=shown.debt,
        spent=page.served.tokens_per_second if page is not None else 0.0,
        is_enforced=is_enforced and entitlement.enforce,
    )


def _notices(leader: PoolLeader, now: float) -> Iterator[str]:
    """The problems of a pool, as sentences."""
    state = leader.state
    if leader.error:
        age = f"; the page is {now - state.at:.0f} s old" if state is not None else ""
        yield f"the lease store does not answer: {leader.error}{age}"
    elif state is None:
        yield "the lease store has not been read yet"
    if leader.file_differs:
        yield "the pool file in force differs from this coordinator's"
    if state is None:
        return
    for dimension in state.overpromised:
        yield f"the guarantees exceed the {dimension} of {leader.pool.max_replicas} replicas"
    yield from _of_sidecars(state.tick)


def _of_sidecars(made: Tick) -> Iterator[str]:
    reports = made.sidecars.values()
    if not reports and not made.unreadable:
        yield "no sidecar reports"
    down = sum(not report.engine_up for report in reports)
    if down:
        yield f"{down} of {len(reports)} engines do not answer"
    draining = sum(report.draining for report in reports)
    if draining:
        yield f"{draining} of {len(reports)} sidecars are draining"
    if made.unreadable:
        yield f"reports of {', '.join(made.unreadable)} cannot be read; their engines are not counted"
