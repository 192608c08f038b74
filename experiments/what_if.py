"""What if: ``tokenpool simulate`` predicts a live replay of a real trace.

The live run has real processes: Redis, a coordinator, and a sidecar for each simulated engine. ``loadgen``
replays a part of the two Azure traces, which four tenants of three tiers share. ``tokenpool simulate`` gets
the same requests as CSV, the same pool file, and the sizes and speeds of the same engine. The sheds of both
are compared, in total and for each tenant.

    python -m experiments what-if --traces FOLDER

Rates and lengths are scaled to the machine. The order and the ratios of lengths are those of the trace. The
goal: the predicted sheds are within 10 % of those of the live run.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.processes import MODEL, backends, finished, load, sidecars
from loadgen.records import Outcome
from loadgen.records import load as read_run
from loadgen.workloads import azure
from loadgen.workloads.selection import Selection, select
from toolbox.processes import module

OUT = Path(__file__).parent.parent / "out" / "what_if"
FILES = {"conversation": "azure-llm-2023-conv.csv.gz", "code": "azure-llm-2023-code.csv.gz"}
TENANTS: Mapping[str, tuple[str, float, str]] = {
    "premium": ("conversation", 0.2, "tier: guaranteed, guarantee: {concurrency: 4}"),
    "chat": ("conversation", 0.5, "tier: elastic"),
    "batch": ("conversation", 0.3, "tier: spot"),
    "code": ("code", 1.0, "tier: elastic, weight: 2"),
}
"""For each tenant its trace, its part of the trace's requests, and its entitlement."""
MOST_ERROR = 0.10
POOL = """\
pools:
  - name: pool
    models: [{model}]
    replica: {{concurrency: {slots}}}
    replicas: {{min: {engines}, max: {engines}}}
entitlements:
"""
SCENARIO = """\
name: what if
model: {model}
duration_s: {duration:g}
drain_s: 60
spread: random
tenants:
"""


@dataclass(frozen=True)
class Sizes:
    """The part of the trace, and the engines that serve it."""

    from_s: float = 0.0
    """The start of the part, in seconds of the trace."""
    seconds: float = 180.0
    """The duration of the live run."""
    rate: float = 2.0
    """The factor on the trace's rates."""
    lengths: float = 0.25
    """The factor on the trace's lengths."""
    engines: int = 2
    slots: int = 8
    step_s: float = 0.03
    per_prompt_token_s: float = 0.0001


class Request(NamedTuple):
    """One request of the trace."""

    tenant: str
    at_s: float
    input_tokens: int
    output_tokens: int


@dataclass
class Result:
    """The sheds of both runs."""

    requests: int
    live: dict[str, int]
    """Shed requests by tenant."""
    predicted: dict[str, int]
    live_reasons: dict[str, int] = field(default_factory=dict)
    predicted_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The error of the total, as a part of the live total."""
        live = sum(self.live.values())
        return abs(sum(self.predicted.values()) - live) / live if live else float("inf")


def trace(folder: Path, sizes: Sizes, seed: int) -> Iterator[Request]:
    """The requests of all tenants, in the order of each trace."""
    chance = random.Random(seed)
    part = Selection(
        start_s=sizes.from_s,
        duration_s=sizes.seconds * sizes.rate,
        speed=sizes.rate,
        lengths=sizes.lengths,
    )
    for name, file in FILES.items():
        tenants = {tenant: share for tenant, (source, share, _) in TENANTS.items() if source == name}
        for traced in select(azure.read(folder / file), part, folder / file, file).requests:
            tenant = chance.choices(list(tenants), list(tenants.values()))[0]
            yield Request(tenant, traced.at_s, traced.input_tokens, traced.output_tokens)


def run(folder: Path, sizes: Sizes, seed: int, out: Path) -> Result:
    """Replay the trace live, predict it, and compare."""
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    requests = list(trace(folder, sizes, seed))
    files = _write(out, requests, sizes)
    with (
        backends("simulator", parts, sizes.engines, ("--like", str(files.engine)), sizes.slots) as engines,
        sidecars(parts, files.pool, engines, (), None) as front,
    ):
        process = load(files.scenario, front, out / "live", seed, "live")
        finished(process, sizes.seconds + 180)
    live, live_reasons = _live(out / "live")
    predicted = _predicted(files, sizes, seed)
    rows = predicted["entitlements"]
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row["reasons"])
    return Result(
        len(requests),
        live,
        {row["entitlement"]: row["refused"] for row in rows},
        dict(live_reasons),
        dict(reasons),
    )


@dataclass(frozen=True)
class Files:
    """The files of one run."""

    pool: Path
    scenario: Path
    engine: Path
    records: Path


def _write(out: Path, requests: Sequence[Request], sizes: Sizes) -> Files:
    files = Files(out / "pool.yaml", out / "scenario.yaml", out / "engine.json", out / "records.csv")
    entitlements = "".join(
        f"  - {{name: {name}, pool: pool, api_keys: [{name}-key], {more}}}\n"
        for name, (_, _, more) in TENANTS.items()
    )
    files.pool.write_text(POOL.format(model=MODEL, slots=sizes.slots, engines=sizes.engines) + entitlements)
    longest = max(inputs + outputs for _, _, inputs, outputs in requests)
    window = -(-longest // 16) * 16
    files.engine.write_text(
        json.dumps(
            {
                "slots": sizes.slots,
                "block_size": 16,
                "window": window,
                "blocks": sizes.slots * window // 16,
                "step_s": sizes.step_s,
                "per_sequence_s": 0.0,
                "per_prompt_token_s": sizes.per_prompt_token_s,
                "per_request_s": 0.0,
            }
        )
    )
    lines = SCENARIO.format(model=MODEL, duration=sizes.seconds)
    for name in TENANTS:
        own = [request for request in requests if request[0] == name]
        (out / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"at": at, "input": inputs, "output": outputs}) + "\n"
                for _, at, inputs, outputs in own
            )
        )
        lines += f"  - {{name: {name}, key: {name}-key, trace: {{lines: {{file: {name}.jsonl}}}}}}\n"
    files.scenario.write_text(lines)
    with files.records.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(("entitlement", "time", "input_tokens", "output_tokens"))
        writer.writerows(requests)
    return files


def _live(folder: Path) -> tuple[dict[str, int], Counter[str]]:
    """The shed requests of a run of the load generator, by tenant, and by reason."""
    shed = dict.fromkeys(TENANTS, 0)
    reasons: Counter[str] = Counter()
    for attempt in read_run(folder).attempts:
        if attempt.outcome in (Outcome.SHED, Outcome.UNAVAILABLE):
            shed[attempt.tenant] += 1
            reasons[attempt.reason] += 1
    return shed, reasons


def _predicted(files: Files, sizes: Sizes, seed: int) -> dict[str, Any]:
    """The output of ``tokenpool simulate --json``."""
    command = [*module("cli"), "simulate", str(files.pool), "--records", str(files.records)]
    command += ["--engine", str(files.engine), "--replicas", str(sizes.engines), "--states-bound"]
    command += ["--seed", str(seed), "--json"]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(results: Iterable[tuple[int, Result]]) -> str:
    """The results as Markdown: for each seed and tenant, the sheds of both runs."""
    lines = ["| seed | tenant | live | predicted |", "| --- | --- | ---: | ---: |"]
    for seed, result in results:
        for name in TENANTS:
            lines.append(f"| {seed} | {name} | {result.live[name]} | {result.predicted.get(name, 0)} |")
        live, predicted = sum(result.live.values()), sum(result.predicted.values())
        lines.append(f"| {seed} | all of {result.requests} | {live} | {predicted} ({result.error:.1%}) |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment, and return 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments what-if", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="the folder of the Azure traces")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs [3]")
    parser.add_argument("--seconds", type=float, default=Sizes.seconds, help="duration of a run, s")
    parser.add_argument("--from", type=float, default=0.0, dest="from_s", help="start within the trace, s")
    parser.add_argument("--rate", type=float, default=Sizes.rate, help="factor on the trace's rates")
    parser.add_argument("--lengths", type=float, default=Sizes.lengths, help="factor on the trace's lengths")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    sizes = Sizes(
        from_s=arguments.from_s,
        seconds=arguments.seconds,
        rate=arguments.rate,
        lengths=arguments.lengths,
    )
    results = []
    for seed in range(1, arguments.seeds + 1):
        results.append((seed, run(arguments.traces, sizes, seed, arguments.out / str(seed))))
        print(results[-1][1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [{"seed": seed, **asdict(result)} for seed, result in results]
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=1))
    print("\n" + table(results))
    return 0 if all(result.error <= MOST_ERROR for _, result in results) else 1
