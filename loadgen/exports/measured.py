"""What other tools count: the measured requests by their last attempt, with times from the sending. Pure.

Other tools measure a request from its sending, and know no retries. So their formats take the last attempt of
each request, from its own sending. loadgen's own numbers count from the time when the request was due.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadgen.records import Attempt, Meta, Outcome, Run
from loadgen.statistics import Windows
from loadgen.summary import requests, spans, token_pieces


@dataclass(frozen=True, slots=True)
class Measured:
    """The requests that were due in the measured part of the run, by their due time."""

    meta: Meta
    lasts: list[Attempt]
    from_s: float
    due_until_s: float

    @property
    def duration_s(self) -> float:
        """From the start of the measured part to the last end of a request."""
        ends = max((last.end_s for last in self.lasts), default=self.due_until_s)
        return max(ends - self.from_s, 1e-9)

    @property
    def due_per_s(self) -> float:
        """The requests per second that were due."""
        return len(self.lasts) / max(self.due_until_s - self.from_s, 1e-9)

    @property
    def served(self) -> list[Attempt]:
        """The served requests."""
        return [last for last in self.lasts if last.outcome is Outcome.SERVED]

    def per_second(self, pieces: Iterable[tuple[float, float, float]]) -> list[float]:
        """Amounts as (from, to, amount) in each second of the measured part."""
        windows = Windows(self.duration_s, 1.0)
        return windows.spread((max(a - self.from_s, 0.0), b - self.from_s, amount) for a, b, amount in pieces)

    def output_per_second(self, lasts: Sequence[Attempt]) -> list[float]:
        """Output tokens in each second."""
        return self.per_second(token_pieces(lasts, prompts=False))

    def in_flight(self, lasts: Iterable[Attempt]) -> list[float]:
        """The mean number of requests in flight in each second."""
        return self.per_second((each.sent_s, each.end_s, each.end_s - each.sent_s) for each in lasts)


def measured(run: Run) -> Measured:
    """The measured requests of a run."""
    whole = spans(run.meta)[0]
    lasts = [tries[-1] for tries in requests(run.attempts)]
    kept = [last for last in lasts if whole.from_s <= last.intended_s < whole.to_s]
    return Measured(run.meta, sorted(kept, key=lambda last: last.intended_s), whole.from_s, whole.to_s)


def prompt_tokens(last: Attempt) -> int:
    """The input tokens by the engine's count, or else as asked."""
    return last.prompt_tokens or last.input_tokens


def interpolated(ordered: Sequence[float], share: float) -> float:
    """A percentile by linear interpolation, as numpy's default. ``ordered`` is not empty."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
