"""One point of a rate-latency curve: the numbers of one rate, and whether the server kept up with it. Pure.

A server keeps up with a rate if it serves at least ``LEAST_SERVED`` of the requests, and if the number of
requests in flight does not grow. Its means in two short windows are compared: at the end of the measured
time, and at its start. Without a warm-up, the first window begins when the first requests had time to end.
The measured time should be at least four times that latency.
The number grows if the difference is more than ``MOST_GROWTH`` of the arrivals between the windows, and more
than chance explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from loadgen import words
from loadgen.intervals import Series
from loadgen.records import AS_PLANNED, Attempt, Outcome, PhaseMeta, Run, Sample, Stall
from loadgen.statistics import Estimate, percentile
from loadgen.summary import EVERYONE, WHOLE, Cell, Summary, requests, spans, summarise
from loadgen.trust import worst

LEAST_SERVED = 0.95
MOST_GROWTH = 0.05
_DEVIATIONS = 2.0
_WINDOWS = 10
"""The measured time divided by a window in which requests in flight are counted."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One rate. Rates are per second, times are seconds."""

    rate: float
    """The requests per second of all tenants that the run was set to."""
    runs: int
    """The number of runs, each with its own seed."""
    seconds: float
    """The measured time of all runs."""
    requests: int
    due_per_s: float
    """The requests that were due, per second. It differs from ``rate`` by chance."""
    served: float
    """The share of requests that were served."""
    served_per_s: float
    """The requests whose answers ended within the measured time, per second."""
    latency_mean: Estimate | None
    """End to end, of served requests."""
    power: Estimate | None
    """Served requests per second, divided by the mean latency."""
    growth: float
    """The growth of the number of requests in flight, as a share of the arrivals."""
    obstacle: str
    """The reason why the rate was not kept up with; empty if it was."""
    is_reliable: bool
    """Whether the generator kept up itself."""
    summary: Summary

    @property
    def keeps_up(self) -> bool:
        """Whether the server kept up, by a reliable measurement."""
        return not self.obstacle

    @property
    def whole(self) -> Cell:
        """The numbers of all tenants together."""
        return self.summary.cell(EVERYONE, WHOLE) or next(c for c in self.summary.cells if c.phase == WHOLE)

    def tenant(self, name: str) -> Cell | None:
        """The numbers of one tenant."""
        return self.summary.cell(name, WHOLE)


def pooled(runs: Sequence[Run]) -> Run:
    """Runs of one rate as one run: their measured times follow each other. ``runs`` is not empty.

    Requests outside the measured times are left out. Of the pages, those of engines are kept, because a
    simulated one says there whether it kept up. Each run has its own counters.
    """
    meta, attempts, stalls, at_s = runs[0].meta, list[Attempt](), list[Stall](), 0.0
    samples: list[Sample] = []
    for number, run in enumerate(runs):
        whole = spans(run.meta)[0]
        by = at_s - whole.from_s
        attempts += [
            _moved(a, by, f"{number}:") for a in run.attempts if whole.from_s <= a.intended_s < whole.to_s
        ]
        stalls += [
            Stall(stall.at_s + by, stall.seconds)
            for stall in run.meta.stalls
            if whole.from_s <= stall.at_s < whole.to_s
        ]
        suffix = f" in run {number + 1}" if len(runs) > 1 else ""
        samples += [
            msgspec.structs.replace(sample, at_s=sample.at_s + by, source=sample.source + suffix)
            for sample in run.samples
            if sample.kind == "engine"
        ]
        at_s += whole.to_s - whole.from_s
    starved = max((run.meta for run in runs), key=lambda each: each.waited)
    complaints = list(dict.fromkeys(text for run in runs for text in run.meta.complaints))
    changed: dict[str, object] = {
        "duration_s": at_s, "ended_s": max((a.end_s for a in attempts), default=at_s),
        "phases": list[PhaseMeta](),
        "warm_up_s": 0.0, "cool_down_s": 0.0, "complaints": complaints,
        "is_interrupted": any(run.meta.is_interrupted for run in runs),
        "loop": worst(each for run in runs for each in run.meta.loop),
        "stalls": stalls, "waited": starved.waited, "ran": starved.ran,
    }  # fmt: skip
    return Run(runs[0].folder, msgspec.structs.replace(meta, **changed), attempts, samples)


_TIMES = ("intended_s", "due_s", "sent_s", "first_s", "last_s", "end_s")
"""The fields of an attempt that count from the start of its run."""


def _moved(attempt: Attempt, by: float, prefix: str) -> Attempt:
    times: dict[str, object] = {
        name: at + by for name in _TIMES if (at := getattr(attempt, name)) is not None
    }
    return msgspec.structs.replace(attempt, **times, request=prefix + attempt.request)


def point(rate: float, runs: Sequence[Run]) -> Point:
    """The point of a rate, from one run or from several with different seeds. ``runs`` is not empty."""
    run = pooled(runs)
    meta = run.meta
    last = [tries[-1] for tries in requests(run.attempts)]
    served = [attempt for attempt in last if attempt.outcome is Outcome.SERVED]
    kept = sum(attempt.outcome in AS_PLANNED for attempt in last) / len(last) if last else 1.0
    seconds, per_s = meta.duration_s, sum(map(_completed, runs)) / meta.duration_s
    latency = _mean_latency(served)
    grown, is_growing = _growth(runs)
    summary = summarise(run)
    return Point(
        rate=rate,
        runs=len(runs),
        seconds=seconds,
        requests=len(last),
        due_per_s=len(last) / seconds,
        served=len(served) / len(last) if last else 1.0,
        served_per_s=per_s,
        latency_mean=latency,
        power=_power(per_s, latency),
        growth=grown,
        obstacle=_obstacle(kept, grown, summary, meta.complaints, is_growing=is_growing),
        is_reliable=not meta.complaints,
        summary=summary,
    )


def _obstacle(
    kept: float, grown: float, summary: Summary, complaints: Sequence[str], *, is_growing: bool
) -> str:
    if not any(cell.requests for cell in summary.cells):
        return "no request was due"
    if complaints:
        return "the generator did not keep up"
    if kept < LEAST_SERVED:
        most = summary.failures[0]
        return f"{1 - kept:.0%} not served, most often: {most.reason}"
    return f"requests in flight grew by {grown:.0%} of the arrivals" if is_growing else ""


def _completed(run: Run) -> int:
    """The answers that ended within the measured time."""
    whole = spans(run.meta)[0]
    served = (attempt for attempt in run.attempts if attempt.outcome is Outcome.SERVED)
    return sum(whole.from_s <= attempt.end_s < whole.to_s for attempt in served)


def _growth(runs: Sequence[Run]) -> tuple[float, bool]:
    """The growth of requests in flight as a share of the arrivals, and whether it is more than chance."""
    before = after = arrivals = 0.0
    for run in runs:
        whole = spans(run.meta)[0]
        width = (whole.to_s - whole.from_s) / _WINDOWS
        last = [tries[-1] for tries in requests(run.attempts)]
        latest = whole.from_s + (whole.to_s - whole.from_s) / 4
        filled = min(max(whole.from_s, _filled_s(last, latest)), latest)
        before += _in_flight(last, filled, filled + width)
        after += _in_flight(last, whole.to_s - width, whole.to_s)
        arrivals += sum(filled + width / 2 <= attempt.intended_s < whole.to_s - width / 2 for attempt in last)
    grown = after - before
    share = grown / arrivals if arrivals else 0.0
    # The number in flight of a server that keeps up is about Poisson distributed.
    return share, share > MOST_GROWTH and grown > _DEVIATIONS * math.sqrt(2 * max(before, 1.0))


def _filled_s(last: Sequence[Attempt], until: float) -> float:
    """The latency that nearly all of the earliest requests had, which is the time that a server fills in."""
    early = sorted(
        a.end_s - a.intended_s for a in last if a.intended_s < until and a.outcome is Outcome.SERVED
    )
    return percentile(early, 0.9) if early else 0.0


def _in_flight(last: Sequence[Attempt], from_s: float, to_s: float) -> float:
    """The mean number of requests in flight between two times."""
    spent = (min(attempt.end_s, to_s) - max(attempt.intended_s, from_s) for attempt in last)
    return sum(max(overlap, 0.0) for overlap in spent) / (to_s - from_s)


def _mean_latency(served: Sequence[Attempt]) -> Estimate | None:
    ordered = sorted(served, key=lambda attempt: attempt.intended_s)
    return Series([attempt.end_s - attempt.intended_s for attempt in ordered]).mean()


def _power(per_s: float, latency: Estimate | None) -> Estimate | None:
    if latency is None or latency.value <= 0:
        return None
    low, high = (per_s / end if end else None for end in (latency.high, latency.low))
    return Estimate(per_s / latency.value, low, high)


def kept_up(made: Point) -> str:
    """Whether a rate was kept up with, in words."""
    return "yes" if made.keeps_up else f"no: {made.obstacle}"


def rate_text(value: float) -> str:
    """A rate in words."""
    return f"{words.amount(value)} requests/s"
