"""``loadgen sweep``: runs at rising rates, and the knee of their rate-latency curve."""

from __future__ import annotations

from typing import Protocol

import msgspec

from loadgen import words
from loadgen.rates import knee
from loadgen.rates.ladder import next_rate
from loadgen.rates.outcome import Result, Tell, write
from loadgen.rates.points import kept_up, rate_text
from loadgen.rates.steps import Steps, own_rate


class Rates(Protocol):
    """The options of a sweep."""

    rates: list[float] | None
    """Requests per second; ``None`` chooses them."""
    resolution: float
    most_runs: int


def sweep(steps: Steps, options: Rates, tell: Tell) -> Result:
    """Run at each rate, find the knee, and write the report into the folder of ``steps``."""
    first = own_rate(steps.order.scenario)
    while (rate := _next(steps, options, first)) is not None:
        tell(f"run {steps.count + 1}{_of(options)}: {rate_text(rate)}")
        made = steps.step(rate)
        if made is None:
            break
        ttft = made.whole.ttft.p99
        tell(f"  time to first token p99 {words.estimate(ttft, rate=False)}; keeps up: {kept_up(made)}")
    found = knee.find(list(steps.points.values()))
    marks = [("knee", found.at)] if found.at is not None and not found.is_open else []
    result = Result("sweep", knee.told(found), msgspec.to_builtins(found), marks, "knee")
    write(steps, result)
    return result


def _next(steps: Steps, options: Rates, first: float) -> float | None:
    if options.rates is not None:
        return options.rates[steps.count] if steps.count < len(options.rates) else None
    if steps.count >= options.most_runs:
        return None
    return next_rate(list(steps.points.values()), first, options.resolution)


def _of(options: Rates) -> str:
    return f" of at most {options.most_runs}" if options.rates is None else f" of {len(options.rates)}"
