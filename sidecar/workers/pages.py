"""The admin port of a sidecar with several workers: their pages as those of one process.

Each worker serves its pages on a socket of its own. The supervisor also reads the metrics of each at
intervals, so that the counters of a worker that is killed are not lost. A worker that does not answer for
``Times.hung_s`` is killed, and so is one that does not answer within ``Times.start_s`` of its start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dashboard.server import LivePage
from dashboard.snapshot import Snapshot, Wanted
from runtime.admin import Readiness
from runtime.exposition import CONTENT_TYPE, rendered
from sidecar.admin import SNAPSHOT
from sidecar.worker import pages_path
from sidecar.workers import merging
from sidecar.workers.metrics_page import Page, Totals, merged, parsed

log = logging.getLogger(__name__)

READ_SHARE, LONGEST_PAUSE_S = 0.01, 5.0
"""The reads of a worker's metrics take at most this part of the time, with at most this pause in seconds."""
SNAPSHOT_EVERY_S, IDLE_SNAPSHOT_EVERY_S = 0.5, 2.0
"""Seconds between two reads of the workers' parts of the live page: while it is shown, and otherwise."""
HOST = "http://worker"


class Times(NamedTuple):
    """Time limits and intervals, in seconds."""

    answer_within_s: float = 2.0
    """A page that takes longer counts as none."""
    read_every_s: float = 1.0
    """The shortest time between two reads of a worker's metrics."""
    hung_s: float = 10.0
    """A worker that has answered before, and then does not answer for this time, is killed."""
    start_s: float = 60.0
    """A worker that has not answered for so long since its start is killed. To import the modules alone takes
    0.5 s of CPU time, and all workers start at once. So 64 of them on one core take longer than ``hung_s``.
    With that limit all would be killed again and again."""


_TIMES = Times()


class WorkerSource(Protocol):
    """One worker, as its pages need it (``processes.WorkerProcess``)."""

    @property
    def pid(self) -> int | None:
        """The id of the process; ``None`` while there is none."""

    @property
    def started_at(self) -> float:
        """The time of the last start, on the monotonic clock."""


class WorkerPages:
    """The pages of one worker."""

    def __init__(self, folder: Path, index: int, answer_within_s: float) -> None:
        self.index = index
        self._answer_within_s = answer_within_s
        self._path = str(pages_path(folder, index))
        self._session: aiohttp.ClientSession | None = None
        self.page: Page = {}
        """The last metrics page of the process that runs now; empty before the first."""
        self.answered_at: float | None = None
        """The time of the last answer of this process, on the monotonic clock."""
        self.is_killed = False
        """Whether this process was killed because it did not answer."""
        self._processes = 0
        """The processes that have ended."""
        self._reads = self._shown = 0
        """The number of the last read of the metrics that has begun, and of the one with this page."""

    def ended(self) -> Page:
        """The process has ended. Returns its last page."""
        self._processes += 1
        last, self.page, self.answered_at, self.is_killed = self.page, {}, None, False
        return last

    def open(self) -> aiohttp.ClientSession:
        """The connections to the worker."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                HOST,
                connector=aiohttp.UnixConnector(self._path),
                timeout=aiohttp.ClientTimeout(total=self._answer_within_s),
                auto_decompress=False,
            )
        return self._session

    async def read(self, path: str, body: bytes | None = None) -> tuple[int, bytes] | None:
        """A page's status and content; ``None`` if the worker does not answer."""
        processes = self._processes
        try:
            async with self.open().get(path, data=body) as response:
                found = response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        if processes != self._processes:
            return None  # an answer of a process that has ended meanwhile
        self.answered_at = time.monotonic()
        return found

    async def read_metrics(self) -> Page:
        """The metrics now, or the last ones if the worker does not answer."""
        self._reads += 1
        number = self._reads
        found = await self.read("/metrics")
        # A later read may have its answer already: its counts are higher.
        if found is not None and found[0] == 200 and number > self._shown:
            self._shown, self.page = number, parsed(found[1].decode())
        return self.page

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


class Pages:
    """The pages of all workers."""

    def __init__(
        self,
        folder: Path,
        workers: list[WorkerSource],
        pool: str,
        restarts: Callable[[int], int],
        kill: Callable[[int], None],
        times: Times = _TIMES,
    ) -> None:
        """``restarts`` counts those of a worker, and ``kill`` ends one that does not answer."""
        self._workers = workers
        self._pool = pool
        self._restarts = restarts
        self._kill = kill
        self._times = times
        self._pages = [WorkerPages(folder, index, times.answer_within_s) for index in range(len(workers))]
        self._totals = Totals()
        self.sources: list[Callable[[], Iterator[Metric]]] = []
        """Further metrics of the supervisor."""
        self.planner = ""
        """The planner of these workers alone, in words; empty with a lease store of their pool."""
        self.is_draining = False
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._snapshots: dict[int, Snapshot] = {}
        self._wanted = Wanted()
        self.live = LivePage(self._snapshot, time.monotonic)
        self._tasks: list[asyncio.Task[None]] = []

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/engine/metrics", self._engine_metrics),
                web.get("/debug/state", self._state),
            ]
        )
        self.live.add_to(application)
        return application

    def start(self) -> None:
        """Begin to read the workers' pages."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(each)) for each in self._pages]
        self._tasks.append(loop.create_task(self._take_snapshots()))

    async def stop(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self._pages:
            await each.close()

    def answers(self, index: int) -> bool:
        """Whether a worker has answered since its start."""
        return self._pages[index].answered_at is not None

    def ended(self, index: int) -> None:
        """The process of a worker has ended: its counts are kept."""
        self._totals.add(self._pages[index].ended())
        self._snapshots.pop(index, None)

    async def _watch(self, worker: WorkerPages) -> None:
        while True:
            began = time.monotonic()
            await worker.read_metrics()
            now, heard = time.monotonic(), worker.answered_at
            # A busy worker may be too slow for its long page, but not for this one.
            if self._is_hung(worker) and await worker.read("/healthz") is None and self._is_hung(worker):
                log.error("a worker does not answer, and is killed", extra={"worker": worker.index})
                worker.answered_at, worker.is_killed = None, True
                self._kill(worker.index)
            pause = self._times.read_every_s
            if heard is not None and heard >= began:
                pause = max(pause, min((now - began) / READ_SHARE, LONGEST_PAUSE_S))
            await asyncio.sleep(pause)

    def _is_hung(self, worker: WorkerPages) -> bool:
        process, now = self._workers[worker.index], time.monotonic()
        if process.pid is None or worker.is_killed:
            return False
        if worker.answered_at is None:
            return now - process.started_at > self._times.start_s
        return now - worker.answered_at > self._times.hung_s

    async def _all(self, path: str) -> dict[int, tuple[int, bytes]]:
        """A page of all workers that answer."""
        found = await asyncio.gather(*(each.read(path) for each in self._pages))
        return {index: answer for index, answer in enumerate(found) if answer is not None}

    # --- the pages ---

    async def _healthz(self, request: web.Request) -> web.Response:
        """The supervisor is alive. It starts workers again by itself."""
        return web.json_response({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        await asyncio.gather(*(each.read_metrics() for each in self._pages))
        own = parsed(rendered(self._own_metrics(), {"pool": self._pool}))
        # Taken together, after all reads: the counts of a worker that has ended meanwhile are in the totals.
        pages = [*(each.page for each in self._pages), own, self._totals.page]
        text = await asyncio.to_thread(merged, pages)
        return web.Response(body=text.encode(), headers={"content-type": CONTENT_TYPE})

    def _own_metrics(self) -> Iterator[Metric]:
        serving = sum(each.answered_at is not None for each in self._pages)
        yield from worker_metrics(serving, sum(self._restarts(each.index) for each in self._pages))
        yield from self._process.collect()
        for source in self.sources:
            yield from source()

    async def readiness(self) -> Readiness:
        """Whether requests may be sent here."""
        answers = await self._all("/readyz")
        workers = {
            each.index: _readiness(answers[each.index][1]) if each.index in answers else None
            for each in self._pages
        }
        return merging.readiness(workers, is_draining=self.is_draining)

    async def _readyz(self, request: web.Request) -> web.Response:
        return (await self.readiness()).response()

    async def _state(self, request: web.Request) -> web.Response:
        """The page ``/debug/state`` of all workers. See ``sidecar.admin``."""
        answers = await self._all(str(request.rel_url))
        refused = [content for status, content in answers.values() if status != 200]
        answers = {index: answer for index, answer in answers.items() if answer[0] == 200}
        if not answers and refused and refused[0].startswith(b"{"):
            return web.Response(status=404, body=refused[0], content_type="application/json")
        if not answers:
            return web.json_response({"error": "no worker serves yet; see /readyz and the log"}, status=503)
        about: dict[int, dict[str, Any]] = {
            each.index: {
                "worker": each.index,
                "pid": self._workers[each.index].pid,
                "restarts": self._restarts(each.index),
                "answers": each.index in answers,
            }
            for each in self._pages
        }
        made = await asyncio.to_thread(_merged_state, answers, about)
        return web.Response(body=made, content_type="application/json")

    async def _engine_metrics(self, request: web.Request) -> web.Response:
        """The engine's own metrics page, by way of the first worker that answers."""
        for each in self._pages:
            found = await each.read(str(request.rel_url))
            if found is not None:
                return web.Response(status=found[0], body=found[1], headers={"content-type": CONTENT_TYPE})
        return web.Response(status=503, text="no worker answers; see the log\n")

    # --- the live page ---

    def _snapshot(self, wanted: Wanted) -> Snapshot:
        self._wanted = wanted
        return merging.snapshot(self._snapshots, f"{len(self._pages)} workers", self.planner)

    async def _take_snapshots(self) -> None:
        while True:
            is_waited_for = self.live.listeners or len(self._snapshots) < len(self._pages)
            await asyncio.sleep(SNAPSHOT_EVERY_S if is_waited_for else IDLE_SNAPSHOT_EVERY_S)
            body = msgspec.msgpack.encode(self._wanted)
            for each in self._pages:
                found = await each.read(SNAPSHOT, body)
                if found is not None and found[0] == 200:
                    self._snapshots[each.index] = msgspec.msgpack.decode(found[1], type=Snapshot)


def worker_metrics(serving: int, restarts: int) -> Iterator[Metric]:
    """The metrics of the workers themselves, for Prometheus."""
    yield GaugeMetricFamily(
        "tokenpool_workers", "Processes of this sidecar that serve, with --workers.", value=serving
    )
    yield CounterMetricFamily(
        "tokenpool_worker_restarts",
        "Processes of this sidecar that were started again after one had ended.",
        value=restarts,
    )


def _readiness(content: bytes) -> Readiness:
    page = msgspec.json.decode(content)
    return Readiness(page["problems"], page["degraded"])


def _merged_state(answers: dict[int, tuple[int, bytes]], about: dict[int, dict[str, Any]]) -> bytes:
    states = {index: msgspec.json.decode(content) for index, (_, content) in answers.items()}
    return msgspec.json.encode(merging.state(states, about))
