"""Prices by prefix: reservations, coverage, and the first requests of a new replica. Pure: no processes.

The shipped ``Pricer`` prices generated requests, and learns from them. It is compared with itself without
prefixes, which is one quantile per route. There are two kinds of workloads:

- *templates*: ten prompt templates in equal parts, with median outputs from 10 to 1,500 tokens.
- *traces*: real requests from the folder ``--traces``. The two Azure traces are one workload: code and
  conversations behind one route, each with its own prefix. The prefixes of Mooncake's conversations follow
  from its hash ids (blocks of 512 tokens).

The pricer learns from a request only after ``IN_FLIGHT`` later ones were priced.

New replicas are examined after their first requests. The distribution of each template's outputs is known,
so the coverage of a reservation is computed exactly, and not counted. A reservation that is learned from few
outputs is itself random. So the promise holds for the mean over many replicas. The standard deviation tells
how far a single replica is from it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean, median, pstdev
from typing import NamedTuple

from loadgen.workloads import azure, mooncake
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Ask, Cost, EngineShape, Pricer, Usage
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
CHECKPOINTS = (0, 1, 5, 20, 50, 100, 200, 500, 1000)
"""The numbers of requests after which a new replica is examined."""
TOGETHER, READ_EVERY = 4, 50
"""Replicas that start together, and the requests of each between two exchanges of their statistics."""


class Sizes(NamedTuple):
    """The size of the measurement."""

    requests: int = 40_000
    """Requests of the mix of templates. The first twentieth is not measured."""
    replicas: int = 200
    """New replicas, each in its own pool. The mean coverage of a template has an error of 0.2 to 0.4
    points."""
    taught: int = 1500
    """Requests that each of the three other replicas of such a pool has served."""
    until: int = CHECKPOINTS[-1]
    """Requests of a new replica after which it is examined for the last time."""


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

    def covered(self, bound: int) -> float:
        """The exact share of its outputs that are at most ``bound`` tokens. ``draw`` rounds them."""
        return NormalDist(math.log(self.output), self.spread).cdf(math.log(bound + 0.5))


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


def azure_traces(folder: Path) -> Iterator[Drawn]:
    """The requests of both Azure traces, in the order of their times."""
    rows = [
        (row.at_s, name, row.input_tokens, row.output_tokens)
        for name in ("code", "conv")
        for row in azure.read(folder / f"azure-llm-2023-{name}.csv.gz")
    ]
    for _, name, tokens, output in sorted(rows):
        ask = Ask(text_bytes=tokens * BYTES_PER_TOKEN, target=TARGET, prefixes=(ord(name[2]),))
        yield Drawn(name, ask, Usage(tokens, output))


def mooncake_trace(folder: Path) -> Iterator[Drawn]:
    """The requests of Mooncake's conversations. A prefix has the blocks that lie in it, or begin in it."""
    for row in mooncake.read(folder / "mooncake-conversation.jsonl.gz"):
        size = row.input_tokens * BYTES_PER_TOKEN
        prefixes = tuple(
            hash(row.blocks[: -(-length // (mooncake.BLOCK * BYTES_PER_TOKEN))]) & (1 << 56) - 1
            for length in PREFIX_BYTES
            if size >= length
        )
        ask = Ask(text_bytes=size, target=TARGET, prefixes=prefixes)
        yield Drawn("conversation", ask, Usage(row.input_tokens, row.output_tokens))


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
    flight: list[tuple[Drawn, Ask, Cost]] = []
    for number, drawn in enumerate(requests):
        ask = drawn.ask if by_prefix else drawn.ask.changed(prefixes=())
        cost = pricer.price(ask, SHAPE)
        if number * 20 >= len(requests):
            result.reserved += cost.output_tokens
            result.produced += drawn.usage.output_tokens
            is_covered = drawn.usage.output_tokens <= cost.output_tokens
            result.covered.setdefault(drawn.name, []).append(is_covered)
            result.by_expert += cost.expert > 0
        flight.append((drawn, ask, cost))
        if len(flight) > IN_FLIGHT:
            learned, asked, priced_at = flight.pop(0)
            pricer.learn(asked, learned.usage, priced_at, running=len(flight))
    return result


@dataclass
class Start:
    """New replicas after some requests."""

    requests: int
    input_error: float
    """The median error of input estimates."""
    covered: dict[str, float]
    """The covered share of outputs by template, as the mean over the replicas."""
    spread: float
    """The standard deviation of one template's coverage at one replica, as the mean over the templates."""

    @property
    def coverage(self) -> float:
        """The coverage of the mix."""
        return fmean(self.covered.values())

    @property
    def is_good(self) -> bool:
        """Whether the input error, and the coverage of each template, are within their bounds."""
        furthest = max(abs(share - PROMISE) for share in self.covered.values())
        return self.input_error <= MOST_INPUT_ERROR and furthest <= LEEWAY


def starts(sizes: Sizes, seed: int, *, others: int = 0, together: int = 1) -> list[Start]:
    """Examine new replicas with requests that they do not learn from.

    Each starts from the statistics of ``others``. If several start ``together``, they exchange what they
    have learned every ``READ_EVERY`` requests, and one of them is examined.
    """
    counts = [count for count in CHECKPOINTS if count <= sizes.until]
    errors: dict[int, list[float]] = {count: [] for count in counts}
    covered: dict[int, dict[str, list[float]]] = {
        count: {template.name: [] for template in TEMPLATES} for count in counts
    }
    for number in range(sizes.replicas):
        first = seed * 1_000_000 + 1000 * number
        parts = [taught(first + other, sizes.taught) for other in range(1, others + 1)]
        group = [(made(parts=parts), mix(first + 100 * place, sizes.until)) for place in range(together)]
        pricer, chance = group[0][0], random.Random(f"examined {first}")
        for before, count in pairwise((0, *counts)):
            for served in range(before + 1, count + 1):
                for each, arriving in group:
                    drawn = next(arriving)
                    each.learn(drawn.ask, drawn.usage)
                if together > 1 and served % READ_EVERY == 0:
                    exchange([each for each, _ in group])
            for place, template in enumerate(TEMPLATES):
                drawn = draw(chance, place)
                cost = pricer.price(drawn.ask, SHAPE)
                errors[count].append(abs(cost.input_tokens / drawn.usage.input_tokens - 1))
                covered[count][template.name].append(template.covered(cost.output_tokens))
    return [
        Start(
            count,
            median(errors[count]),
            {name: fmean(shares) for name, shares in covered[count].items()},
            fmean(pstdev(shares) for shares in covered[count].values()),
        )
        for count in counts
    ]


def exchange(pricers: Sequence[Pricer]) -> None:
    """Each pricer reads the statistics of all others."""
    stated = [pricer.statistics() for pricer in pricers]
    for place, pricer in enumerate(pricers):
        for _ in pricer.lend([*stated[:place], *stated[place + 1 :]]):
            pass


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
    together: list[Start]
    """Of ``TOGETHER`` replicas, which start at one time."""
    from_pool: list[Start]
    """From the statistics of three others."""


def run(sizes: Sizes, seed: int, traces: Path | None) -> Result:
    """Measure all workloads. Without a folder of traces only the mix of templates."""
    workloads = {"ten templates": list(mix(seed, sizes.requests))}
    if traces is not None:
        workloads["Azure, code and conversations"] = list(azure_traces(traces))
        workloads["Mooncake, conversations"] = list(mooncake_trace(traces))
    return Result(
        {
            name: (measure(requests, by_prefix=True), measure(requests, by_prefix=False))
            for name, requests in workloads.items()
        },
        starts(sizes, seed),
        starts(sizes, seed, together=TOGETHER),
        starts(sizes, seed, others=3),
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
    curves = (result.alone, result.together, result.from_pool)
    lines += [
        "",
        "| requests of a new replica | input error, alone | together | from the pool | coverage, alone"
        " | together | from the pool | lowest and highest template, alone | together | from the pool"
        " | deviation, alone | together | from the pool |",
        "| --- |" + " --- |" * 12,
    ]
    for row in zip(*curves, strict=True):
        cells = [f"{start.input_error:.1%}" for start in row]
        cells += [f"{start.coverage:.3f}" for start in row]
        cells += [f"{min(start.covered.values()):.3f}, {max(start.covered.values()):.3f}" for start in row]
        cells += [f"{start.spread:.3f}" for start in row]
        lines.append(f"| {row[0].requests} | {' | '.join(cells)} |")
    for name, curve in zip(("alone", "together", "from the pool"), curves, strict=True):
        counts = " | ".join(str(start.requests) for start in curve)
        lines += ["", f"| template, {name} | {counts} |", "| --- |" + " --- |" * len(curve)]
        for template in curve[0].covered:
            shares = " | ".join(f"{start.covered[template]:.3f}" for start in curve)
            lines.append(f"| {template} | {shares} |")
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
            f"prices: a new replica is within bounds for each template from {pool:.0f} requests on,"
            f" at most {WITHIN_REQUESTS}",
            pool <= WITHIN_REQUESTS,
        ),
        (f"prices: without the pool it needs more ({alone:.0f})", alone > WITHIN_REQUESTS),
    ]
