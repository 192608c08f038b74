"""Soak: a long run at half the engines' capacity, with faults and abandoned streams.

Two real engines, their sidecars, a Redis and a coordinator serve tenants of all tiers, and clients that
disconnect in the middle of their streams. The faults in turn: Redis is paused, the coordinator is killed, a
sidecar is paused, and Redis is killed and restarts empty. Goals: memory stays constant, no capacity is held
after the last request, and the sidecars' token counters agree with the engines'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean

import aiohttp

from experiments.metrics import total
from experiments.processes import Backend, Front, backends, finished, load, sidecars
from loadgen.records import Outcome, Run
from loadgen.records import load as read_run
from toolbox.processes import Process

ENGINES, SLOTS = 2, 16
SAMPLE_S = 5.0
IDLE_S = 30.0
"""The time limit for the release of all capacity at the end, s."""
STILL_S = 2.0
"""The duration of a pause, s."""
SCENARIO = """\
name: soak
model: small
duration_s: {duration:g}
drain_s: 30
spread: random
tenants:
  - {{name: guaranteed, key: guaranteed-key, tier: guaranteed, arrivals: {{poisson: {{rate: 3}}}},
     input: {{uniform: {{least: 16, most: 200}}}}, output: 48}}
  - {{name: elastic, key: elastic-key, tier: elastic, arrivals: {{bursty: {{rate: 3, burst: 4}}}},
     input: 64, output: {{uniform: {{least: 16, most: 160}}}}}}
  - {{name: spot, key: spot-key, tier: spot, arrivals: {{poisson: {{rate: 3}}}}, input: 16, output: 64}}
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {tokens_per_second: auto, kv_tokens: auto, concurrency: 16}
    replicas: {min: 1, max: 2}
entitlements:
  - name: guaranteed
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 200, kv_tokens: 4000, concurrency: 8}
    api_keys: [guaranteed-key]
  - {name: elastic, pool: chat, tier: elastic, api_keys: [elastic-key]}
  - {name: spot, pool: chat, tier: spot, api_keys: [spot-key]}
  - {name: impatient, pool: chat, tier: elastic, api_keys: [impatient-key]}
"""
IMPATIENT_EVERY_S = 2.0
MOST_GROWTH_MB, MOST_COUNT_ERROR = 3.0, 0.01
EXPECTED = (Outcome.SHED, Outcome.UNAVAILABLE, Outcome.PREEMPTED)
"""Outcomes that are not failures: the request had not begun, or spot ended for a guarantee."""


@dataclass(frozen=True)
class Sizes:
    """The duration of the run and the interval between faults, in seconds."""

    duration: float = 1800.0
    fault_every: float = 20.0


@dataclass(frozen=True)
class Result:
    """The results of the run."""

    seed: int
    served: int
    ended_otherwise: dict[str, int]
    left: int
    """Abandoned streams."""
    faults: int
    memory_mb: float
    """The mean memory of the largest sidecar over the second quarter of the time."""
    growth_mb: float
    """The largest growth of a sidecar's mean memory from the second to the last quarter."""
    held: float
    """Sequences and KV tokens that sidecars hold after the last request."""
    input_ratio: float
    output_ratio: float
    """The sidecars' token counters divided by the engines'."""
    tokens_per_s: float
    """The engines' output tokens per second."""


def goals(result: Result) -> list[tuple[str, bool]]:
    """The goals, and whether each is reached."""
    ratios = (result.input_ratio, result.output_ratio)
    failed = {how: count for how, count in result.ended_otherwise.items() if how not in EXPECTED}
    return [
        (
            f"memory grew by {result.growth_mb:.1f} MB, at most {MOST_GROWTH_MB:g}",
            result.growth_mb <= MOST_GROWTH_MB,
        ),
        (f"{result.held:g} sequences and KV tokens held in the end, at most 0", result.held == 0),
        (
            f"the sidecars count {ratios[0]:.1%} and {ratios[1]:.1%} of the engines', within 1 %",
            all(abs(ratio - 1) <= MOST_COUNT_ERROR for ratio in ratios),
        ),
        (f"{result.served} served, {failed or 'none'} failed", result.served > 0 and not failed),
        (
            f"{result.faults} faults and {result.left} abandoned streams, at least one each",
            result.faults > 0 and result.left > 0,
        ),
    ]


def run(sizes: Sizes, seed: int, out: Path) -> Result:
    """Run the experiment once."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, pool = out / "scenario.yaml", folder / "pool.yaml"
    file.write_text(SCENARIO.format(duration=sizes.duration))
    pool.write_text(POOL)
    with (
        backends("vllm", folder, ENGINES, (), SLOTS) as engines,
        sidecars(folder, pool, engines, (), None) as front,
    ):
        before = _engine_tokens(engines)
        process = load(file, front, out / "run", seed, "soak")
        with _meanwhile(front, sizes, seed) as seen:
            finished(process, sizes.duration + 120)
        held = _held_in_the_end(front)
        counted = _sidecar_tokens(front)
        spent = [after - first for after, first in zip(_engine_tokens(engines), before, strict=True)]
    return _result(read_run(out / "run"), sizes, seed, seen, held, counted, spent)


@dataclass
class _Observations:
    """Samples, faults and abandoned streams during the load."""

    memory_mb: list[list[float]]
    """The samples of each sidecar."""
    faults: int = 0
    left: int = 0


@contextlib.contextmanager
def _meanwhile(front: Front, sizes: Sizes, seed: int) -> Iterator[_Observations]:
    """Sample memory, cause faults and abandon streams during the context."""
    seen = _Observations([[] for _ in front.urls])
    over = threading.Event()
    threads = [
        threading.Thread(target=work)
        for work in (
            lambda: _sample(front, seen, over),
            lambda: _cause_faults(front, seen, sizes.fault_every, over),
            lambda: asyncio.run(_abandon_streams(front, seen, seed, over)),
        )
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _sample(front: Front, seen: _Observations, over: threading.Event) -> None:
    while not over.wait(SAMPLE_S):
        for number, samples in enumerate(seen.memory_mb):
            samples.append(front.parts[f"sidecar{number}"].resident_mb())


def _cause_faults(front: Front, seen: _Observations, every_s: float, over: threading.Event) -> None:
    redis, coordinator, sidecar = (front.parts[name] for name in ("redis", "coordinator", "sidecar1"))
    faults = cycle(((_pause, redis), (_restart, coordinator), (_pause, sidecar), (_restart, redis)))
    while not over.wait(every_s):
        fault, process = next(faults)
        fault(process)
        seen.faults += 1


def _pause(process: Process) -> None:
    with process.paused():
        time.sleep(STILL_S)


def _restart(process: Process) -> None:
    process.kill()
    time.sleep(STILL_S)
    process.start().wait_ready()


async def _abandon_streams(front: Front, seen: _Observations, seed: int, over: threading.Event) -> None:
    """Begin streams, and disconnect in the middle of them."""
    chance = random.Random(seed)
    body = {"model": "small", "prompt": [5] * 32, "max_tokens": 200, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(headers={"authorization": "Bearer impatient-key"}) as session:
        while not over.is_set():
            await asyncio.sleep(chance.expovariate(1 / IMPATIENT_EVERY_S))
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                url = f"{chance.choice(front.urls)}/v1/completions"
                async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(10)) as answer:
                    await answer.content.readany()
                    await asyncio.sleep(chance.uniform(0, 1))
                seen.left += 1


def _held_in_the_end(front: Front) -> float:
    """The capacity held after the last request. Waits up to ``IDLE_S`` until it is 0."""
    deadline = time.monotonic() + IDLE_S
    while held := sum(map(_held, front.states)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return held


def _held(state: str) -> float:
    with urllib.request.urlopen(state, timeout=10) as response:
        entitlements = json.load(response)["entitlements"]
    return float(sum(sum(e["in_use"].values()) for e in entitlements.values()))


def _sidecar_tokens(front: Front) -> list[float]:
    """The sidecars' counters of input tokens, cached ones included, and of output tokens."""
    pages = [state.replace("/debug/state", "/metrics") for state in front.states]
    by_kind = {
        kind: total(pages, "tokenpool_tokens_total", kind=kind) for kind in ("input", "cached", "output")
    }
    return [by_kind["input"] + by_kind["cached"], by_kind["output"]]


def _engine_tokens(engines: Sequence[Backend]) -> list[float]:
    pages = [f"{engine.url}/metrics" for engine in engines]
    return [total(pages, f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")]


def _result(
    run_: Run,
    sizes: Sizes,
    seed: int,
    seen: _Observations,
    held: float,
    counted: Sequence[float],
    spent: Sequence[float],
) -> Result:
    ended = Counter(attempt.outcome for attempt in run_.attempts)
    served = ended.pop(Outcome.SERVED, 0)
    quarters = [_quarters(samples) for samples in seen.memory_mb]
    return Result(
        seed,
        served,
        {str(outcome): count for outcome, count in ended.items()},
        seen.left,
        seen.faults,
        max(second for second, _ in quarters),
        max(last - second for second, last in quarters),
        held,
        counted[0] / spent[0],
        counted[1] / spent[1],
        spent[1] / sizes.duration,
    )


def _quarters(samples_kb: Sequence[float]) -> tuple[float, float]:
    """The means of the second and the last quarter, in megabytes. Memory pools fill in the first quarter."""
    quarter = max(len(samples_kb) // 4, 1)
    second, last = samples_kb[quarter : 2 * quarter] or samples_kb, samples_kb[-quarter:]
    return fmean(second), fmean(last)
