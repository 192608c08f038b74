"""Counters and histograms of one engine, with the buckets of vLLM 0.32.0. Pure.

The scheduler updates them, and ``metrics`` renders them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from loadgen.engine.model import Ending
from loadgen.engine.sequence import Sequence

_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    80.0,
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_STEP_TOKENS = tuple(float(1 << power) for power in (0, *range(3, 15)))
_DELAYS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_FEW = (1.0, 2.0, 5.0, 10.0, 20.0)

REQUESTS, TOKENS = "max_num_queued_reqs", "max_num_queued_tokens"
"""The limits of the queue, by vLLM's names."""


class Histogram:
    """Counts by upper bounds, and a sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The count of each bucket; the last bucket is above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Upper bounds, each with the number of values up to it."""
        yield from zip([*map(str, self.bounds), "+Inf"], accumulate(self.counts), strict=True)


class Statistics:
    """Counts of one engine since its start. Times in seconds."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = self.preemptions = 0
        self.cache_queries = self.cache_hits = 0
        self.adapters: dict[tuple[str, str], float] = {}
        """When each set of running and of waiting LoRA adapters was last seen, by comma-separated names."""
        self.endings = dict.fromkeys(Ending, 0)
        self.time_to_first_token = Histogram(_FIRST)
        self.inter_token_latency = Histogram(_BETWEEN)
        self.time_per_output_token = Histogram(_BETWEEN)
        self.e2e_latency = Histogram(_WHOLE)
        self.queue_time = Histogram(_WHOLE)
        self.inference_time = Histogram(_WHOLE)
        self.prefill_time = Histogram(_WHOLE)
        self.decode_time = Histogram(_WHOLE)
        self.request_prompt_tokens = Histogram(_TOKENS)
        self.request_generation_tokens = Histogram(_TOKENS)
        self.max_tokens = Histogram(_TOKENS)
        self.siblings = Histogram(_FEW)
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.step_delay = Histogram(_DELAYS)
        """The simulator's own error: from the planned end of a step until its last token was written."""
        self.lost_s = 0.0
        """Time for which the simulator itself stood still, and which it did not catch up."""

    def started(self, sequence: Sequence, now: float) -> None:
        """A sequence is admitted for the first time, after its prompt is looked up in the cache."""
        self.cache_queries += len(sequence.prompt)
        self.cache_hits += sequence.cached
        self.queue_time.observe(now - sequence.arrived_at)

    def first_token(self, sequence: Sequence, now: float) -> None:
        """A sequence gets its first token, or a pooled prompt is computed."""
        self.prompt_tokens += len(sequence.prompt)
        self.cached_tokens += sequence.cached
        self.generation_tokens += sequence.bound > 0
        self.time_to_first_token.observe(now - sequence.arrived_at)

    def next_token(self, seconds: float) -> None:
        """A sequence gets another token, so many seconds after the one before."""
        self.generation_tokens += 1
        self.inter_token_latency.observe(seconds)

    def stepped(self, tokens: int) -> None:
        """A step computes and produces so many tokens."""
        self.step_tokens.observe(tokens)

    def ended(self, sequence: Sequence, ending: Ending, now: float) -> None:
        """A sequence ends."""
        self.endings[ending] += 1
        if ending is Ending.ABORT or sequence.started_at is None or sequence.first_token_at is None:
            return
        decode = now - sequence.first_token_at
        self.e2e_latency.observe(now - sequence.arrived_at)
        self.inference_time.observe(now - sequence.started_at)
        self.prefill_time.observe(sequence.first_token_at - sequence.started_at)
        self.decode_time.observe(decode)
        self.time_per_output_token.observe(decode / max(sequence.produced - 1, 1))
        self.request_prompt_tokens.observe(len(sequence.prompt))
        self.request_generation_tokens.observe(sequence.produced)
        self.max_tokens.observe(sequence.bound)
        self.siblings.observe(sequence.siblings)
