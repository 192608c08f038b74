"""The bounds of a pool in theory: one central queue, separate queues, and clients that try other replicas.

Pure simulation of engines with fixed times, and of first come, first served. A request waits at most
``queue_s`` seconds. If it would wait longer, it is refused at once, because its wait is known.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from toolbox.percentiles import percentile


class Placement(StrEnum):
    """The way of a request to a slot."""

    CENTRAL = "one central queue"
    SEPARATE = "separate queues"
    RETRIES = "separate queues, clients try the other replicas"


class Shape(NamedTuple):
    """A pool and its requests."""

    replicas: int
    slots: int
    """Of each replica."""
    tokens: int
    """Output tokens of a request."""
    step_s: float
    """The fixed time of a token, s."""
    skew: float | None = None
    """The share of the requests that goes to the first replica; ``None``: equal shares."""

    @property
    def service_s(self) -> float:
        """The time of a request in its slot, s."""
        return self.tokens * self.step_s

    def rate(self, load: float) -> float:
        """The requests per second that use this share of all slots."""
        return load * self.replicas * self.slots / self.service_s

    @property
    def weights(self) -> list[float]:
        """The share of each replica in the requests."""
        if self.skew is None or self.replicas == 1:
            return [1 / self.replicas] * self.replicas
        return [self.skew, *[(1 - self.skew) / (self.replicas - 1)] * (self.replicas - 1)]


class Bound(NamedTuple):
    """The results of a simulation."""

    refused: float
    """The share of refused requests."""
    ttft_p50_s: float
    ttft_p99_s: float


def simulate(
    placement: Placement, shape: Shape, load: float, queue_s: float, requests: int, seed: int
) -> Bound:
    """Simulate Poisson arrivals of so many requests. Equal seeds give equal arrivals to all placements."""
    chance, order = random.Random(f"arrivals {seed}"), random.Random(f"order {seed}")
    # A central queue is one replica with all slots.
    parts = 1 if placement is Placement.CENTRAL else shape.replicas
    free_at = [[0.0] * (shape.replicas * shape.slots // parts) for _ in range(parts)]
    refused, firsts = 0, []
    for at, home, lag in _arrivals(shape, load, requests, chance):
        wait = math.inf
        for replica in _tried(placement, home, shape.replicas, order):
            wait = max(free_at[replica][0] - at, 0.0)
            if wait <= queue_s:
                # Engines begin a sequence with their next step, so a request waits for a part of one.
                heapq.heapreplace(free_at[replica], at + wait + lag + shape.service_s)
                firsts.append(wait + lag + shape.step_s)
                break
        else:
            refused += 1
    return Bound(refused / requests, percentile(firsts, 0.5), percentile(firsts, 0.99))


def _arrivals(
    shape: Shape, load: float, requests: int, chance: random.Random
) -> Iterator[tuple[float, int, float]]:
    """The time, the replica and the wait for a step of each request."""
    at, rate, weights = 0.0, shape.rate(load), shape.weights
    for _ in range(requests):
        at += chance.expovariate(rate)
        yield at, chance.choices(range(shape.replicas), weights)[0], chance.uniform(0, shape.step_s)


def _tried(placement: Placement, home: int, replicas: int, order: random.Random) -> Sequence[int]:
    """The replicas that a request tries, in order."""
    if placement is Placement.CENTRAL:
        return (0,)
    if placement is Placement.SEPARATE:
        return (home,)
    others = [replica for replica in range(replicas) if replica != home]
    order.shuffle(others)
    return (home, *others)
