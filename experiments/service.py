"""Service of tenants within spans of a run, and how fair it was: what experiments about fairness judge by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadgen.records import Run
from loadgen.statistics import jain
from loadgen.summary import token_pieces


def service(
    run: Run, tenants: Iterable[str], start: float, end: float, *, prompts: bool = True
) -> dict[str, float]:
    """Tokens of each tenant within a span of the run; with or without those of its prompts."""
    totals = dict.fromkeys(tenants, 0.0)
    for tenant in totals:
        attempts = (attempt for attempt in run.attempts if attempt.tenant == tenant)
        for begin, finish, tokens in token_pieces(attempts, prompts=prompts):
            inside = min(finish, end) - max(begin, start)
            if finish > begin and inside > 0:
                totals[tenant] += tokens * inside / (finish - begin)
            elif finish == begin and start <= begin < end:
                totals[tenant] += tokens
    return totals


def sliding(start: float, end: float, length: float) -> list[float]:
    """Where windows of a length begin that lie in a span, five seconds apart."""
    starts, at = [], start
    while at + length <= end:
        starts.append(at)
        at += 5.0
    return starts


def by_weight(served: Mapping[str, float], weights: Mapping[str, float]) -> list[float]:
    """Service for each part of weight."""
    return [served[tenant] / weight for tenant, weight in weights.items()]


def jain_by_weight(served: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Jain's index of weighted service."""
    return jain(by_weight(served, weights))


def deviation(served: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The largest deviation from a fair share, as a part of it."""
    total, whole = sum(served.values()), sum(weights.values())
    return max(abs(served[tenant] / total * whole / weight - 1) for tenant, weight in weights.items())
