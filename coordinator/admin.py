"""The pages of a coordinator: metrics, health, readiness, state, scale hints, the live page.

All of them only read. The API for issued credentials is added where it is configured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from coordinator import state_page
from coordinator.entitlement_view import EntitlementView
from coordinator.leader import PoolLeader
from coordinator.live_page import PoolsView
from coordinator.telemetry import Telemetry
from coordinator.usage.pages import UsagePages
from coordinator.usage.store import UsageStore
from dashboard.server import LivePage
from dashboard.snapshot import EVERYTHING, Snapshot, Wanted
from runtime import pages
from runtime.admin import AdminPages, Readiness
from tokenpool.amounts import NOTHING
from tokenpool.entitlements import Prices

if TYPE_CHECKING:
    from coordinator.credentials.api import CredentialApi


class Admin:
    """The pages of one coordinator."""

    def __init__(
        self,
        leaders: Callable[[], Mapping[str, PoolLeader]],
        telemetry: Telemetry,
        clock: Callable[[], float],
        missing: Callable[[], Sequence[str]] = list,
        degraded: Callable[[], Sequence[str]] = list,
        credentials: CredentialApi | None = None,
        usage_store: Callable[[], UsageStore | None] = lambda: None,
    ) -> None:
        """``missing`` returns what the coordinator waits for before it can lead.

        ``degraded`` returns the faults that do not stop it. ``usage_store`` returns the usage store if a pool
        has usage records.
        """
        self._missing = missing
        self._degraded = degraded
        self._leaders = leaders
        self._telemetry = telemetry
        self._clock = clock
        self._common = AdminPages(self.readiness, telemetry.pieces)
        self._view = PoolsView(leaders, clock)
        self._credentials = credentials
        self._live = LivePage(self.snapshot, clock)
        self._usage = UsagePages(usage_store, self._prices, time.time)

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.add_routes(self._common.routes())
        application.add_routes([web.get("/debug/state", self.state), web.get("/scale/{pool}", self.scale)])
        self._live.add_to(application)
        if self._credentials is not None:
            self._credentials.add_to(application)
        self._usage.add_to(application)
        return application

    def _prices(self) -> dict[str, Prices | None]:
        return {name: leader.pool.prices for name, leader in self._leaders().items()}

    def readiness(self) -> Readiness:
        """Whether this coordinator reaches the lease store of all its pools, as a leader or not."""
        return Readiness(
            [
                *self._missing(),
                *(
                    f"pool {name}: {leader.error or 'the lease store has not been read yet'}"
                    for name, leader in self._leaders().items()
                    if leader.error or leader.state is None
                ),
            ],
            self._degraded(),
        )

    async def scale(self, request: web.Request) -> web.Response:
        """The stored scale hint of a pool, as KEDA's metrics-api scaler reads it (value: desired_replicas).

        Every coordinator answers the same. Without a hint that is recent enough the answer is 503.
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
        """The page ``/debug/state``: the input and the result of the last tick.

        ``?entitlement=NAME`` (repeatable) selects entitlements by name, ``?active=1`` the active ones.
        """
        names: list[str] = request.query.getall("entitlement", [])
        is_active = request.query.get("active") == "1"

        def wanted(name: str, shown: EntitlementView) -> bool:
            if names:
                return name in names
            return not is_active or shown.demand != NOTHING or shown.in_use != NOTHING

        is_current = self._telemetry.config_is_current
        made = state_page.pieces(self._leaders(), self._clock(), wanted, config_is_current=is_current)
        return await pages.send(request, await pages.made(made), "application/json; charset=utf-8")

    def snapshot(self, wanted: Wanted = EVERYTHING) -> Snapshot:
        """The content of the live page, now."""
        return self._view.snapshot(wanted, config_is_current=self._telemetry.config_is_current)
