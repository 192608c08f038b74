"""The engine's running sequences during a load, read from its metrics page."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from experiments import metrics

EVERY_S = 0.25
RUNNING = "vllm:num_requests_running"


@dataclass
class Samples:
    """Samples of the running sequences, each with its time in seconds from the start."""

    taken: list[tuple[float, float]] = field(default_factory=list)

    def mean(self, from_s: float, to_s: float) -> float:
        """The mean in a span; 0 without samples."""
        return mean([value for at_s, value in self.taken if from_s <= at_s < to_s])


def mean(values: Sequence[float]) -> float:
    """The mean; 0 without values."""
    return sum(values) / len(values) if values else 0.0


@contextlib.contextmanager
def running(engine: str) -> Iterator[Samples]:
    """Sample an engine, given its base URL, during the context. A page that fails gives no sample."""
    samples, ends, began = Samples(), threading.Event(), time.monotonic()

    def sample() -> None:
        while not ends.wait(EVERY_S):
            with contextlib.suppress(OSError):
                value = metrics.total([f"{engine}/metrics"], RUNNING)
                samples.taken.append((time.monotonic() - began, value))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ends.set()
        thread.join()
