"""Real traces as tenants of three tiers: prices, refusals, waits and use of the pool from a quarter to four
times its capacity.

Azure's code trace is guaranteed, Azure's conversations are elastic, and Mooncake's conversations are spot.
Their requests come in the order and in the ratio of the traces. Lengths are divided by 4 (Azure) and by 16
(Mooncake), and times by a stated factor, so that one machine can serve them. Prompts are texts, so the
sidecars estimate their tokens; their words are made up, because the traces have lengths only.

Two measurements:

- *whole traces*: the shipped ``Pricer`` prices each request of the whole traces, without processes. The
  number of requests makes the coverage exact to half a point.
- *live*: Redis, a coordinator, sidecars with default options, and engines. An engine is vLLM, or the
  simulator with the costs of a real vLLM (``--like``; without it a vLLM is measured first). A collector of
  traces receives the estimate and the usage of each request from the sidecars.

    python -m experiments traces --traces FOLDER --engine simulator
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import msgspec

from experiments import fidelity, prices, recorded
from experiments.goals import report
from experiments.processes import MODEL, backends, finished, load, own_core, sidecars
from experiments.recorded import SOURCES, Phase
from experiments.service import sequence_seconds
from loadgen.engine.model import LIKE_COSTS, Costs, LikeError, read_like
from loadgen.fields import ScenarioError
from loadgen.rates.options import positive
from loadgen.records import REFUSED, Attempt, Outcome, Run
from loadgen.records import load as read_run
from loadgen.scenario import Trace
from tokenpool.pricing.cost import Ask, Cost, Usage
from toolbox.collector import Span, collecting
from toolbox.percentiles import percentile
from toolbox.pictures import Line, Panel, Picture, keep

OUT = Path(__file__).parent.parent / "out" / "traces"
LOADS = (0.25, 0.5, 1.0, 2.0, 4.0)
ENGINES, SLOTS = 2, 8
SLOWER = 5.0
"""Two cores carry the load generator, the sidecars and the simulators. They could not send the requests of
two engines at their real speed."""
PROMISE, LEEWAY, MOST_INPUT_ERROR = 0.9, 0.02, 0.05
LEAST_FINISHED = 200
"""The fewest finished requests for which a live coverage is judged: with fewer, it varies by 2 points."""
WINDOW = 1000
"""Requests of a part of the whole traces, whose coverage is stated by itself."""
FIRST_S, TOKEN_S = 0.1, 0.015
"""The durations of a request without output, and of an output token, in the computed part."""
FLAGS = ("--window", "4096", "--max-num-batched-tokens", "4096", "--enable-prompt-tokens-details")
VLLM_FLAGS = ("--max-model-len", "4096", "--enable-prompt-tokens-details")
POOL = """\
pools:
  - name: pool
    models: [{model}]
    replica: {{concurrency: {slots}}}
    replicas: {{min: {engines}, max: {engines}}}
entitlements:
{entitlements}"""
SCENARIO = """\
name: traces
model: {model}
duration_s: {duration:g}
drain_s: 20
spread: random
endpoint: chat
tokenizer: engine
tenants:
{tenants}phases:
{phases}"""


@dataclass(frozen=True)
class Sizes:
    """The engines and the phases of the live measurement."""

    engines: int = ENGINES
    slots: int = SLOTS
    loads: tuple[float, ...] = LOADS
    seconds: float = 40.0
    """The duration of each phase."""
    from_s: float = 1080.0
    """The start within the traces. After it, the code trace has no long gap."""

    @property
    def duration(self) -> float:
        """The duration of all phases."""
        return self.seconds * len(self.loads)


class Priced(NamedTuple):
    """One request as a sidecar priced it, and as it ended."""

    tenant: str
    at_s: float
    """Seconds since 1970."""
    input_estimate: int
    output_reserved: int
    most_output: int
    """The request's bound, which is its length in the trace."""
    ending: str
    """``finished``, ``preempted``, ...; empty for a refused request."""
    input_tokens: int
    """As the engine counted it; 0 without usage."""

    @property
    def is_covered(self) -> bool:
        """Whether the reservation was enough for the length in the trace, also if the request was cut."""
        return self.output_reserved >= self.most_output

    @property
    def input_error(self) -> float:
        """The relative error of the estimate, with its sign."""
        return self.input_estimate / self.input_tokens - 1


@dataclass(frozen=True)
class Prices:
    """The prices of one tenant: in a phase, in all phases, or in a whole trace."""

    requests: int
    """Served or cut requests."""
    input_error: float
    """Median of the relative errors without their signs; NaN if the prompts are not priced."""
    input_error_p90: float
    coverage: float
    reserved_ratio: float
    """Reserved divided by actual output tokens."""


@dataclass(frozen=True)
class Point:
    """One tenant in one phase."""

    load: float
    tenant: str
    requests: int
    served: int
    refused: Mapping[str, int]
    """By reason."""
    preempted: int
    other: int
    """Requests that failed in another way."""
    ttft_p50_s: float
    ttft_p99_s: float
    prices: Prices


@dataclass(frozen=True)
class Result:
    """One live run."""

    engine: str
    seed: int
    engines: int
    slots: int
    capacity: float
    """Requests per second at load 1, of the mean request."""
    points: list[Point]
    tenants: dict[str, Prices]
    """All phases together."""
    used: dict[str, float]
    """The share of all slots that generated tokens, by phase."""
    tokens_per_s: dict[str, float]
    """Output tokens per second, by phase."""
    complaints: list[str]


class Whole(NamedTuple):
    """One whole trace, priced without processes."""

    prices: Prices
    windows: list[float]
    """The coverage of each ``WINDOW`` requests."""


# --- the whole traces ---


def whole(trace: Trace) -> Whole:
    """Price all requests of a trace at their times. Each teaches at its end: ``FIRST_S`` later, and then
    ``TOKEN_S`` for each output token.

    So shorter outputs teach earlier than longer ones, as on an engine.
    """
    pricer = prices.made()
    running: list[tuple[float, int, Ask, Usage, Cost]] = []
    covered: list[bool] = []
    reserved = produced = 0
    for number, each in enumerate(trace.requests):
        while running and running[0][0] <= each.at_s:
            _, _, ask, usage, cost = heapq.heappop(running)
            pricer.learn(ask, usage, cost, running=len(running))
        ask = Ask(text_bytes=each.input_tokens * prices.BYTES_PER_TOKEN, target=prices.TARGET)
        usage, cost = Usage(each.input_tokens, each.output_tokens), pricer.price(ask, prices.SHAPE)
        end = each.at_s + FIRST_S + TOKEN_S * each.output_tokens
        heapq.heappush(running, (end, number, ask, usage, cost))
        covered.append(each.output_tokens <= cost.output_tokens)
        reserved += cost.output_tokens
        produced += each.output_tokens
    windows = [fmean(covered[n : n + WINDOW]) for n in range(0, len(covered) - WINDOW + 1, WINDOW)]
    found = Prices(len(covered), float("nan"), float("nan"), fmean(covered), reserved / produced)
    return Whole(found, windows)


# --- live ---


def pool_file(sizes: Sizes) -> str:
    """The pool file."""
    entitlements = "".join(
        f"  - {{name: {name}, pool: pool, api_keys: [{name}-key], {source.terms}}}\n"
        for name, source in SOURCES.items()
    )
    return POOL.format(model=MODEL, slots=sizes.slots, engines=sizes.engines, entitlements=entitlements)


def scenario(traces: Mapping[str, str], plan: Sequence[Phase]) -> str:
    """The scenario file for loadgen. ``traces`` has the ``trace:`` of each tenant."""
    tenants = "".join(
        f"  - {{name: {name}, key: {name}-key, tier: {SOURCES[name].tier}, trace: {trace}}}\n"
        for name, trace in traces.items()
    )
    named = "".join(
        f"  - {{name: {phase.name}, from: {phase.from_s:g}, to: {phase.to_s:g}}}\n" for phase in plan
    )
    return SCENARIO.format(model=MODEL, duration=plan[-1].to_s, tenants=tenants, phases=named)


def calibrated(out: Path) -> Path:
    """The file of costs of a real vLLM, which is measured now."""
    file = out / "engine.json"
    parts = out / "calibration"
    parts.mkdir(parents=True, exist_ok=True)
    with backends("vllm", parts, 1, VLLM_FLAGS, SLOTS) as (engine,), own_core(engine):
        fidelity.calibrate(engine, file)
    return file


def costs_of(file: Path) -> Costs:
    """The costs in a file of ``loadgen.engine.calibrate``. Raises ``LikeError``."""
    found = read_like(file)
    for name in LIKE_COSTS[:4]:
        if name not in found:
            raise LikeError(f"{file}: has no {name}; write it with python -m loadgen.engine.calibrate")
    return Costs(
        found["step_s"], found["per_sequence_s"], found["per_prompt_token_s"], found["per_request_s"]
    )


def slowed(file: Path, factor: float, out: Path) -> Path:
    """A copy of a file of costs in which each cost is ``factor`` times as long. Raises ``LikeError``."""
    found = read_like(file)
    made = out / "slower.json"
    made.write_text(json.dumps({name: v * factor if name in LIKE_COSTS else v for name, v in found.items()}))
    return made


def run(
    traces: Mapping[str, Trace], kind: str, sizes: Sizes, like: Path, seed: int, out: Path
) -> tuple[Result, list[Priced]]:
    """Replay the traces once. ``like`` has the costs of the engine. An earlier run is replaced."""
    shutil.rmtree(out / "run", ignore_errors=True)
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    requests = recorded.merged(traces, sizes.from_s)
    work = recorded.engine_seconds(requests, traces, costs_of(like), sizes.slots)
    plan = recorded.phases(sizes.loads, sizes.seconds)
    written = recorded.write(recorded.replayed(requests, work, plan, sizes.engines), out)
    capacity = sizes.engines / fmean(work)
    file, pool = out / "scenario.yaml", parts / "pool.yaml"
    file.write_text(scenario(written, plan))
    pool.write_text(pool_file(sizes))
    flags = VLLM_FLAGS if kind == "vllm" else (*FLAGS, "--like", str(like))
    with (
        collector() as (url, spans),
        backends(kind, parts, sizes.engines, flags, sizes.slots) as engines,
        own_core(engines[0]),
    ):
        with sidecars(parts, pool, engines, ("--otlp-endpoint", url), None) as front:
            finished(load(file, front, out / "run", seed, kind), sizes.duration + 240)
        found = priced(spans)  # the sidecars have ended, and sent all of their spans
    (out / "priced.json").write_bytes(msgspec.json.encode(found))
    return result_of(read_run(out / "run"), found, sizes, plan, capacity, kind), found


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector of traces in a thread of its own: its URL, and the spans that it has received."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = collecting()
    made = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    try:
        yield made.url, made.spans
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def priced(spans: Sequence[Span]) -> list[Priced]:
    """The priced requests, in the order of their arrival. The spans of other requests do not count."""
    requests = {(span.trace_id, span.id): span for span in spans if span.kind == "server"}
    found = []
    for span in spans:
        server = requests.get((span.trace_id, span.parent))
        if span.name != "price" or server is None or "gen_ai.request.max_tokens" not in server.attributes:
            continue
        said = server.attributes
        found.append(
            Priced(
                said["tokenpool.entitlement"],
                server.start_ns / 1e9,
                span.attributes["tokenpool.cost.input_tokens"],
                span.attributes["tokenpool.cost.output_tokens"],
                said["gen_ai.request.max_tokens"],
                said.get("tokenpool.ending", "") if "tokenpool.reason" not in said else "",
                said.get("gen_ai.usage.input_tokens", 0),
            )
        )
    return sorted(found, key=lambda each: each.at_s)


def summed(found: Sequence[Priced]) -> Prices:
    """The prices of the requests that an engine began."""
    began = [each for each in found if each.ending]
    errors = [abs(each.input_error) for each in began if each.ending == "finished" and each.input_tokens]
    return Prices(
        len(began),
        percentile(errors, 0.5),
        percentile(errors, 0.9),
        fmean([each.is_covered for each in began]) if began else float("nan"),
        sum(each.output_reserved for each in began) / max(sum(each.most_output for each in began), 1),
    )


def result_of(
    run_: Run, found: Sequence[Priced], sizes: Sizes, plan: Sequence[Phase], capacity: float, kind: str
) -> Result:
    """The figures of a recorded run."""
    began = datetime.fromisoformat(run_.meta.started).timestamp()
    points, used, tokens = [], {}, {}
    for phase in plan:
        inside = [each for each in found if phase.from_s <= each.at_s - began < phase.to_s]
        for tenant in SOURCES:
            due = [
                a for a in run_.attempts if a.tenant == tenant and phase.from_s <= a.intended_s < phase.to_s
            ]
            points.append(_point(phase.load, tenant, due, [e for e in inside if e.tenant == tenant]))
        length = phase.to_s - phase.from_s
        busy = sum(sequence_seconds(run_, SOURCES, phase.from_s, phase.to_s).values())
        used[phase.name] = busy / (sizes.engines * sizes.slots * length)
        done = [a for a in run_.attempts if phase.from_s <= a.end_s < phase.to_s]
        tokens[phase.name] = sum(a.tokens for a in done) / length
    return Result(
        kind,
        run_.meta.seed,
        sizes.engines,
        sizes.slots,
        capacity,
        points,
        {tenant: summed([each for each in found if each.tenant == tenant]) for tenant in SOURCES},
        used,
        tokens,
        run_.meta.complaints,
    )


def _point(load: float, tenant: str, due: Sequence[Attempt], found: Sequence[Priced]) -> Point:
    outcomes = Counter(attempt.outcome for attempt in due)
    refused = Counter(attempt.reason for attempt in due if attempt.outcome in REFUSED)
    firsts = [attempt.first_s - attempt.intended_s for attempt in due if attempt.first_s is not None]
    served, preempted = outcomes[Outcome.SERVED], outcomes[Outcome.PREEMPTED]
    return Point(
        load,
        tenant,
        len(due),
        served,
        dict(refused),
        preempted,
        len(due) - served - preempted - refused.total(),
        percentile(firsts, 0.5),
        percentile(firsts, 0.99),
        summed(found),
    )


# --- tables, goals and pictures ---


def tables(result: Result) -> str:
    """A live run as Markdown."""
    lines = [
        "| load | tenant | requests | served | refused | preempted | other | first token P50, ms | P99, ms"
        " | input error | coverage | reasons |",
        "| ---: | --- |" + " ---: |" * 9 + " --- |",
    ]
    for point in result.points:
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(point.refused.items()))
        lines.append(
            f"| {point.load:g} | {point.tenant} | {point.requests} | {point.served}"
            f" | {sum(point.refused.values())} | {point.preempted} | {point.other}"
            f" | {1000 * point.ttft_p50_s:.0f} | {1000 * point.ttft_p99_s:.0f}"
            f" | {point.prices.input_error:.1%} | {point.prices.coverage:.3f} | {reasons} |"
        )
    lines += ["", "| load | slots used | output tokens/s |", "| ---: | ---: | ---: |"]
    lines += [
        f"| {phase} | {used:.0%} | {result.tokens_per_s[phase]:.0f} |" for phase, used in result.used.items()
    ]
    return "\n".join(lines) + "\n\n" + prices_table(result.tenants)


def prices_table(tenants: Mapping[str, Prices]) -> str:
    """The prices by tenant as Markdown."""
    lines = [
        "| tenant | requests | input error, median | P90 | coverage | reserved / actual output |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in tenants.items():
        lines.append(
            f"| {name} | {each.requests:,} | {each.input_error:.1%} | {each.input_error_p90:.1%}"
            f" | {each.coverage:.3f} | {each.reserved_ratio:.2f} |"
        )
    return "\n".join(lines) + "\n"


def whole_table(found: Mapping[str, Whole]) -> str:
    """The whole traces as Markdown."""
    lines = [
        f"| tenant | requests | coverage | lowest and highest of {WINDOW:,} | reserved / actual output |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, each in found.items():
        ends = f"{min(each.windows):.3f}, {max(each.windows):.3f}" if each.windows else ""
        lines.append(
            f"| {name} | {each.prices.requests:,} | {each.prices.coverage:.3f} | {ends}"
            f" | {each.prices.reserved_ratio:.2f} |"
        )
    return "\n".join(lines) + "\n"


def goals(whole_: Mapping[str, Whole], results: Sequence[Result]) -> list[tuple[str, bool]]:
    """The goals, and whether each is reached."""
    found = [
        (
            f"whole trace, {name}: coverage {each.prices.coverage:.3f}, within {LEEWAY} of {PROMISE}",
            abs(each.prices.coverage - PROMISE) <= LEEWAY,
        )
        for name, each in whole_.items()
    ]
    for result in results:
        where = f"{result.engine}, seed {result.seed}"
        for name, own in result.tenants.items():
            if not own.requests:
                continue
            text = f"{where}, {name}: input error {own.input_error:.1%}, at most {MOST_INPUT_ERROR:.0%}"
            found.append((text, own.input_error <= MOST_INPUT_ERROR))
            if own.requests >= LEAST_FINISHED:
                text = f"{where}, {name}: coverage {own.coverage:.3f}, within {LEEWAY} of {PROMISE}"
                found.append((text, abs(own.coverage - PROMISE) <= LEEWAY))
        refused = sum(
            sum(point.refused.values())
            for point in result.points
            if point.tenant == "code" and point.load <= 1
        )
        found.append((f"{where}: {refused} guaranteed requests refused up to load 1, none", refused == 0))
    return found


def picture(result: Result) -> Picture:
    """The curves of a live run over the load."""
    names = {name: f"{name} ({source.tier})" for name, source in SOURCES.items()}

    def lines(read: str, scale: float = 1.0) -> tuple[Line, ...]:
        return tuple(
            Line(
                label,
                tuple(
                    (point.load, value * scale if (value := float(_read(point, read))) == value else None)
                    for point in result.points
                    if point.tenant == tenant
                ),
            )
            for tenant, label in names.items()
        )

    slots = Line("slots in use", tuple((float(name[:-1]), 100 * used) for name, used in result.used.items()))
    return Picture(
        "Real traces from a quarter to four times the capacity",
        f"{result.engine}, engines: {result.engines}, slots of each: {result.slots}; load 1 is"
        f" {result.capacity:.1f} requests/s; seed {result.seed}",
        "offered work, times the capacity",
        (
            Panel("P99 of the time to first token, ms", lines("ttft", 1000), is_log=True, has_dots=True),
            Panel("Refused or preempted requests, %", lines("refused", 100), has_dots=True),
            Panel("Slots in use, %", (slots,), has_dots=True),
            Panel("Error of input tokens, median, %", lines("input", 100), has_dots=True, levels=(5.0,)),
            Panel(
                "Requests inside their reservation of output, %",
                lines("coverage", 100),
                has_dots=True,
                levels=(88.0, 92.0),
                ends=(70.0, 100.0),
            ),
        ),
        is_log=True,
        ticks=tuple(dict.fromkeys(point.load for point in result.points)),
    )


def _read(point: Point, what: str) -> float:
    if what == "ttft":
        return point.ttft_p99_s
    if what == "refused":
        return (point.requests - point.served) / point.requests if point.requests else float("nan")
    return point.prices.input_error if what == "input" else point.prices.coverage


def whole_picture(found: Mapping[str, Whole]) -> Picture:
    """The coverage of the whole traces over their requests."""
    return Picture(
        "Requests inside their reservation of output, over the whole traces",
        f"each point has {WINDOW:,} requests; promised are 90 %, dashed is the goal of 2 points",
        "requests of the trace, thousands",
        (
            Panel(
                "Covered, %",
                tuple(
                    Line(name, tuple((n + 0.5, 100 * share) for n, share in enumerate(each.windows)))
                    for name, each in found.items()
                ),
                has_dots=True,
                levels=(88.0, 92.0),
                ends=(80.0, 100.0),
            ),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements, and return 1 if a goal is missed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        traces = recorded.read(arguments.traces.resolve())
        recorded.merged(traces, arguments.from_s)
        if arguments.like is not None:
            costs_of(arguments.like)
    except (LikeError, ScenarioError) as error:
        parser.error(str(error))
    found = {name: whole(trace) for name, trace in traces.items()}
    print("whole traces, computed\n\n" + whole_table(found), flush=True)
    if all(each.windows for each in found.values()):
        keep(whole_picture(found), arguments.out / "whole.svg")
    results = [] if arguments.computed else _live(arguments, traces)
    return report(goals(found, results))


def _live(arguments: argparse.Namespace, traces: Mapping[str, Trace]) -> list[Result]:
    like = arguments.like or calibrated(arguments.out)
    if arguments.engine == "simulator":
        like = slowed(like, arguments.slower, arguments.out)
    sizes = Sizes(
        1 if arguments.engine == "vllm" else ENGINES,
        SLOTS,
        tuple(arguments.loads),
        arguments.seconds,
        arguments.from_s,
    )
    results = []
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        out = arguments.out / arguments.engine / str(seed)
        out.mkdir(parents=True, exist_ok=True)
        result, _ = run(traces, arguments.engine, sizes, like, seed, out)
        results.append(result)
        keep(picture(result), out / "load.svg")
        (out / "result.json").write_text(json.dumps(asdict(result), indent=1))
        heading = f"{result.engine}, seed {seed}, load 1 is {result.capacity:.1f} requests/s"
        print(f"\n{heading} {' '.join(result.complaints)}\n\n{tables(result)}", flush=True)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments traces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traces", type=Path, required=True, help="the folder of the traces")
    parser.add_argument("--engine", choices=("vllm", "simulator"), default="vllm")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="costs of the engine [measure a vLLM first]"
    )
    parser.add_argument(
        "--slower",
        type=positive,
        default=SLOWER,
        metavar="FACTOR",
        help=f"the simulator takes this many times as long, and gets fewer requests [{SLOWER:g}]",
    )
    parser.add_argument("--computed", action="store_true", help="only the whole traces, without processes")
    parser.add_argument("--loads", type=_loads, default=LOADS, help="parts of the capacity [0.25,0.5,1,2,4]")
    parser.add_argument("--seconds", type=float, default=Sizes.seconds, help="duration of each load, s [40]")
    parser.add_argument(
        "--from", type=float, default=Sizes.from_s, dest="from_s", help="start within the traces, s [1080]"
    )
    parser.add_argument("--seeds", type=int, default=1, help="live runs [1]")
    parser.add_argument("--seed", type=int, default=1, help="the first seed [1]")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    return parser


def _loads(text: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers above 0, such as 0.5,1,2") from None
