"""One run: sends the requests of a scenario at their due times, and measures them. Open-loop.

Every request is a task of its own, which waits for its due time only. If the generator is late, it sends the
request at once, and the latency still counts from the due time. A worker of a closed loop is due when it
became free. The delays of attempts and of the event loop are recorded; `trust` judges them. Faults, samples
of state pages and progress run concurrently.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import arrivals, delays, prompts
from loadgen.arrivals import Arrival, Request
from loadgen.client import Client, recipient
from loadgen.conversations import Talk, turns
from loadgen.faults import inflict
from loadgen.processes.part import WHOLE, Part
from loadgen.progress import Display, Progress
from loadgen.records import (
    AS_PLANNED,
    META,
    REQUESTS,
    STATE,
    Attempt,
    FaultResult,
    Lines,
    Meta,
    Outcome,
    PhaseMeta,
    TenantMeta,
    described,
    machine,
    save,
    versions,
)
from loadgen.sampling import Sampler
from loadgen.scenario import LONGEST_WAIT_S, Closed, Conversation, Retries, Scenario, Tenant
from loadgen.statistics import percentile
from loadgen.tls import Tls
from loadgen.trust import complaints

HEAD_START_S = 0.05
MOST_LATE = 100
"""Other tasks run after so many late arrivals of a tenant, so that a late generator can send and be ended."""
MOST_DOUBLINGS = 64
"""The most doublings of the wait between attempts."""
_FEW = 0.5
"""The end of a run is measured while more than this share of the most requests is in flight."""
_SHORTEST_S = 0.05
"""A shorter time says nothing about the use of the processor."""
_RETRIED = (Outcome.SHED, Outcome.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Order:
    """One run to perform."""

    scenario: Scenario
    urls: list[str]
    out: Path
    label: str
    states: list[str] = field(default_factory=list)
    faults: bool = False
    """Whether the scenario's faults may be inflicted."""
    command: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences of the preparation for the report."""
    part: Part = WHOLE
    """The requests that this process sends."""
    tls: Tls = Tls()


def backoff(retries: Retries, attempt: int, asked_s: float | None, jitter: float) -> float:
    """The client's wait after its ``attempt``-th attempt, s. ``jitter`` is from 0 to 1."""
    if retries.honour_retry_after and asked_s is not None:
        return asked_s
    # The doubling is bounded, because a float has no 2 ** 1024.
    return min(retries.wait_s * 2.0 ** min(attempt - 1, MOST_DOUBLINGS), LONGEST_WAIT_S) * (0.75 + jitter / 4)


class Runner:
    """A run in progress. ``stop`` ends it early, and keeps the measurements."""

    def __init__(
        self, order: Order, progress: Display, clock: Callable[[], float], zero_s: float | None = None
    ) -> None:
        """``zero_s`` is the start of the run on the clock; ``None`` is soon."""
        self._order = order
        self._scenario = order.scenario
        self._progress = progress
        self._zero = clock() + HEAD_START_S if zero_s is None else zero_s
        self._monotonic = clock
        self._lines = Lines(order.out / REQUESTS)
        self._state_lines = Lines(order.out / STATE)
        states = order.states if order.part.is_first else []
        self._sampler = Sampler(states, self._state_lines, self.now, order.tls.context())
        self._requests: set[asyncio.Task[object]] = set()
        self._error: BaseException | None = None
        self._in_flight = 0
        self._ended: Counter[Outcome] = Counter()
        self._lags: list[float] = []
        self._busy: list[float] = []
        self._phases = [PhaseMeta(phase.name, phase.from_s, phase.to_s) for phase in order.scenario.phases]
        ends = (
            order.scenario.duration_s - order.scenario.cool_down_s if order.scenario.cool_down_s else math.inf
        )
        self._delays = delays.Delays(self._phases, order.scenario.warm_up_s, ends)
        self._waited = self._ran = 0.0
        self._fault_results: list[FaultResult] = []
        self._turn = itertools.count(order.part.index)
        self._spread = arrivals.stream(order.scenario.seed, str(order.part.index or ""), "spread")
        self._stopped = asyncio.Event()
        self._client: Client
        self._recipients = {tenant.name: recipient(tenant) for tenant in order.scenario.tenants}

    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._monotonic() - self._zero

    @property
    def is_stopped(self) -> bool:
        """Whether the run ends early."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the run now, without further requests or waits."""
        self._stopped.set()

    async def run(self) -> Meta:
        """Perform the whole run until its last response."""
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        scenario = self._scenario
        jobs = self._sampler.run(), self._report(), self._watch_itself()
        beside: list[asyncio.Task[None]] = [asyncio.create_task(job) for job in jobs]
        faults = scenario.faults if self._order.faults and self._order.part.is_first else ()
        beside += [asyncio.create_task(inflict(fault, self.now, self._fault_results)) for fault in faults]
        async with Client(
            self._order.urls, scenario.timeout_s, self.now, self._order.tls.context()
        ) as self._client:
            await self._unless_stopped(asyncio.create_task(self._arrive_and_drain()))
            ended = self.now()
            await _end([*self._requests])
        await _end(beside)
        self._progress.clear()
        self._lines.close()
        self._state_lines.close()
        if self._error is not None:
            raise self._error
        meta = self._meta(started, ended)
        save(self._order.out / META, meta)
        return meta

    async def _unless_stopped(self, work: asyncio.Task[None]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        await _end([work, stopped])
        if not work.cancelled():
            work.result()

    async def _arrive_and_drain(self) -> None:
        async with asyncio.TaskGroup() as tenants:
            for position, tenant in enumerate(self._scenario.tenants):
                tenants.create_task(self._tenant(tenant, position))
        if self._requests:
            left = self._scenario.duration_s + self._scenario.drain_s - self.now()
            await asyncio.wait(self._requests, timeout=max(left, 0.0))

    async def _tenant(self, tenant: Tenant, position: int) -> None:
        part = self._order.part
        if isinstance(tenant.process, Closed):
            for worker in range(arrivals.most_workers(self._scenario, tenant)):
                if part.has(worker, position):
                    self._start(self._work(tenant, tenant.process, worker))
            await self._sleep_until(self._scenario.duration_s)
            return
        late = 0
        for arrival in arrivals.arrivals(self._scenario, tenant, self._scenario.seed):
            if not part.has(arrival.request.number, position):
                continue
            if arrival.at_s > self.now():
                await self._sleep_until(arrival.at_s)
                late = 0
            else:
                late += 1
                if late % MOST_LATE == 0:
                    await asyncio.sleep(0)
            if tenant.conversation is not None:
                self._start(self._converse(tenant, tenant.conversation, arrival))
            else:
                self._start(self._request(tenant, arrival.request, arrival.at_s))
        await self._sleep_until(self._scenario.duration_s)

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[object]) -> None:
        self._requests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error  # such as a full disk: the measurement cannot continue
            self.stop()

    async def _sleep_until(self, at_s: float) -> None:
        """Wait for a due time. At least one other task runs in between.

        Timers of the loop count whole milliseconds, so one may be 1 ms early. A request that is sent early
        would have a latency that is too short.
        """
        await asyncio.sleep(max(at_s - self.now(), 0.0))
        while (left := at_s - self.now()) > 0:
            await asyncio.sleep(left)

    async def _work(self, tenant: Tenant, process: Closed, worker: int) -> None:
        """One worker of a closed loop: sends, waits for the response, thinks, and sends again."""
        scenario, name = self._scenario, f"w{worker}"
        free = None
        workers = arrivals.most_workers(scenario, tenant)
        for request in arrivals.requests(tenant, scenario.seed, name, workers):
            due = arrivals.next_turn(scenario, tenant, worker, free)
            if due is None:
                return
            await self._sleep_until(due)
            last = await self._request(tenant, request, due, name)
            pause = process.think_s
            if last.outcome not in AS_PLANNED:
                # After a refusal, a worker waits as long as before a retry.
                pause = max(pause, backoff(tenant.retries, 1, last.retry_after_s, 1.0))
            free = last.end_s + pause

    async def _converse(self, tenant: Tenant, conversation: Conversation, arrival: Arrival) -> None:
        """One conversation: each turn is due when the user has read and thought about the answer."""
        talk, due = Talk(self._scenario, tenant), arrival.at_s
        for turn in turns(tenant, conversation, arrival.request, self._scenario.seed):
            due += turn.think_s
            if due >= self._scenario.duration_s:
                return
            await self._sleep_until(due)
            request, body = talk.ask(turn)
            name = f"c{request.number}.{turn.number}"
            last, answer = await self._attempts(tenant, request, body, due, name, turn=turn.number)
            if not talk.hear(last, answer):
                return
            due = last.end_s

    async def _request(self, tenant: Tenant, request: Request, at_s: float, worker: str = "") -> Attempt:
        """Send a request with all its attempts, and return the last attempt."""
        body = prompts.body(self._scenario, tenant, request, self._scenario.seed, worker)
        name = f"{worker}.{request.number}" if worker else str(request.number)
        last, _ = await self._attempts(tenant, request, body, at_s, name)
        return last

    async def _attempts(
        self, tenant: Tenant, request: Request, body: bytes, at_s: float, name: str, turn: int = 0
    ) -> tuple[Attempt, str]:
        """The last attempt of a request, and, for a turn of a conversation, the answer's text."""
        scenario, retries = self._scenario, tenant.retries
        answer = ""
        jitter = arrivals.stream(scenario.seed, tenant.name, name, "jitter")
        due = at_s
        for number in itertools.count(1):
            attempt = Attempt(
                tenant.name, name, at_s, due, due, due, request.input_tokens, request.output_tokens, number,
                url=self._url(), is_measured=scenario.is_measured(at_s), turn=turn,
            )  # fmt: skip
            try:
                answer = await self._perform(attempt, body, tenant, request)
                wait = backoff(retries, number, attempt.retry_after_s, jitter.random())
                due = attempt.end_s + wait
                attempt.is_last = (
                    number > retries.most or not _may_retry(attempt) or due >= scenario.duration_s
                )
            finally:
                self._note(attempt)
            if attempt.is_last:
                break
            await self._sleep_until(due)
        return attempt, answer

    async def _perform(self, attempt: Attempt, body: bytes, tenant: Tenant, request: Request) -> str:
        self._in_flight += 1
        try:
            cancel = tenant.cancel if request.is_cancelled else None
            to = self._recipients[tenant.name]
            return await self._client.perform(attempt, body, to, cancel=cancel, keeps_answer=attempt.turn > 0)
        finally:
            self._in_flight -= 1

    def _note(self, attempt: Attempt) -> None:
        if attempt.is_measured:
            self._lags.append(attempt.sent_s - attempt.due_s)
        self._ended[attempt.outcome] += 1
        self._lines.write(attempt)

    def _url(self) -> int:
        count, spread = len(self._order.urls), self._scenario.spread
        if count == 1:
            return 0
        if spread == "round_robin":
            return next(self._turn) % count
        weights = None if isinstance(spread, str) else spread
        return self._spread.choices(range(count), weights)[0]

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._progress.interval_s)
            self._progress.show(max(self.now(), 0.0), self._scenario.duration_s, self._in_flight, self._ended)

    async def _watch_itself(self) -> None:
        """Measure the use of the processor and the delays of the loop, from the end of the warm-up.

        It ends with the arrivals that count, and without a cool-down when most responses have ended, too. A
        wait for a few late responses would dilute the figures.
        """
        scenario = self._scenario
        watching = asyncio.create_task(delays.watch(self._delays, self.now))
        try:
            await self._sleep_until(scenario.warm_up_s)
            ends = scenario.duration_s - scenario.cool_down_s
            began = before = _used(self.now())
            most = 0
            while (left := ends - self.now()) > 0 or (
                not scenario.cool_down_s and self._in_flight > most * _FEW
            ):
                if left > 0:
                    most = max(most, self._in_flight)
                await asyncio.sleep(min(1.0, left) if left > _SHORTEST_S else 1.0)
                now = _used(self.now())
                self._busy.append(now.share_since(before).cpu_s)
                shares, before = now.share_since(began), now
                self._ran, self._waited = shares.ran_s, shares.waited_s
        finally:
            await _end([watching])

    def _meta(self, started: str, ended: float) -> Meta:
        scenario, order = self._scenario, self._order
        lags, busy = sorted(self._lags) or [0.0], sorted(self._busy) or [0.0]
        late, cpu = percentile(lags, 0.99), percentile(busy, 0.95)
        return Meta(
            label=order.label,
            name=scenario.name,
            seed=scenario.seed,
            duration_s=scenario.duration_s,
            drain_s=scenario.drain_s,
            ended_s=ended,
            is_interrupted=self.is_stopped,
            tenants=[TenantMeta.of(tenant) for tenant in scenario.tenants],
            phases=self._phases,
            faults=self._fault_results,
            urls=order.urls,
            command=order.command,
            started=started,
            machine=machine(),
            versions=versions(),
            lag_p50_s=percentile(lags, 0.5),
            lag_p99_s=late,
            lag_max_s=lags[-1],
            cpu=cpu,
            complaints=complaints(late, cpu),
            waited=self._waited,
            ran=self._ran,
            loop=self._delays.spans(),
            stalls=self._delays.stalls,
            notes=order.notes,
            unread_states={url: count for url, count in self._sampler.unread.items() if count},
            scenario=described(scenario),
            warm_up_s=scenario.warm_up_s,
            cool_down_s=scenario.cool_down_s,
        )


def _may_retry(attempt: Attempt) -> bool:
    return attempt.outcome in _RETRIED or (attempt.outcome is Outcome.BROKEN and attempt.status == 0)


class _Used(NamedTuple):
    """What the process used of the processor until a time, s."""

    at_s: float
    cpu_s: float
    """The processor time of all threads."""
    ran_s: float
    """The time for which this thread ran."""
    waited_s: float
    """The time for which it was ready, but had no core."""

    def share_since(self, before: _Used) -> _Used:
        """The changes per second."""
        seconds = max(self.at_s - before.at_s, 1e-9)
        return _Used(*((now - then) / seconds for now, then in zip(self, before, strict=True)))


def _used(at_s: float) -> _Used:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return _Used(at_s, used.ru_utime + used.ru_stime, *delays.scheduled())


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def perform(order: Order) -> Meta:
    """Run to the end, or until SIGINT or SIGTERM. A second signal ends the process at once."""
    gc.collect()
    gc.freeze()  # so that no collection looks at the modules and the scenario during the run
    loop = asyncio.get_running_loop()
    runner = Runner(order, Progress(sys.stderr), time.monotonic)

    def interrupted() -> None:
        if runner.is_stopped:
            os._exit(128 + signal.SIGINT)
        runner.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    return await runner.run()
