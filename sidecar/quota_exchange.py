"""The exchange about quotas with the lease store, and the warnings. A lone sidecar keeps its own totals."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.ports import LoopPorts
from sidecar.quota_metrics import spending
from tokenpool.control.driver import Driver
from tokenpool.quotas.messages import LEVELS, QuotaAnswer, QuotaMessage
from tokenpool.quotas.quotas import Crossed, Quotas
from tokenpool.quotas.windows import text_of
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

LAST_S = 1.0
"""Seconds for the last message at a stop."""


class QuotaExchange:
    """One sidecar's exchange about quotas."""

    def __init__(
        self,
        interval_s: float,
        lifetime_s: float,
        driver: Driver,
        ports: LoopPorts,
        store: Store | None,
        holder: str,
    ) -> None:
        """``store`` is ``None`` for a lone sidecar. ``holder`` is its id.

        ``lifetime_s`` is the lifetime of leases and portions.
        """
        self._interval_s = interval_s
        self._driver = driver
        self.quotas = Quotas(holder, lifetime_s, time.time() - ports.now(), is_alone=store is None)
        self._ports = ports
        self._store = store
        self.calls: Counter[str] = Counter()
        """Messages about quotas, by result."""
        self.crossed: Counter[int] = Counter()
        """The levels that budgets have reached, as reported from here."""

    async def run(self) -> None:
        """Tick and act on answers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick_forever())
            group.create_task(self._handle_answers())

    async def _tick_forever(self) -> None:
        while True:
            self._guarded(self._driver.tick_quotas)
            await asyncio.sleep(self._interval_s)

    async def _handle_answers(self) -> None:
        while True:
            self._handle(*await self._ports.quota_results.get())

    def _handle(self, message: QuotaMessage, result: QuotaAnswer | StoreDown) -> None:
        if isinstance(result, StoreDown):
            self.calls["failed"] += 1
            self._driver.quotas_failed(message)
        else:
            self.calls["answered"] += 1
            answer = result
            self._guarded(lambda: self._driver.quotas_answered(message, answer))

    def _guarded(self, call: Callable[[], Iterable[Crossed]]) -> None:
        """Report the levels that a call returns. A defect must not end the loop."""
        try:
            for each in call():
                self._report(each)
        except Exception:
            log.critical("a step of the quotas failed", exc_info=True)

    def _report(self, crossed: Crossed) -> None:
        """Write the event. One sidecar of the pool does so for each level of a window."""
        self.crossed[crossed.level] += 1
        log.warning(
            "a quota is spent" if crossed.level >= 100 else f"a quota is spent to {crossed.level} %",
            extra={
                "event": "QuotaSpent" if crossed.level >= 100 else "QuotaWarning",
                "scope": crossed.budget.scope.value,
                "owner": crossed.budget.name,
                "per": crossed.budget.per,
                "tokens": round(crossed.tokens),
                "spent": round(crossed.spent),
                "resets_at": text_of(crossed.resets_at),
            },
        )

    async def stop(self) -> None:
        """Return all portions, if the lease store answers in time. Call it after ``Driver.stop``."""
        last = self._driver.last_quotas()
        if last is None or self._store is None:
            return
        try:
            async with asyncio.timeout(LAST_S):
                await self._store.exchange_quotas(last)
        except (StoreDown, TimeoutError):
            pass  # the portions expire

    def metrics(self) -> Iterator[Metric]:
        """The exchange and the waits, for Prometheus; the budgets, too, of a lone sidecar."""
        waits = self._driver.control.quota_waits
        yield GaugeMetricFamily(
            "tokenpool_quota_waiting",
            "Requests that wait now for a larger portion of a quota.",
            value=float(len(waits)) if waits is not None else 0.0,
        )
        calls = CounterMetricFamily(
            "tokenpool_quota_calls", "Messages to the lease store about quotas.", labels=("result",)
        )
        for result in ("answered", "failed"):
            calls.add_metric((result,), self.calls[result])
        warnings = CounterMetricFamily(
            "tokenpool_quota_warnings",
            "Windows of quotas that were spent to this percentage, as reported by this sidecar.",
            labels=("percent",),
        )
        for level in LEVELS:
            warnings.add_metric((str(level),), self.crossed[level])
        yield from (calls, warnings)
        if self.quotas.is_alone:
            known = list(self.quotas.budgets.values())
            yield from spending((each.id, each.quota.tokens, each.spent) for each in known)
