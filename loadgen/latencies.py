"""The latencies of each tenant's requests with their due times, for plots. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loadgen.records import Attempt, Meta, Outcome
from loadgen.slo import time_per_token
from loadgen.statistics import Windows, percentile
from loadgen.summary import first_token

LEAST_S = 1e-6
"""Shorter latencies become this, so that a logarithmic axis shows them."""
Timed = list[tuple[float, float]]
"""(due time, latency), both in seconds."""


@dataclass(slots=True)
class Latencies:
    """The latencies of a tenant. As in the summary, a wait without a token counts as a lower bound."""

    ttft: Timed = field(default_factory=list)
    tpot: Timed = field(default_factory=list)
    e2e: Timed = field(default_factory=list)
    requests: int = 0


def latencies(meta: Meta, lasts: Iterable[Attempt]) -> dict[str, Latencies]:
    """The latencies by tenant, with those of the warm-up and the cool-down.

    ``lasts`` are the last attempts of all requests.
    """
    found = {tenant.name: Latencies() for tenant in meta.tenants}
    for last in lasts:
        into, due = found[last.tenant], last.intended_s
        into.requests += 1
        if (wait := first_token(last, meta.drain_s)) is not None:
            into.ttft.append((due, max(wait[0], LEAST_S)))
        if last.outcome is Outcome.SERVED:
            into.e2e.append((due, max(last.end_s - due, LEAST_S)))
            if (per_token := time_per_token(last)) is not None:
                into.tpot.append((due, max(per_token, LEAST_S)))
    return found


def over_time(
    made: Iterable[tuple[float, float]], windows: Windows, share: float
) -> list[tuple[float, float | None]]:
    """A percentile for each window; a gap if no request was due."""
    groups = windows.grouped(made)
    return [
        (at, percentile(group, share) if group else None)
        for at, group in zip(windows.middles, groups, strict=True)
    ]
