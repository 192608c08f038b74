"""The ports of a sidecar's driver: the event loop's clock and alarm, and calls to the lease store.

Each message is sent in a task of its own, so none waits for another's answer. ``Replication`` reads
``results`` and calls the driver; the app does so for ``alarms``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from sidecar.handover.asking import PeerLinks
from sidecar.report import Reporter
from tokenpool.admission.placement import PeerAsk
from tokenpool.leases.messages import Answer, Message
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

Result = tuple[Message, Answer | StoreDown]
QuotaResult = tuple[QuotaMessage, QuotaAnswer | StoreDown]


class LoopPorts:
    """See ``tokenpool.control.driver.Ports``. A lone sidecar has no store."""

    def __init__(
        self, clock: Callable[[], float], store: Store | None = None, reporter: Reporter | None = None
    ) -> None:
        self._clock = clock
        self._store = store
        self._reporter = reporter
        self.peers: PeerLinks | None = None
        """The connections to other sidecars; ``None`` without handover."""
        self.notifiers: Sequence[int] = ()
        """A file descriptor (``eventfd``) for each worker of this sidecar; none without other workers."""
        self.results: asyncio.Queue[Result] = asyncio.Queue()
        """The answers, and the messages that failed, in the order of their arrival."""
        self.quota_results: asyncio.Queue[QuotaResult] = asyncio.Queue()
        """The same for messages about quotas."""
        self._calls: set[asyncio.Task[None]] = set()
        """Messages in flight."""
        self._alarm = asyncio.Event()
        self._wakes_at = math.inf
        """The time of the next alarm."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        """The time for which the timer is set: at or before the next alarm."""

    def now(self) -> float:
        """See ``Ports``."""
        return self._clock()

    def failed(self, what: str, error: Exception) -> None:
        """See ``Ports``."""
        log.critical(what, exc_info=error)

    # --- the alarm ---

    def wake_at(self, at: float) -> None:
        """See ``Ports``. A timer that is set for an earlier time stays, and is set again when it goes off.

        Most requests wait for a millisecond, with a deadline seconds later. So they set no timers.
        """
        self._wakes_at = at
        if at < self._timer_at:
            self._set_timer(at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(at - self._clock(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._timer_ended)
        self._timer_at = at

    def _timer_ended(self) -> None:
        was_set_for, self._timer, self._timer_at = self._timer_at, None, math.inf
        if self._wakes_at <= was_set_for:
            self._wakes_at = math.inf
            self._alarm.set()
        elif self._wakes_at < math.inf:
            self._set_timer(self._wakes_at)

    def stop(self) -> None:
        """No alarm goes off any more."""
        self._wakes_at = self._timer_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def alarms(self) -> AsyncIterator[None]:
        """Yield each time the alarm goes off, until cancelled."""
        while True:
            await self._alarm.wait()
            self._alarm.clear()
            yield

    # --- other replicas ---

    def ask(self, ask: PeerAsk) -> None:
        """See ``Ports``."""
        if self.peers is not None:
            self.peers.ask(ask)

    def cancel(self, ask: PeerAsk) -> None:
        """See ``Ports``."""
        if self.peers is not None:
            self.peers.cancel(ask)

    # --- other workers of this sidecar ---

    def notify_worker(self, worker: int) -> None:
        """See ``Ports``. The counter of a notifier may be full: then its worker is notified already."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.notifiers[worker], 1)

    # --- the lease store ---

    def send_message(self, message: Message) -> None:
        """See ``Ports``."""
        task = asyncio.get_running_loop().create_task(self._carry(message))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _carry(self, message: Message) -> None:
        """Send one message to the lease store, and put its result into ``results``."""
        try:
            self.results.put_nowait((message, await self._exchange(message)))
        except StoreDown as error:
            self.results.put_nowait((message, error))
        except BaseException as error:
            # Cancelled, or a defect: waiting requests are decided from the current lease.
            self.results.put_nowait((message, StoreDown(f"the message was not sent: {error!r}")))
            raise

    async def _exchange(self, message: Message) -> Answer:
        """Send one message, with the current report if the message has one."""
        assert self._store is not None
        assert self._reporter is not None
        if message.carries_report:
            message = replace(message, report=self._reporter.report(self._clock()))
        return await self._store.exchange(message)

    def send_quotas(self, message: QuotaMessage) -> None:
        """See ``Ports``."""
        task = asyncio.get_running_loop().create_task(self._carry_quotas(message))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _carry_quotas(self, message: QuotaMessage) -> None:
        assert self._store is not None
        try:
            self.quota_results.put_nowait((message, await self._store.exchange_quotas(message)))
        except StoreDown as error:
            self.quota_results.put_nowait((message, error))
        except BaseException as error:
            self.quota_results.put_nowait((message, StoreDown(f"the message was not sent: {error!r}")))
            raise

    async def wait_for_results(self) -> None:
        """Wait until each message in flight has its result. If cancelled, it cancels the messages."""
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def send_last(self, message: Message) -> None:
        """Send the last message. Raises ``StoreDown``."""
        await self._exchange(message)
