"""The messenger: carries the sidecar's messages to the lease store, and collects the answers.

Each message is sent in a task of its own: none waits for another's answer. What an answer changes is done by
``Replication``, which reads ``results``.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from sidecar.report import Reporter
from tokenpool.leases.reference_store import Answer, Message
from tokenpool.leases.sync import LeaseSync
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

FAREWELL_S = 1.0
"""The longest duration of the last message."""

Result = tuple[Message, Answer | StoreDown]


class Messenger:
    """One sidecar's line to the lease store."""

    def __init__(self, sync: LeaseSync, store: Store, reporter: Reporter) -> None:
        self._sync = sync
        self._store = store
        self._reporter = reporter
        self.results: asyncio.Queue[Result] = asyncio.Queue()
        """The answers, and the messages without one, in the order in which they came."""
        self._calls: set[asyncio.Task[None]] = set()
        """Messages in flight."""
        self._is_stopped = False

    def send_due(self, now: float) -> None:
        """Send every message that is due. Cheap when none is."""
        if self._sync.is_message_due and not self._is_stopped:
            self.send_all(now)

    def send_all(self, now: float) -> None:
        """Send every message that is due, renewals and complete ones too."""
        if self._is_stopped:
            return
        try:
            for message in self._sync.messages(now):
                report = self._reporter.report(now) if message.carries_report else b""
                task = asyncio.get_running_loop().create_task(self._carry(message, report))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
        except Exception:
            # A defect must not silence this sidecar for good: the next interval tries again.
            log.critical("a message to the lease store could not be made", exc_info=True)

    async def _carry(self, message: Message, report: bytes) -> None:
        """Bring one message with its report to the lease store, and its answer back."""
        try:
            sent = replace(message, report=report) if report else message
            self.results.put_nowait((message, await self._store.exchange(sent)))
        except StoreDown as error:
            self.results.put_nowait((message, error))
        except BaseException as error:
            # Cancelled, or a defect: waiting requests are decided from what is held.
            self.results.put_nowait((message, StoreDown(f"the message was not sent: {error!r}")))
            raise

    async def farewell(self, now: float) -> None:
        """Send the last message: return every lease, if the lease store answers. Raises ``StoreDown``."""
        self._is_stopped = True
        async with asyncio.timeout(FAREWELL_S):
            await asyncio.gather(*self._calls, return_exceptions=True)
            await self._store.exchange(self._sync.farewell(self._reporter.report(now)))
