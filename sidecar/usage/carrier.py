"""The carrier: takes usage records from the recorder to the spool, and from there to the stream.

A batch stays in the spool until the usage store has it, however often it is sent. Redis and the database may
be away: then records collect in the spool, up to its bound, and further ones are dropped and counted. Files
are written in a thread. Nothing here is on the path of requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.usage.open_requests import OpenRequests
from sidecar.usage.recorder import UsageRecorder
from sidecar.usage.spool import Batch, Spool
from tokenpool.store import StoreDown
from tokenpool.store.usage_stream import Sent
from tokenpool.usage.record import RecordInvalid, decode

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.25
"""Seconds between two writes of records to the spool, if there are few."""
LOOK_EVERY_S = 0.05
"""Seconds between two looks at the number of records that wait."""
MANY = 500
"""So many records are written at once. At 30,000 requests/s, records that wait for 0.25 s no longer fit into
the processor's cache: each request then took 2.6 us more than with writes every 0.05 s."""
SEND_EVERY_S = 1.0
"""Seconds between two messages to the stream, if no full batch waits."""
RETRY_S = 2.0
"""Seconds after a failed message."""
SYNC_EVERY_S = 1.0
"""Seconds between two syncs of the spool: a loss of power loses at most the records since the last one."""
OPEN_AGAIN_S = 10.0
"""Seconds between two attempts to use a folder that does not work."""
IN_FLIGHT = 8
"""The most batches of one sidecar in the stream: 512 KiB. At half a second from the stream to the usage
store they carry 7,000 records per second, more than a sidecar makes."""
STOP_WAIT_S = 3.0
"""The longest wait at a stop until the usage store has all records, in seconds."""
STOP_STEP_S = 0.05


class Stream(Protocol):
    """The stream of the pool: see ``UsageStream``."""

    async def send(self, spool: str, batches: Sequence[tuple[int, bytes]], in_flight: dict[int, str]) -> Sent:
        """Send numbered batches. Raises ``StoreDown``."""


class UsageCarrier:
    """Carries the usage records of one sidecar. ``process`` is the id of its process."""

    def __init__(
        self,
        recorder: UsageRecorder,
        spool: Spool,
        stream: Stream,
        process: str,
        clock: Callable[[], float],
    ) -> None:
        self.recorder = recorder
        self.spool = spool
        self._stream = stream
        self._process = process
        self._clock = clock
        self._in_flight: dict[int, tuple[Batch, str, float]] = {}
        """The batches in the stream by number, each with its entry and the time of its first message."""
        self._stored: list[Batch] = []
        """Batches that the usage store has, and whose files exist still."""
        self._lost_on_the_way: list[Batch] = []
        """Batches that wait again, because a message failed or Redis lost them."""
        self._write_at = self._send_at = self._sync_at = self._open_at = 0.0
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None
        self.recovered = 0
        self.stored_batches = 0
        self.dropped = 0
        """The records that found no room in the spool."""
        self.dropped_tokens = 0
        self.sent_again = 0
        """The batches that Redis lost."""
        self.error = ""
        """Why the last message failed; empty if it did not."""

    def start(self) -> None:
        """Begin to carry, unless it has begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        await self.open()
        while not self._is_stopping:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if self.is_write_due:
                    await self.step()
            except Exception:
                # A defect must not end the loop.
                log.critical("usage records could not be carried", exc_info=True)

    @property
    def is_write_due(self) -> bool:
        """Whether to write now: many records wait, or the last write was ``WRITE_EVERY_S`` ago."""
        return self.recorder.waiting >= MANY or self._clock() >= self._write_at

    async def open(self) -> None:
        """Open the folder, and take over the records of processes that have ended."""
        made, recovered = await asyncio.to_thread(self._open)
        self._open_at = self._clock() + OPEN_AGAIN_S
        if made is not None:
            self.recorder.open_requests = made
        self.recovered += recovered
        if self.spool.error:
            log.error(
                "usage records are kept in memory: the folder of the spool does not work",
                extra={"error": self.spool.error},
            )
        elif recovered:
            log.warning(
                "a sidecar was killed; the records of its requests are recovered",
                extra={"requests": recovered},
            )

    def _open(self) -> tuple[OpenRequests | None, int]:
        made = self.spool.open()
        return made, 0 if self.spool.error else self.spool.adopt()

    async def step(self, *, at_once: bool = False) -> None:
        """Write the records since the last step, and send what is due. ``at_once``: send all."""
        now = self._clock()
        self._write_at = now + WRITE_EVERY_S
        if self.spool.error and now >= self._open_at:
            await self.open()
        records, slots = self.recorder.take()
        is_due = at_once or now >= self._send_at or (self.spool.is_full and not self.error)
        room = IN_FLIGHT - len(self._in_flight) if is_due else 0
        if not (records or self._stored or self._lost_on_the_way or (is_due and self._has_work)):
            self.recorder.written(slots)
            return
        stored, self._stored = self._stored, []
        waiting, self._lost_on_the_way = self._lost_on_the_way, []
        is_sync_due = now >= self._sync_at
        if is_sync_due:
            self._sync_at = now + SYNC_EVERY_S
        refused, batches = await asyncio.to_thread(
            self._write, records, stored, waiting, room, is_sync_due=is_sync_due
        )
        self.recorder.written(slots)
        self._drop(refused)
        if is_due:
            await self._send(batches)

    @property
    def _has_work(self) -> bool:
        return bool(self._in_flight) or not self.spool.is_empty

    def _write(
        self,
        records: Sequence[bytes],
        stored: Sequence[Batch],
        waiting: Sequence[Batch],
        room: int,
        *,
        is_sync_due: bool,
    ) -> tuple[Sequence[bytes], list[tuple[Batch, bytes]]]:
        """The part of a step in the thread. Returns refused records, and batches to send."""
        spool = self.spool
        for batch in stored:
            spool.remove(batch)
        spool.put_back(waiting)
        refused = spool.append(records)
        if is_sync_due:
            spool.sync()
        return refused, spool.take(room)

    def _drop(self, refused: Sequence[bytes]) -> None:
        if refused and not self.dropped:
            log.error(
                "the spool of usage records is full; further records are dropped and counted",
                extra={"bytes": self.spool.size, "error": self.spool.error or self.error},
            )
        self.dropped += len(refused)
        for content in refused:
            try:
                record = decode(content)
            except RecordInvalid:
                continue
            self.dropped_tokens += record.input_tokens + record.output_tokens

    async def _send(self, batches: list[tuple[Batch, bytes]]) -> None:
        entries = {number: entry for number, (_, entry, _) in self._in_flight.items()}
        now = self._clock()
        if not batches and not entries:
            return
        self._send_at = now + SEND_EVERY_S
        try:
            sent = await self._stream.send(
                self._process, [(batch.number, content) for batch, content in batches], entries
            )
        except StoreDown as error:
            self._failed(error, [batch for batch, _ in batches])
            return
        except BaseException:
            self._lost_on_the_way += [batch for batch, _ in batches]
            raise
        if self.error:
            self.error = ""
            log.info("usage records are sent again")
        for (batch, _), entry in zip(batches, sent.entries, strict=True):
            self._in_flight[batch.number] = (batch, entry, now)
        for number in sent.stored:
            if (found := self._in_flight.pop(number, None)) is not None:
                self._stored.append(found[0])
                self.stored_batches += 1
        for number in sent.missing:
            if (found := self._in_flight.pop(number, None)) is not None:
                self._lost_on_the_way.append(found[0])
                self.sent_again += 1

    def _failed(self, error: StoreDown, batches: list[Batch]) -> None:
        """A message failed. Redis may have its batches; then the usage store gets them twice."""
        self._lost_on_the_way += batches
        self._send_at = self._clock() + RETRY_S
        if not self.error:
            log.warning("usage records cannot be sent; they stay in the spool", extra={"error": str(error)})
        self.error = str(error)

    async def stop(self) -> None:
        """Write all records, and wait a bounded time until the usage store has them.

        What it does not have then stays in the folder, for the next sidecar.
        """
        self._is_stopping = True
        if self._task is not None:
            await self._task  # a step in a thread cannot be cancelled
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await self.step(at_once=True)
                while (self._has_work or self._lost_on_the_way) and not self.error:
                    await asyncio.sleep(STOP_STEP_S)
                    await self.step(at_once=True)
        except TimeoutError:
            pass
        except Exception:
            log.critical("the last usage records could not be carried", exc_info=True)
        for batch in self._stored:
            self.spool.remove(batch)
        if self.recorder.open_requests is not None:
            self.recorder.open_requests.close()
        if self.spool.size:
            log.warning(
                "usage records stay in the spool for the next sidecar with its folder",
                extra={"bytes": self.spool.size},
            )

    # --- status ---

    def degraded(self) -> list[str]:
        """Notices for the operator while requests are served."""
        found = []
        if self.spool.error:
            found.append(f"usage records are kept in memory only: {self.spool.error}")
        if self.dropped or self.recorder.dropped:
            found.append(f"{self.dropped + self.recorder.dropped} usage records were dropped")
        return found

    def metrics(self) -> Iterator[Metric]:
        """The metrics of usage records, for Prometheus."""
        records = CounterMetricFamily(
            "tokenpool_usage_records",
            "Usage records of this sidecar: recorded; recovered from a killed sidecar; dropped, which are"
            " lost.",
            labels=("result",),
        )
        dropped = self.dropped + self.recorder.dropped
        for result, value in (
            ("recorded", self.recorder.recorded),
            ("recovered", self.recovered),
            ("dropped", dropped),
        ):
            records.add_metric((result,), value)
        batches = CounterMetricFamily(
            "tokenpool_usage_batches",
            "Batches of usage records: stored in the usage store; lost by Redis and sent again; unreadable in"
            " the spool, whose records are lost.",
            labels=("result",),
        )
        for result, value in (
            ("stored", self.stored_batches),
            ("sent_again", self.sent_again),
            ("unreadable", self.spool.unreadable),
        ):
            batches.add_metric((result,), value)
        yield from (records, batches)
        yield CounterMetricFamily(
            "tokenpool_usage_dropped_tokens",
            "Input and output tokens of the dropped usage records.",
            value=self.dropped_tokens + self.recorder.dropped_tokens,
        )
        yield GaugeMetricFamily(
            "tokenpool_usage_spool_bytes",
            "Bytes of usage records that the usage store has not confirmed.",
            value=self.spool.size,
        )
        oldest = min((at for _, _, at in self._in_flight.values()), default=None)
        yield GaugeMetricFamily(
            "tokenpool_usage_unconfirmed_seconds",
            "The time since the oldest batch in the stream was sent.",
            value=self._clock() - oldest if oldest is not None else 0.0,
        )
