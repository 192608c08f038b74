"""Replication: the loops that keep a sidecar's leases in step with the lease store.

``LeaseSync`` makes the messages and interprets the answers. This file has the clock, loops and failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.controller.queue_metrics import wait_metrics
from sidecar.issued_keys import IssuedKeys
from sidecar.ports import LoopPorts
from sidecar.published_file import READ_EVERY_S, PublishedFile
from sidecar.telemetry import Telemetry
from tokenpool.control.driver import Driver
from tokenpool.leases.messages import CREDENTIALS, Answer, Message
from tokenpool.leases.settings import MOST_UNDER_WAY, Mode
from tokenpool.leases.sync import LeaseSync
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

STOP_WAIT_S = 1.0
"""Seconds for the last messages at a stop."""
UNLED_S = 5.0
"""Seconds without new limits after which an operator should check the coordinators."""


class Replication:
    """One sidecar's exchange with the lease store."""

    def __init__(
        self,
        interval_s: float,
        driver: Driver,
        sync: LeaseSync,
        store: Store,
        ports: LoopPorts,
        published: PublishedFile,
        issued: IssuedKeys,
        telemetry: Telemetry,
    ) -> None:
        self._interval_s = interval_s
        self._driver = driver
        self.sync = sync
        self._store = store
        self._ports = ports
        self.published = published
        self.issued = issued
        self._telemetry = telemetry
        self.calls: Counter[str] = Counter()
        """Messages to the lease store, by result."""
        self.last_error = ""
        self._is_down = False

    # --- loops ---

    async def run(self) -> None:
        """Send, listen and read until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._handle_answers())
            group.create_task(self._tick_forever())
            group.create_task(self._listen_forever())
            group.create_task(self._read_forever())
            group.create_task(self.issued.run())

    async def _tick_forever(self) -> None:
        # With limits before the first answer, a new sidecar does not need fallback shares.
        await self._read_limits()
        while True:
            started = self._ports.now()
            for _ in self._driver.tick_steps():
                await asyncio.sleep(0)
            await asyncio.sleep(max(self._interval_s - (self._ports.now() - started), 0.001))

    async def _handle_answers(self) -> None:
        """Act on each answer."""
        while True:
            self._handle(*await self._ports.results.get())

    def _handle(self, message: Message, result: Answer | StoreDown) -> None:
        try:
            if isinstance(result, StoreDown):
                self._failed(result)
                self._driver.failed(message)
            else:
                self._recovered()
                self._driver.answered(message, result)
                self.published.announced(result.file_version)
                self.issued.announced(result.credentials)
        except Exception:
            log.critical("an answer of the lease store could not be used", exc_info=True)

    def _failed(self, error: StoreDown) -> None:
        self.calls["failed"] += 1
        self.last_error = str(error)
        if not self._is_down:
            self._is_down = True
            log.warning(
                "the lease store does not answer; current leases stay in use", extra={"error": str(error)}
            )

    def _recovered(self) -> None:
        self.calls["answered"] += 1
        if self._is_down:
            self._is_down = False
            log.info("the lease store answers again")

    async def _listen_forever(self) -> None:
        """Act on pushes. Pushes only save time; the protocol works without them."""
        while True:
            try:
                async for push in self._store.listen(self.sync.holder):
                    if push.kind == CREDENTIALS:
                        self.issued.news.set()
                    else:
                        self._driver.pushed(push)
            except StoreDown:
                pass  # reported by the messages
            except Exception:
                log.critical("listening to the lease store failed", exc_info=True)
            await asyncio.sleep(self._interval_s)

    async def _read_forever(self) -> None:
        """Read all limits at intervals, and the pool file when a new one is published."""
        news = self.published.news
        while True:
            await self._read_limits()
            await self.published.read()
            wait = READ_EVERY_S if self.sync.leases.has_limits else self._interval_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), wait)
            news.clear()

    async def _read_limits(self) -> None:
        try:
            await self._store.connect(MOST_UNDER_WAY)
            self._driver.learned(*await self._store.limits())
        except StoreDown:
            pass  # reported by the messages
        except Exception:
            log.critical("reading the limits failed", exc_info=True)

    async def stop(self) -> None:
        """Return every lease, if the lease store answers in time. Then close the connections.

        Call it after ``Driver.stop``. The messages in flight come first. The last message repeats the
        usage of a lost one.
        """
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await self._ports.wait_for_results()
                while not self._ports.results.empty():
                    self._handle(*self._ports.results.get_nowait())
                last = self._driver.last_message()
                if last is not None:
                    await self._ports.send_last(last)
        except (StoreDown, TimeoutError):
            pass  # the leases expire
        except Exception:
            log.critical("the last message could not be sent", exc_info=True)
        await self._store.close()

    # --- status ---

    def problems(self) -> list[str]:
        """The reasons why the limits cannot be used yet."""
        if self.sync.answered_at is None and not self.sync.leases.failures:
            return ["the lease store has not answered yet"]
        return self.issued.problems()

    def degraded(self) -> list[str]:
        """Notices for the operator while requests are served."""
        leases, found = self.sync.leases, []
        if leases.failures:
            found.append(f"the lease store does not answer: {self.last_error}")
        if leases.mode is not Mode.JOINED:
            found.append(f"limits are decided from shares, not from the lease store ({leases.mode})")
        if not leases.has_limits:
            found.append("no coordinator has published limits yet")
        if self.sync.limits_age_s > UNLED_S and not leases.failures:
            found.append("no coordinator leads; the last limits stay in force: check the coordinators")
        if self.published.refused_version:
            found.append("the published pool file cannot be enforced here; the old one is in force")
        if self._telemetry.config_differs:
            found.append("this sidecar's own pool file differs from the published one, which is in force")
        return found

    def metrics(self) -> Iterator[Metric]:
        """The metrics of the exchange with the lease store, for Prometheus."""
        yield from self.issued.metrics()
        leases = self.sync.leases
        mode = GaugeMetricFamily(
            "tokenpool_store_mode", "1 for the current source of limits.", labels=("mode",)
        )
        for each in Mode:
            mode.add_metric((each.value,), float(each is leases.mode))
        calls = CounterMetricFamily(
            "tokenpool_store_calls", "Messages to the lease store.", labels=("result",)
        )
        for result in ("answered", "failed"):
            calls.add_metric((result,), self.calls[result])
        yield from (mode, calls)
        yield from wait_metrics(
            "tokenpool_lease_wait", "Requests that waited for a larger lease.", leases.queue.lease_waits
        )
        for name, text, value in (
            ("tokenpool_store_up", "Whether the lease store answers.", not leases.failures),
            (
                "tokenpool_store_round_trip_seconds",
                "The duration of the last exchange with the lease store.",
                leases.round_trip_s,
            ),
            ("tokenpool_store_sidecars", "Sidecars that the lease store knows.", leases.sidecars),
            (
                "tokenpool_store_unled_seconds",
                "The time since a coordinator published limits.",
                self.sync.limits_age_s,
            ),
            (
                "tokenpool_config_refused",
                "Whether a pool file is published that cannot be enforced here.",
                bool(self.published.refused_version),
            ),
            (
                "tokenpool_config_differs",
                "Whether this sidecar's own pool file is not the published one in force.",
                self._telemetry.config_differs,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
