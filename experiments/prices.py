"""Prices by prefix: reservations, coverage, and the first requests of a new replica. Pure: no processes.

The shipped ``Pricer`` prices generated requests, and learns from them. It is compared with itself without
prefixes, which is one quantile per route. There are two kinds of workloads:

- *templates*: ten prompt templates in equal parts, with median outputs from 10 to 1,500 tokens.
- *traces*: real requests from the folder ``--traces``. The two Azure traces are one workload: code and
  conversations behind one route, each with its own prefix. The prefixes of Mooncake's conversations follow
  from its hash ids (blocks of 512 tokens).

The pricer learns from a request only after ``IN_FLIGHT`` later ones were priced.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Ask, EngineShape, Pricer, Usage
from tokenpool.pricing.learned_costs import PREFIX_BYTES
from tokenpool.pricing.statistics import EntitlementStatistics

SHAPE = EngineShape(16, None)
TARGET = ("/v1/chat/completions", "m")
IN_FLIGHT = 8
PROMISE, LEEWAY = 0.9, 0.02
MOST_INPUT_ERROR = 0.05
LEAST_SAVING = 0.30
WITHIN_REQUESTS = 20
BYTES_PER_TOKEN = 4
CHECKPOINTS = (0, 5, 10, 20, 50, 100, 200, 300, 500, 1000)
"""The numbers of requests after which a new replica is examined."""


class Sizes(NamedTuple):
    """The size of the measurement."""

    requests: int = 40_000
    """Requests of the mix of templates. The first twentieth is not measured."""
    replicas: int = 100
    """New replicas, each in its own pool."""
    taught: int = 1500
    """Requests that each of the three other replicas of such a pool has served."""


class Template(NamedTuple):
    """A prompt template with its answers. The lengths of texts and outputs are lognormal."""

    name: str
    size: int
    """Bytes of the template itself."""
    text: float
    """Median bytes of the text that follows."""
    output: float
    """Median output tokens."""
    spread: float


TEMPLATES = (
    Template("route", 1200, 90, 10, 0.3),
    Template("classify", 1500, 150, 14, 0.3),
    Template("title", 2000, 400, 20, 0.4),
    Template("extract", 5000, 700, 40, 0.5),
    Template("sql", 6000, 150, 80, 0.5),
    Template("summary", 1800, 3000, 180, 0.4),
    Template("chat", 1300, 250, 260, 0.7),
    Template("translate", 1100, 1100, 420, 0.6),
    Template("code", 9000, 400, 700, 0.6),
    Template("report", 20000, 1100, 1500, 0.4),
)


class Drawn(NamedTuple):
    """One request with its usage, and the name of its template."""

    name: str
    ask: Ask
    usage: Usage


def draw(chance: random.Random, number: int) -> Drawn:
    """A request of the template ``number``: it has the template's prefixes, then those of its own text."""
    template = TEMPLATES[number]
    size = template.size + round(chance.lognormvariate(math.log(template.text), 0.6))
    prefixes = tuple(
        number * 10 + place if template.size >= length else chance.getrandbits(56)
        for place, length in enumerate(PREFIX_BYTES)
        if size >= length
    )
    tokens = round(23 + 0.24 * size * chance.gauss(1, 0.05))
    output = max(round(chance.lognormvariate(math.log(template.output), template.spread)), 1)
    return Drawn(template.name, Ask(text_bytes=size, target=TARGET, prefixes=prefixes), Usage(tokens, output))


def mix(seed: int, requests: int) -> Iterator[Drawn]:
    """Requests of all templates, in equal parts."""
    chance = random.Random(f"prices {seed}")
    for _ in range(requests):
        yield draw(chance, chance.randrange(len(TEMPLATES)))


def azure(folder: Path) -> Iterator[Drawn]:
    """The requests of both Azure traces, in the order of their times."""
    rows: list[tuple[str, str, int, int]] = []
    for name in ("code", "conv"):
        with gzip.open(folder / f"azure-llm-2023-{name}.csv.gz", "rt") as file:
            for row in csv.DictReader(file):
                rows.append((row["TIMESTAMP"], name, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    for _, name, tokens, output in sorted(rows):
        ask = Ask(text_bytes=tokens * BYTES_PER_TOKEN, target=TARGET, prefixes=(ord(name[2]),))
        yield Drawn(name, ask, Usage(tokens, output))


def mooncake(folder: Path) -> Iterator[Drawn]:
    """The requests of Mooncake's conversations. A prefix has the blocks that lie in it, or begin in it."""
    with gzip.open(folder / "mooncake-conversation.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            size = row["input_length"] * BYTES_PER_TOKEN
            prefixes = tuple(
                hash(tuple(row["hash_ids"][: -(-length // (512 * BYTES_PER_TOKEN))])) & (1 << 56) - 1
                for length in PREFIX_BYTES
                if size >= length
            )
            ask = Ask(text_bytes=size, target=TARGET, prefixes=prefixes)
            yield Drawn("conversation", ask, Usage(row["input_length"], row["output_length"]))


@dataclass
class Measured:
    """The reservations of one workload."""

    reserved: int = 0
    produced: int = 0
    covered: dict[str, list[bool]] = field(default_factory=dict)
    """Whether each output was inside its reservation, by template."""
    by_expert: int = 0

    @property
    def ratio(self) -> float:
        """Reserved divided by produced output tokens."""
        return self.reserved / self.produced

    @property
    def coverage(self) -> float:
        """The covered share of all requests."""
        return fmean(each for covered in self.covered.values() for each in covered)

    @property
    def distance(self) -> float:
        """The largest distance of a template's coverage from the promise."""
        return max(abs(fmean(covered) - PROMISE) for covered in self.covered.values())


def made(*, parts: Sequence[EntitlementStatistics] = ()) -> Pricer:
    """A new pricer that starts from the statistics of other sidecars."""
    pricer = Pricer(Entitlement("tenant", "pool", Tier.ELASTIC), Pricing())
    for _ in pricer.lend(parts):
        pass
    return pricer


def measure(requests: Sequence[Drawn], *, by_prefix: bool) -> Measured:
    """Price all requests, and measure after the first twentieth of them."""
    pricer, result = made(), Measured()
    flight: list[tuple[Drawn, Ask]] = []
    for number, drawn in enumerate(requests):
        ask = drawn.ask if by_prefix else drawn.ask._replace(prefixes=())
        cost = pricer.price(ask, SHAPE)
        if number * 20 >= len(requests):
            result.reserved += cost.output_tokens
            result.produced += drawn.usage.output_tokens
            is_covered = drawn.usage.output_tokens <= cost.output_tokens
            result.covered.setdefault(drawn.name, []).append(is_covered)
            result.by_expert += cost.expert > 0
        flight.append((drawn, ask))
        if len(flight) > IN_FLIGHT:
            learned, asked = flight.pop(0)
            pricer.learn(asked, learned.usage)
    return result


@dataclass
class Start:
    """New replicas after some requests."""

    requests: int
    input_error: float
    """The median error of input estimates."""
    coverage: float
    worst: float
    """The coverage of the template that is furthest from the promise."""

    @property
    def is_good(self) -> bool:
        """Whether error and coverage over all requests are within their bounds."""
        return self.input_error <= MOST_INPUT_ERROR and abs(self.coverage - PROMISE) <= LEEWAY


def starts(sizes: Sizes, seed: int, *, from_pool: bool) -> list[Start]:
    """Examine new replicas with requests that they do not learn from."""
    errors: dict[int, list[float]] = {count: [] for count in CHECKPOINTS}
    covered: dict[int, dict[str, list[bool]]] = {count: {} for count in CHECKPOINTS}
    for number in range(sizes.replicas):
        first = seed + 1000 * number
        parts = [taught(first + other, sizes.taught) for other in (1, 2, 3)] if from_pool else []
        pricer, chance = made(parts=parts), random.Random(f"examined {first}")
        arriving = mix(first, CHECKPOINTS[-1])
        for before, count in pairwise((0, *CHECKPOINTS)):
            for _ in range(count - before):
                drawn = next(arriving)
                pricer.learn(drawn.ask, drawn.usage)
            for template in range(len(TEMPLATES)):
                for _ in range(10):
                    name, ask, usage = draw(chance, template)
                    cost = pricer.price(ask, SHAPE)
                    errors[count].append(abs(cost.input_tokens / usage.input_tokens - 1))
                    is_covered = usage.output_tokens <= cost.output_tokens
                    covered[count].setdefault(name, []).append(is_covered)
    found = []
    for count in CHECKPOINTS:
        shares = [fmean(each) for each in covered[count].values()]
        worst = max(shares, key=lambda share: abs(share - PROMISE))
        found.append(Start(count, median(errors[count]), fmean(shares), worst))
    return found


def taught(seed: int, requests: int) -> EntitlementStatistics:
    """The statistics of a sidecar after some requests of the mix."""
    pricer = made()
    for drawn in mix(seed, requests):
        pricer.learn(drawn.ask, drawn.usage)
    return pricer.statistics()


def within(found: Sequence[Start]) -> float:
    """The number of requests from which on all starts are within the bounds; infinite if there is none."""
    needed = math.inf
    for start in reversed(found):
        if not start.is_good:
            break
        needed = start.requests
    return needed


@dataclass
class Result:
    """The measurement of one seed."""

    workloads: dict[str, tuple[Measured, Measured]]
    """Measured by prefix, and with one quantile per route."""
    alone: list[Start]
    from_pool: list[Start]


def run(sizes: Sizes, seed: int, traces: Path | None) -> Result:
    """Measure all workloads. Without a folder of traces only the mix of templates."""
    workloads = {"ten templates": list(mix(seed, sizes.requests))}
    if traces is not None:
        workloads["Azure, code and conversations"] = list(azure(traces))
        workloads["Mooncake, conversations"] = list(mooncake(traces))
    return Result(
        {
            name: (measure(requests, by_prefix=True), measure(requests, by_prefix=False))
            for name, requests in workloads.items()
        },
        starts(sizes, seed, from_pool=False),
        starts(sizes, seed, from_pool=True),
    )


def table(result: Result) -> str:
    """Markdown tables of a result."""
    lines = [
        "| workload | requests | reserved / produced, by prefix | per route | smaller by"
        " | coverage, by prefix | per route | template furthest from 0.9, by prefix | per route |",
        "| --- |" + " --- |" * 8,
    ]
    for name, (ours, route) in result.workloads.items():
        count = sum(len(covered) for covered in ours.covered.values())
        lines.append(
            f"| {name} | {count} | {ours.ratio:.2f} | {route.ratio:.2f} | {1 - ours.ratio / route.ratio:.1%}"
            f" | {ours.coverage:.3f} | {route.coverage:.3f} | {ours.distance:.3f} | {route.distance:.3f} |"
        )
    ours, route = result.workloads["ten templates"]
    lines += ["", "| template | coverage, by prefix | per route |", "| --- | --- | --- |"]
    for name, covered in ours.covered.items():
        lines.append(f"| {name} | {fmean(covered):.3f} | {fmean(route.covered[name]):.3f} |")
    lines += [
        "",
        "| requests of a new replica | input error, alone | from the pool | coverage, alone | from the pool"
        " | furthest template, alone | from the pool |",
        "| --- |" + " --- |" * 6,
    ]
    for alone, pool in zip(result.alone, result.from_pool, strict=True):
        lines.append(
            f"| {alone.requests} | {alone.input_error:.1%} | {pool.input_error:.1%} | {alone.coverage:.3f}"
            f" | {pool.coverage:.3f} | {alone.worst:.3f} | {pool.worst:.3f} |"
        )
    return "\n".join(lines) + "\n"


def goals(result: Result) -> list[tuple[str, bool]]:
    """The goals."""
    ours, route = result.workloads["ten templates"]
    saving = 1 - ours.ratio / route.ratio
    pool, alone = within(result.from_pool), within(result.alone)
    return [
        (f"prices: reservations are {saving:.1%} smaller, at least 30 %", saving >= LEAST_SAVING),
        (f"prices: coverage is {ours.coverage:.3f}, 0.9 ± 0.02", abs(ours.coverage - PROMISE) <= LEEWAY),
        (
            f"prices: the coverage of each template is within {ours.distance:.3f} of 0.9, at most 0.02",
            ours.distance <= LEEWAY,
        ),
        (
            f"prices: a new replica is within bounds from {pool:.0f} requests on, at most {WITHIN_REQUESTS}",
            pool <= WITHIN_REQUESTS,
        ),
        (f"prices: without the pool it needs more ({alone:.0f})", alone > WITHIN_REQUESTS),
    ]
