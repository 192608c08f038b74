"""The pages of a coordinator: metrics, health, readiness, state, scale hints, the live page. Read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector

from coordinator.leader import PoolLeader, PoolState
from coordinator.telemetry import Shown, Telemetry, of_entitlement
from dashboard.server import LivePage
from dashboard.snapshot import (
    EVERYTHING,
    EntitlementLook,
    PoolLook,
    Replicas,
    Snapshot,
    Tally,
    Vector,
    Wanted,
    vector,
)
from runtime import pages
from runtime.build import BuildInfo
from runtime.exposition import CONTENT_TYPE, rendered
from tokenpool.amounts import NOTHING
from tokenpool.entitlements import Entitlement
from tokenpool.leases.tick import Tick
from tokenpool.leases.wire import FIRST_TOKEN_BOUNDS_S, MOST_REPORTED

_Promised = tuple[Sequence[Entitlement], Mapping[str, Entitlement], Vector]
"""A pool's entitlements as the leader has them, by name, and their guarantees together."""
PER_PIECE = 8
"""Entitlements in one piece of the state page: some 0.4 ms."""


class Admin:
    """The pages."""

    def __init__(
        self,
        leaders: Callable[[], Mapping[str, PoolLeader]],
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._leaders = leaders
        self._telemetry = telemetry
        self._clock = clock
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._metrics = pages.SharedPage(self._metrics_pieces, CONTENT_TYPE)
        self.live = LivePage(self.look, clock)
        self._entitlements: dict[str, _Promised] = {}

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/metrics", self.metrics),
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.readyz),
                web.get("/debug/state", self.state),
                web.get("/scale/{pool}", self.scale),
            ]
        )
        self.live.add_to(application)
        return application

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Prometheus metrics."""
        return await self._metrics.answer(request)

    def _metrics_pieces(self) -> Iterator[str]:
        yield from self._telemetry.pieces()
        yield rendered([*BuildInfo().collect(), *self._process.collect()])

    async def healthz(self, request: web.Request) -> web.Response:
        """Whether this process lives."""
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether this coordinator sees the lease store of all its pools, leading or not."""
        problems = [
            f"pool {name}: {leader.error or 'the lease store was not read yet'}"
            for name, leader in self._leaders().items()
            if leader.error or leader.state is None
        ]
        body = {"status": "unready" if problems else "ready", "problems": problems}
        return web.json_response(body, status=503 if problems else 200)

    async def scale(self, request: web.Request) -> web.Response:
        """The stored scale hint of a pool, as KEDA's metrics-api scaler reads it (value: desired_replicas).

        Every coordinator answers the same; without a hint that is young enough the answer is 503.
        """
        name = request.match_info["pool"]
        leader = self._leaders().get(name)
        if leader is None:
            known = ", ".join(self._leaders())
            return web.json_response({"error": f"there is no pool {name!r}; there is {known}"}, status=404)
        now, published = self._clock(), leader.hint()
        if published is None:
            why = leader.hints.problem(now)
            said = f"pool {name!r} has no scale hint: {why}" + (f" ({leader.error})" if leader.error else "")
            return web.json_response({"error": said}, status=503)
        hint, need = published.hint, published.hint.need
        return web.json_response(
            {
                "pool": name,
                "desired_replicas": hint.replicas,
                "reason": hint.reason,
                "dimension": need.dimension.value if need.dimension is not None else None,
                "needed_replicas": need.unbounded,
                "guarantees_need": need.floor,
                "min_replicas": published.min_replicas,
                "max_replicas": published.max_replicas,
                "computed_at": leader.hints.computed_at,
                "age_s": round(leader.hints.age_s(now), 3),
            }
        )

    async def state(self, request: web.Request) -> web.StreamResponse:
        """Everything that the last tick saw and decided.

        ``?entitlement=NAME`` (any number of times) shows those alone, ``?active=1`` those that are active.
        """
        names: list[str] = request.query.getall("entitlement", [])
        is_active = request.query.get("active") == "1"

        def wanted(name: str, shown: Shown) -> bool:
            if names:
                return name in names
            return not is_active or shown.demand != NOTHING or shown.in_use != NOTHING

        chunks = await pages.made(self._state_pieces(wanted))
        return await pages.send(request, chunks, "application/json; charset=utf-8")

    def _state_pieces(self, wanted: Callable[[str, Shown], bool]) -> Iterator[str]:
        current = "true" if self._telemetry.config_is_current else "false"
        yield f'{{"config_is_current":{current},"pools":{{'
        before = ""
        for name, leader in self._leaders().items():
            summary = msgspec.json.encode(self._pool(leader)).decode()
            yield f'{before}"{name}":{summary.removesuffix("}")}'
            if leader.state is not None:
                yield ',"entitlements":{'
                yield from _entitlements(leader, leader.state.tick, wanted)
                yield "}"
            yield "}"
            before = ","
        yield "}}"

    def _pool(self, leader: PoolLeader) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "leads": bool(leader.epoch),
            "epoch": leader.epoch,
            "error": leader.error or None,
            "scale_hint": self._hint(leader),
            "file_version": leader.file_version,
            "file_differs": leader.file_differs,
            "ticks": dict(leader.rounds),
        }
        return shown | _shown(leader.state) if leader.state is not None else shown

    def _hint(self, leader: PoolLeader) -> dict[str, Any]:
        now, published = self._clock(), leader.hint()
        if published is None:
            return {"desired_replicas": None, "reason": leader.hints.problem(now)}
        return {
            "desired_replicas": published.hint.replicas,
            "reason": published.hint.reason,
            "computed_at": leader.hints.computed_at,
            "age_s": round(leader.hints.age_s(now), 3),
        }

    def look(self, wanted: Wanted = EVERYTHING) -> Snapshot:
        """What the live page shows, now."""
        leaders = self._leaders()
        now = self._clock()
        return Snapshot(
            process="coordinator",
            name=next((leader.candidate for leader in leaders.values()), ""),
            pools=tuple(
                _look_at(name, leader, now, wanted, self._promised(name, leader))
                for name, leader in leaders.items()
            ),
            notices=()
            if self._telemetry.config_is_current
            else ("the pool file on disk is invalid: the old one is in force",),
        )

    def _promised(self, name: str, leader: PoolLeader) -> _Promised:
        """A pool's entitlements by name; they change with the pool file only."""
        promised, entitlements = self._entitlements.get(name), leader.entitlements
        if promised is None or promised[0] is not entitlements:
            whole = vector(*sum((e.guarantee for e in entitlements), NOTHING).values())
            promised = self._entitlements[name] = entitlements, {e.name: e for e in entitlements}, whole
        return promised


def _look_at(name: str, leader: PoolLeader, now: float, wanted: Wanted, promised: _Promised) -> PoolLook:
    state = leader.state
    who, notices = _leading(leader), tuple(_notices(leader, now))
    if state is None:
        return PoolLook(name, who, notices=notices)
    made = state.tick
    _, known, guarantees = promised
    in_use = NOTHING
    for record in made.records.values():
        in_use = in_use + record.in_use
    return PoolLook(
        name=name,
        leader=who,
        capacity=vector(*made.plan.capacity.values()),
        in_use=vector(*in_use.values()),
        replicas=_replicas(leader, state, now),
        notices=notices,
        entitlements=tuple(
            _entitlement(entitlement, of_entitlement(entitlement, made), made)
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
        "nobody knows: the lease store does not answer"
        if leader.error
        else "another coordinator; this one looks on"
    )


def _replicas(leader: PoolLeader, state: PoolState, now: float) -> Replicas:
    sidecars, published = state.tick.sidecars, leader.hint()
    if published is None:
        desired, reason = None, leader.hints.problem(now)
    else:
        desired = published.hint.replicas
        reason = f"{published.hint.reason}; computed {leader.hints.age_s(now):.0f} s ago"
    return Replicas(
        sidecars=len(sidecars),
        engines_up=sum(report.engine_up for report in sidecars.values()),
        least=leader.pool.min_replicas,
        most=leader.pool.max_replicas,
        desired=desired,
        reason=reason,
    )


def _entitlement(entitlement: Entitlement, shown: Shown, made: Tick) -> EntitlementLook:
    record = made.records.get(entitlement.name)
    return EntitlementLook(
        name=entitlement.name,
        tier=entitlement.tier.value,
        guarantee=vector(*entitlement.guarantee.values()),
        ceiling=vector(*entitlement.ceiling.values()),
        limit=vector(*shown.limit.values()),
        in_use=vector(*shown.in_use.values()),
        demand=vector(*shown.demand.values()),
        debt=shown.debt,
        spent=record.served.tokens_per_second if record is not None else 0.0,
    )


def _notices(leader: PoolLeader, now: float) -> Iterator[str]:
    """What is not as it should be, for people."""
    state = leader.state
    if leader.error:
        age = f"; what is shown is {now - state.at:.0f} s old" if state is not None else ""
        yield f"the lease store does not answer: {leader.error}{age}"
    elif state is None:
        yield "the lease store was not read yet"
    if leader.file_differs:
        yield "another pool file than this coordinator's is in force"
    if state is None:
        return
    for dimension in state.overpromised:
        yield f"the guarantees are more {dimension} than {leader.pool.max_replicas} replicas could carry"
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
        yield f"reports of {', '.join(made.unreadable)} cannot be read: their engines do not count"


def _shown(state: PoolState) -> dict[str, Any]:
    made = state.tick
    return {
        "capacity": made.plan.capacity.as_dict(),
        "replica": made.replica.as_dict(),
        "overpromised": [dimension.value for dimension in state.overpromised],
        "tick_s": state.took_s,
        "unreadable_reports": list(made.unreadable),
        "sidecars": {name: msgspec.to_builtins(report) for name, report in made.sidecars.items()},
    }


def _entitlements(leader: PoolLeader, made: Tick, wanted: Callable[[str, Shown], bool]) -> Iterator[str]:
    """The rows of the state page, a few at a time."""
    before, rows = "", []
    for number, entitlement in enumerate(leader.entitlements, 1):
        shown = of_entitlement(entitlement, made)
        if wanted(entitlement.name, shown):
            row = msgspec.json.encode(_row(shown)).decode()
            rows.append(f'{before}"{entitlement.name}":{row}')
            before = ","
        if number % PER_PIECE == 0:
            yield "".join(rows)
            rows = []
    yield "".join(rows)


def _row(shown: Shown) -> dict[str, Any]:
    is_known = shown.level is not None
    return {
        "limit": shown.limit.as_dict(),
        "assured": shown.assured.as_dict(),
        "allocation": shown.allocation.as_dict(),
        "demand": shown.demand.as_dict(),
        "fair_share": shown.fair_share,
        "debt": shown.debt,
        "held": shown.held.as_dict() if is_known else None,
        "in_use": shown.in_use.as_dict() if is_known else None,
        "service": shown.service.as_dict(),
        "level": shown.level,
    }
