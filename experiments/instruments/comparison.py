"""The tables of the results, and the goals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import linear_regression
from typing import Any

from experiments.instruments.running import Result

OURS = "loadgen"
BETWEEN, FIRST_S = 0.01, 0.004
"""The goals: the relative error between tokens, and the error before the first token."""
FULL_RATE = 300.0

_HEAD = (
    "| requested, /s | instrument | sent, /s | served | first token P50, P99, ms | mean | engine | error, ms"
    " | server late, ms"
    " | between tokens P50, ms | mean | engine | error, % | end to end P50, ms | mean | engine | CPU, s |"
)


def between_error(result: Result) -> float | None:
    """The relative difference from the engine's own time between tokens."""
    if result.figures is None or result.own is None or not result.own.between_mean_s:
        return None
    return result.figures.between_mean_s / result.own.between_mean_s - 1


def first_error_s(result: Result) -> float | None:
    """The difference from the engine's own time to first token, s."""
    if result.figures is None or result.own is None:
        return None
    return result.figures.ttft_mean_s - result.own.ttft_mean_s


def table(results: Sequence[Result]) -> str:
    """A row for each run."""
    lines = [_HEAD, "| --- |" + " --- |" * (_HEAD.count("|") - 2)]
    lines += [_row(result) for result in sorted(results, key=lambda result: result.rate)]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    made, own = result.figures, result.own
    start = f"| {result.rate:g} | {result.instrument} |"
    if made is None or own is None:
        return start + f" {result.problem or 'the engine served nothing'} |" + " |" * 14
    first, between = first_error_s(result), between_error(result)
    slow = "" if result.keeps_up else " (too slow)"
    late = "-" if own.delay_mean_s is None else _ms(own.delay_mean_s)
    return start + (
        f" {made.rate:.1f}{slow} | {made.served} of {result.requests}"
        f" | {_ms(made.ttft_p50_s)}, {_ms(made.ttft_p99_s)} | {_ms(made.ttft_mean_s)}"
        f" | {_ms(own.ttft_mean_s)} | {1000 * (first or 0.0):+.1f} | {late}"
        f" | {1000 * made.between_p50_s:.2f} | {1000 * made.between_mean_s:.2f}"
        f" | {1000 * own.between_mean_s:.2f} | {100 * (between or 0.0):+.2f}"
        f" | {1000 * made.e2e_p50_s:.0f} | {1000 * made.e2e_mean_s:.0f} | {1000 * own.e2e_mean_s:.0f}"
        f" | {result.cpu_s:.1f} |"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def cost_table(results: Sequence[Result]) -> str:
    """CPU time by instrument: of the start, and of 1,000 requests, by a line through its runs."""
    lines = [
        "| instrument | CPU of 1,000 requests, s | of the start, s | highest rate kept up, /s |",
        "| --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(result.instrument for result in results):
        runs = [result for result in results if result.instrument == name and result.keeps_up]
        highest = f"{max(result.rate for result in runs):g}" if runs else "none"
        cost, start = "-", "-"
        if len({run.requests for run in runs}) > 1:
            line = linear_regression([run.requests for run in runs], [run.cpu_s for run in runs])
            cost, start = f"{1000 * line.slope:.2f}", f"{line.intercept:.1f}"
        lines.append(f"| {name} | {cost} | {start} | {highest} |")
    return "\n".join(lines) + "\n"


def server_is_late(result: Result) -> bool:
    """Whether the simulator itself was later than the goal before the first token allows."""
    late_s = result.own.delay_mean_s if result.own is not None else None
    return late_s is not None and late_s > FIRST_S


def notes(results: Sequence[Result]) -> list[str]:
    """The runs of loadgen whose first tokens are not judged, because the server was late itself."""
    return [
        f"{OURS} at {result.rate:g}/s: the time to first token is not judged,"
        f" because the simulator itself was {_ms(result.own.delay_mean_s)} ms late"
        for result in results
        if result.instrument == OURS
        and server_is_late(result)
        and result.own is not None
        and result.own.delay_mean_s is not None
    ]


def goals(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """The goals of loadgen, and whether each is reached."""
    found = []
    for result in results:
        if result.instrument != OURS:
            continue
        at = f"{OURS} at {result.rate:g}/s"
        first, between = first_error_s(result), between_error(result)
        if first is None or between is None:
            found.append((f"{at}: {result.problem or 'the engine served nothing'}", False))
            continue
        found.append((f"{at}: {100 * between:+.2f} % between tokens, within 1 %", abs(between) <= BETWEEN))
        if not server_is_late(result):
            text = f"{at}: {1000 * first:+.1f} ms before the first token, within 4 ms"
            found.append((text, abs(first) <= FIRST_S))
        if result.rate == FULL_RATE:
            text = f"{at}: sends {result.figures.rate if result.figures else 0.0:.1f}/s from one core"
            found.append((text, result.keeps_up))
    return found


def record(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """The results as JSON."""
    rows = [
        asdict(result)
        | {
            "keeps_up": result.keeps_up,
            "between_error": between_error(result),
            "first_error_s": first_error_s(result),
        }
        for result in results
    ]
    return about | {"results": rows}
