"""The bounds of a pool in theory: one central queue, separate queues, and clients that try other replicas.

This is a pure simulation. Engines have fixed times, and serve requests in the order of arrival. A request
waits at most ``queue_s`` seconds. If it would wait longer, it is refused at once, because its wait is known.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from toolbox.percentiles import percentile


class Placement(StrEnum):
    """The rule by which a request gets a slot."""

    CENTRAL = "one central queue"
    SEPARATE = "separate queues"
    RETRIES = "separate queues, clients try the other replicas"


class Shape(NamedTuple):
    """A pool and its requests."""

    replicas: int
    slots: int
    """The slots of each replica."""
    tokens: int
    """Output tokens of a request."""
    step_s: float
    """The fixed time per token, in seconds."""
    skew: float | None = None
    """The share of the requests that goes to the first replica; ``None`` means equal shares."""

    @property
    def service_s(self) -> float:
        """The time of a request in its slot, in seconds."""
        return self.tokens * self.step_s

    def rate(self, load: float) -> float:
        """The number of requests per second that use this share of all slots."""
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


class Arrival(NamedTuple):
    """One request."""

    at_s: float
    replica: int
    """The replica that receives it."""


def poisson(shape: Shape, load: float, requests: int, seed: int) -> Iterator[Arrival]:
    """Random arrivals that use this share of all slots."""
    chance, at = random.Random(f"arrivals {seed}"), 0.0
    rate, weights, replicas = shape.rate(load), shape.weights, range(shape.replicas)
    for _ in range(requests):
        at += chance.expovariate(rate)
        yield Arrival(at, chance.choices(replicas, weights)[0])


def simulate(
    placement: Placement,
    shape: Shape,
    arrivals: Iterable[Arrival],
    queue_s: float,
    *,
    seed: int = 1,
    from_s: float = 0.0,
) -> Bound:
    """Serve arrivals, which are in the order of time. Only those since ``from_s`` count."""
    lags, order = random.Random(f"lags {seed}"), random.Random(f"order {seed}")
    # A central queue is one replica with all slots.
    parts = 1 if placement is Placement.CENTRAL else shape.replicas
    free_at = [[0.0] * (shape.replicas * shape.slots // parts) for _ in range(parts)]
    offered, refused, firsts = 0, 0, []
    for at, home in arrivals:
        # An engine begins a sequence with its next step, so a request waits for a part of a step.
        lag = lags.uniform(0, shape.step_s)
        waits = ((i, max(free_at[i][0] - at, 0.0)) for i in _tried(placement, home, shape.replicas, order))
        replica, wait = next(((i, wait) for i, wait in waits if wait <= queue_s), (-1, math.inf))
        if replica >= 0:
            heapq.heapreplace(free_at[replica], at + wait + lag + shape.service_s)
        if at < from_s:
            continue
        offered += 1
        if replica >= 0:
            firsts.append(wait + lag + shape.step_s)
        else:
            refused += 1
    return Bound(refused / max(offered, 1), percentile(firsts, 0.5), percentile(firsts, 0.99))


def _tried(placement: Placement, home: int, replicas: int, order: random.Random) -> Sequence[int]:
    """The replicas that a request tries, in order."""
    if placement is Placement.CENTRAL:
        return (0,)
    if placement is Placement.SEPARATE:
        return (home,)
    others = [replica for replica in range(replicas) if replica != home]
    order.shuffle(others)
    return (home, *others)
