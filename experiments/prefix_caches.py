"""Prefix caches in one pool: a trace of conversations, replayed on simulated replicas with prefix caches.

The trace is Mooncake's conversation trace (``kvcache-ai/Mooncake``, Apache-2.0). It has arrival times,
lengths, and an id for each 512 tokens of the prompt. Equal ids mean equal text, so prompts are rebuilt from
them. All lengths are divided by ``SCALE``. Whole conversations are kept or omitted, so that their requests
still share prefixes. The order of arrivals and the ratios of the gaps between them stay.

``random`` sends each request to a random replica. ``router`` sends it to the replica that has seen the
longest part of its prompt, at any load. ``--options`` sets options of the sidecars.

    python -m experiments prefix-caches --trace mooncake-conversation.jsonl.gz --placement random,router
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import uvloop

from experiments import metrics
from experiments.fixed_pool import pool_file, running
from experiments.goals import report
from experiments.one_pool import why
from experiments.processes import MODEL
from experiments.queues import Shape
from loadgen.client import Client, Recipient
from loadgen.endpoints.dialect import bearer
from loadgen.endpoints.openai import COMPLETIONS
from loadgen.prompts import token_ids
from loadgen.records import Attempt, Outcome
from loadgen.scenario import Trace, Traced
from loadgen.workloads import mooncake
from loadgen.workloads.prefix_hits import best_share
from loadgen.workloads.rows import Row
from toolbox.percentiles import percentile

OUT = Path(__file__).parent.parent / "out" / "prefix_caches"
SCALE = 16
"""The divisor of all lengths."""
SHAPE = Shape(replicas=4, slots=8, tokens=21, step_s=0.02)
"""The mean response of the trace has 343 / 16 tokens."""
ENGINE = (
    *("--per-prompt-token", "0.0005", "--per-sequence", "0", "--enable-prompt-tokens-details"),
    *("--window", "8192", "--blocks", "4096", "--max-num-batched-tokens", "512"),
)
"""A mean prompt of 750 tokens takes 0.38 s without the cache. The cache holds the prompts of 90 requests."""
TIMEOUT_S = 60.0
TENANT = "a"
PLACEMENTS = ("random", "router")


@dataclass(frozen=True)
class Result:
    """One replay."""

    placement: str
    options: str
    requests: int
    served: int
    refused: dict[str, int]
    """Refused or failed requests, by reason."""
    hit_rate: float
    """The share of prompt tokens that engines found in their caches."""
    best_hit_rate: float
    """The same share for one cache without a bound, if every request is served."""
    ttft_p50_s: float
    ttft_p99_s: float
    finished: int
    handovers: dict[str, int]
    affinity: dict[str, int]
    """The number of requests that ran where their prompt was cached. Also the tokens expected and reported
    there beyond those expected at the first replica, and the error."""


def requests(rows: Sequence[Row], count: int, rate: float, seed: int) -> list[Traced]:
    """About ``count`` requests of whole conversations, at ``rate`` per second on average."""
    kept = [row for row in rows if _draw(row, seed) < count / len(rows)]
    span = kept[-1].at_s - kept[0].at_s
    factor = len(kept) / rate / span if span else 0.0
    return [
        Traced(
            (row.at_s - kept[0].at_s) * factor,
            max(row.input_tokens // SCALE, 1),
            max(row.output_tokens // SCALE, 1),
            row.blocks,
        )
        for row in kept
    ]


def _draw(row: Row, seed: int) -> float:
    """A number from 0 to 1 that all requests of a conversation share. All prompts begin with the same id."""
    conversation = row.blocks[1] if len(row.blocks) > 1 else row.at_s
    return random.Random(f"{seed} {conversation}").random()


def body(request: Traced) -> bytes:
    """The body of a request."""
    ids = [
        token
        for id_ in request.blocks
        for token in token_ids(mooncake.BLOCK // SCALE, "block", str(id_), seed=0)
    ]
    fields = {
        "model": MODEL,
        "prompt": msgspec.Raw(b"[" + b",".join(ids[: request.input_tokens]) + b"]"),
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(fields)


class Router:
    """Places requests at the replica that has seen the longest part of their prompts."""

    def __init__(self, replicas: int, chance: random.Random) -> None:
        self._replicas = replicas
        self._chance = chance
        self._seen: dict[int, int] = {}
        """The replica of each id."""

    def place(self, request: Traced) -> int:
        """The replica of the deepest known id. New conversations go to a random one."""
        chosen = self._chance.randrange(self._replicas)
        # All prompts share the first id, so it says nothing.
        for id_ in reversed(request.blocks[1:]):
            if id_ in self._seen:
                chosen = self._seen[id_]
                break
        self._seen.update(dict.fromkeys(request.blocks, chosen))
        return chosen


async def replay(
    replayed: Sequence[Traced], urls: Sequence[str], place: Callable[[Traced], int]
) -> list[Attempt]:
    """Send all requests at their times, and return them when all have ended."""
    attempts, zero = [], time.monotonic()

    def now() -> float:
        return time.monotonic() - zero

    to = Recipient(COMPLETIONS, {"Content-Type": "application/json", **bearer(f"{TENANT}-key")})
    async with (
        Client(list(urls), TIMEOUT_S, now) as client,
        asyncio.TaskGroup() as group,
    ):
        for number, request in enumerate(replayed):
            await asyncio.sleep(max(request.at_s - now(), 0.0))
            attempt = Attempt(
                TENANT, str(number), request.at_s, request.at_s, request.at_s, request.at_s,
                request.input_tokens, request.output_tokens, url=place(request),
            )  # fmt: skip
            attempts.append(attempt)
            group.create_task(client.perform(attempt, body(request), to))
    return attempts


def measure(
    replayed: Sequence[Traced], placement: str, options: Sequence[str], seed: int, out: Path
) -> Result:
    """Start a pool with empty caches, and replay the requests once."""
    chance = random.Random(f"{seed} placement")
    router = Router(SHAPE.replicas, chance)
    place = router.place if placement == "router" else lambda _: chance.randrange(SHAPE.replicas)
    pool, flags = pool_file(SHAPE, {TENANT: "tier: elastic"}), ("--step", f"{SHAPE.step_s:g}", *ENGINE)
    with running("simulator", SHAPE, flags, pool, options, out) as parts:
        before = parts.counts()
        attempts = uvloop.run(replay(replayed, parts.front.urls, place))
        counts = parts.counts() - before
        hits, asked = (
            metrics.total(parts.engine_pages, f"vllm:prefix_cache_{name}_total")
            for name in ("hits", "queries")
        )
        ours = parts.sidecar_pages
        affinity = metrics.by_label(ours, "tokenpool_affinity_tokens_total", "kind")
        affinity["requests"] = round(metrics.total(ours, "tokenpool_affinity_requests_total"))
    served = [attempt for attempt in attempts if attempt.outcome is Outcome.SERVED]
    firsts = [a.first_s - a.intended_s for a in served if a.first_s is not None]
    return Result(
        placement,
        shlex.join(options),
        len(attempts),
        len(served),
        dict(Counter(why(attempt) for attempt in attempts if attempt.outcome is not Outcome.SERVED)),
        hits / asked if asked else 0.0,
        best_share(Trace("", tuple(replayed), mooncake.BLOCK // SCALE)),
        percentile(firsts, 0.5),
        percentile(firsts, 0.99),
        counts.finished,
        dict(counts.handovers),
        dict(affinity),
    )


def goals(result: Result) -> list[tuple[str, bool]]:
    """The goals of a replay, and whether each is reached."""
    text = (
        f"{result.placement}: engines finished {result.finished} requests, exactly the {result.served} served"
    )
    return [(text, result.finished == result.served > 0)]


HEAD = """\
| placement | options | requests | refused, % | cache hits, % of tokens (best) | first token P50, ms | P99 \
| handovers | affinity | reasons |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(result: Result) -> str:
    """A row of the table."""
    refused = 100 * (1 - result.served / result.requests)
    return (
        f"| {result.placement} | {result.options} | {result.requests} | {refused:.2f}"
        f" | {100 * result.hit_rate:.1f} ({100 * result.best_hit_rate:.1f}) | {1000 * result.ttft_p50_s:.0f}"
        f" | {1000 * result.ttft_p99_s:.0f} | {result.handovers or '-'} | {result.affinity or '-'}"
        f" | {result.refused or ''} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Replay the trace with each placement, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments prefix-caches", description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="the file of the trace")
    parser.add_argument("--placement", default="random,router", help="random, router or both [random,router]")
    parser.add_argument("--requests", type=int, default=800, help="approximate number of requests [800]")
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second on average [8]")
    parser.add_argument("--seed", type=int, default=1, help="selects conversations and replicas [1]")
    parser.add_argument("--options", default="", help="options of the sidecars, in one argument")
    parser.add_argument("--out", default=str(OUT), help="the folder of the results")
    arguments = parser.parse_args(argv)
    placements = arguments.placement.split(",")
    if unknown := [name for name in placements if name not in PLACEMENTS]:
        parser.error(f"{unknown[0]!r} is not a placement; choose from {', '.join(PLACEMENTS)}")
    replayed = requests(
        list(mooncake.read(arguments.trace)), arguments.requests, arguments.rate, arguments.seed
    )
    options, out, results = shlex.split(arguments.options), Path(arguments.out), []
    print(HEAD, flush=True)
    for placement in placements:
        results.append(measure(replayed, placement, options, arguments.seed, out / placement))
        print(line(results[-1]), flush=True)
    (out / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    reached = [goal for result in results for goal in goals(result)]
    return report(reached)
