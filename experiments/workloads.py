"""Recorded workloads: short parts of public traces and of a data set run against the simulated engine.

``loadgen run`` sends parts of the two Azure traces, of Mooncake's conversations, and of a data set of
conversations that is made here. Each prompt must have its length, by the engine's count. The hits of the
engine's prefix cache are compared with those that follow from Mooncake's hash ids, for several cache sizes.

    python -m experiments workloads --traces FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from experiments import metrics
from experiments.processes import MODEL, Front, backends, finished, load
from loadgen.reading import read
from loadgen.records import Outcome
from loadgen.records import load as read_run
from loadgen.scenario import Trace
from loadgen.workloads.prefix_hits import hits

OUT = Path(__file__).parent.parent / "out" / "workloads"
MOST_ERROR = 0.01
"""The largest relative error of the hits."""
MOST_WRONG = 0.01
"""The largest share of prompts of another length. A prompt cannot be shorter than the chat template."""
BLOCK_SIZE = 16
UNBOUNDED = 1 << 20
"""Blocks of a cache that evicts nothing here."""
ENGINE = (
    *("--window", "16384", "--max-num-batched-tokens", "16384", "--enable-prompt-tokens-details"),
    *("--step", "0.001", "--per-sequence", "0", "--per-prompt-token", "0.000002"),
)
"""Fast, so that requests overlap little. The order of the ends of overlapping requests changes evictions."""
SLOTS = 128
ONE_BY_ONE = "arrivals: {closed: {workers: 1}}"
DRAIN_S = 60
SCENARIO = """\
name: {name}
model: {model}
duration_s: {seconds:g}
drain_s: {drain}
{top}
tenants:
  - {{name: tenant, {tenant}}}
"""


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    trace: str
    """The value of the tenant's ``trace:``."""
    top: str = "prompt: ids"
    """A line of the scenario for the form of its prompts."""
    more: str = ""
    """Further fields of the tenant."""
    blocks: int = UNBOUNDED
    overlaps: bool = True
    """Whether requests are sent at their times, or one after the other."""


@dataclass(frozen=True)
class Result:
    """What was sent, and what the engine reported."""

    name: str
    blocks: int
    overlaps: bool
    requests: int
    served: int
    wrong_lengths: int
    """Prompts of another length than asked."""
    prompt_tokens: int
    hits: int
    """The engine's hits, in tokens."""
    expected: int | None
    """The hits that follow from the trace; ``None`` for a trace without hash ids."""

    @property
    def error(self) -> float:
        """The relative error of the hits; 0 for a trace without hash ids."""
        return abs(self.hits / self.expected - 1) if self.expected else 0.0

    @property
    def is_reached(self) -> bool:
        """Whether all requests were served, with their lengths, and the hits are as expected."""
        is_exact = self.wrong_lengths <= MOST_WRONG * self.requests
        # Overlapping requests hold blocks and end in another order, so a bounded cache evicts others.
        is_expected = self.error <= MOST_ERROR or (self.overlaps and self.blocks < UNBOUNDED)
        return self.served == self.requests > 0 and is_exact and is_expected


def cases(folder: Path, seconds: float) -> Iterator[Case]:
    """The runs. Rates are factors of the traces' own."""
    window = f"duration_s: {10 * seconds:g}, speed: 10"
    for name in ("conv", "code"):
        azure = f"{folder}/azure-llm-2023-{name}.csv.gz"
        part = f"{{azure: {{file: {azure}, duration_s: {3 * seconds:g}, speed: 3, lengths: 0.25}}}}"
        yield Case(f"Azure {name}, chat", part, "endpoint: chat\ntokenizer: engine")
    made = "{sharegpt: {file: talks.json, turns: each}}"
    arrivals = "arrivals: {poisson: {rate: 10}}"
    yield Case("conversations, chat", made, "endpoint: chat\ntokenizer: engine", arrivals)
    trace = f"{{mooncake: {{file: {folder}/mooncake-conversation.jsonl.gz, {window}, lengths: 0.0625}}}}"
    yield Case("Mooncake, text", trace, "tokenizer: engine")
    for blocks in (UNBOUNDED, 16_384, 4_096):
        yield Case("Mooncake", trace, blocks=blocks)
    for blocks in (16_384, 8_192, 4_096):
        yield Case("Mooncake, one by one", trace, more=ONE_BY_ONE, blocks=blocks, overlaps=False)


def talks(seed: int, count: int = 200) -> list[dict[str, object]]:
    """A data set of conversations in the form of ShareGPT, of random words."""
    chance = random.Random(f"{seed} talks")
    vocabulary = (
        "how",
        "do",
        "I",
        "find",
        "the",
        "best",
        "road",
        "to",
        "a",
        "city",
        "without",
        "snow",
        "please",
    )

    def said(most: int) -> str:
        return " ".join(chance.choices(vocabulary, k=chance.randint(3, most)))

    return [
        {
            "conversations": [
                {"from": who, "value": said(most)}
                for _ in range(chance.randint(1, 5))
                for who, most in (("human", 60), ("gpt", 120))
            ]
        }
        for _ in range(count)
    ]


def run(case: Case, seconds: float, seed: int, out: Path) -> Result:
    """One run against a new engine with an empty cache."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "talks.json").write_text(json.dumps(talks(seed)))
    scenario = out / "scenario.yaml"
    tenant = f"trace: {case.trace}" + (f", {case.more}" if case.more else "")
    scenario.write_text(
        SCENARIO.format(
            name=case.name.lower(), model=MODEL, seconds=seconds, drain=DRAIN_S, top=case.top, tenant=tenant
        )
    )
    flags = (*ENGINE, "--blocks", str(case.blocks))
    with backends("simulator", out, 1, flags, SLOTS) as (engine,):
        finished(load(scenario, Front([engine.url]), out / "run", seed, case.name), seconds + 2 * DRAIN_S)
        found = metrics.total([f"{engine.url}/metrics"], "vllm:prefix_cache_hits_total")
    attempts = read_run(out / "run").attempts
    trace = read(scenario, {}).tenants[0].trace
    assert trace is not None
    return Result(
        case.name,
        case.blocks,
        case.overlaps,
        len(attempts),
        sum(attempt.outcome is Outcome.SERVED for attempt in attempts),
        sum(attempt.prompt_tokens != attempt.input_tokens for attempt in attempts),
        sum(attempt.prompt_tokens for attempt in attempts),
        round(found),
        _expected(trace, len(attempts), case.blocks),
    )


def _expected(trace: Trace, count: int, blocks: int) -> int | None:
    """The hits of so many requests of a trace, which begins again after its end."""
    if not trace.block_tokens:
        return None
    sent = tuple(islice(cycle(trace.requests), count))
    return hits(replace(trace, requests=sent), BLOCK_SIZE, blocks)


HEAD = """\
| workload | KV blocks | requests | other lengths | prompt tokens | cached tokens | from the trace | error |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(result: Result) -> str:
    """A row of the table."""
    blocks = "no bound" if result.blocks == UNBOUNDED else f"{result.blocks:,}"
    compared = "| | " if result.expected is None else f"| {result.expected:,} | {result.error:.2%} "
    return (
        f"| {result.name} | {blocks} | {result.requests:,} | {result.wrong_lengths} "
        f"| {result.prompt_tokens:,} | {result.hits:,} {compared}|"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments workloads", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="the folder of the traces")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of a run, s [30]")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the load [1]")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    results = []
    print(HEAD, flush=True)
    for number, case in enumerate(cases(arguments.traces.resolve(), arguments.seconds)):
        results.append(run(case, arguments.seconds, arguments.seed, arguments.out / str(number)))
        print(line(results[-1]), flush=True)
    (arguments.out / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 0 if all(result.is_reached for result in results) else 1
