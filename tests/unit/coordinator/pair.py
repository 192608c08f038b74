"""Coordinators of one pool over one store in memory, on a virtual clock; the line of each to it can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp.test_utils import make_mocked_request

from coordinator.admin import Admin
from coordinator.leader import PoolLeader
from coordinator.settings import Settings
from coordinator.telemetry import Telemetry
from tokenpool.amounts import Amount
from tokenpool.leases.messages import LeaseRequest, Message
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.poolfile.reading import parse
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 8}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
"""
FILE = parse(POOL, name="pool.yaml").file
UP = SidecarReport(Amount(1000, 10_000, 4), Amount(1000, 10_000, 4), engine_up=True)
TICK_S, LEADERSHIP_S, TIMEOUT_S = 0.25, 2.0, 0.5


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Line:
    """One coordinator's way to the store."""

    def __init__(self, shared: MemoryStore, clock: Clock) -> None:
        self.shared = shared
        self.clock = clock
        self.is_silent = False
        self.loses_answers = False
        """Calls arrive, and nothing comes back."""
        self.there_s = self.back_s = 0.0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **named: Any) -> Any:
            if self.is_silent:
                self.clock.now += TIMEOUT_S
                raise StoreDown("no answer")
            self.clock.now += self.there_s
            answer = await getattr(self.shared, name)(*arguments, **named)
            self.calls.append(name)
            if self.loses_answers:
                self.clock.now += TIMEOUT_S
                raise StoreDown("no answer")
            self.clock.now += self.back_s
            return answer

        return call


class Coordinator:
    """One coordinator: its line, its lead and its pages."""

    def __init__(self, name: str, shared: MemoryStore, clock: Clock, options: Mapping[str, Any]) -> None:
        settings = Settings(config=Path("pool.yaml"), store="redis://127.0.0.1", **options)
        self.clock = clock
        self.line = Line(shared, clock)
        self.leader = PoolLeader(settings, self.line, FILE, FILE.pools[0], name, clock)  # type: ignore[arg-type]
        self.telemetry = Telemetry(lambda: {"chat": self.leader})
        self.admin = Admin(lambda: {"chat": self.leader}, self.telemetry, clock)

    async def scale(self) -> tuple[int, dict[str, Any]]:
        """What ``/scale/chat`` answers now."""
        request = make_mocked_request("GET", "/scale/chat", match_info={"pool": "chat"})
        response = await self.admin.scale(request)
        assert isinstance(response.body, bytes)
        return response.status, json.loads(response.body)

    async def desired(self) -> int | None:
        """The number that an autoscaler reads; ``None`` where there is none."""
        status, body = await self.scale()
        assert (status == 503) == ("error" in body)
        number = body.get("desired_replicas")
        assert self.metrics("tokenpool_desired_replicas") == ([] if number is None else [number])
        return number

    def metrics(self, name: str) -> list[float]:
        """The values of a metric."""
        families = {family.name: family for family in self.telemetry.collect()}
        return [sample.value for sample in families[name].samples]


class Pair:
    """Two coordinators, or more, and one sidecar that says what is asked for."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.shared = MemoryStore(1.5, self.clock)
        self.options = options
        self.all = [self.made("a"), self.made("b")]
        self._number = 0

    def made(self, name: str) -> Coordinator:
        return Coordinator(name, self.shared, self.clock, self.options)

    async def ask(self, replicas: float, report: SidecarReport = UP) -> None:
        """Have the sidecar say a demand that needs about so many replicas."""
        self._number += 1
        demand = (0.0, 0.0, replicas * 4 / 1.1)
        said = LeaseRequest(demand=demand, fresh=demand)
        await self.shared.exchange(Message("s0", self._number, {"e": said}, True, encode_report(report)))

    async def run(
        self, seconds: float, replicas: float, *who: Coordinator, report: SidecarReport = UP
    ) -> None:
        """Let time pass, with a turn of each at every tick."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += TICK_S
            await self.ask(replicas, report)
            for each in who or self.all:
                await each.leader.run_tick()
