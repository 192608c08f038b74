"""Service of tenants within spans of a run, for experiments about fairness.

It is measured at the client: tokens, and the running time of sequences. Fair shares are dominant shares, so
service is a dominant share too: the larger of a tenant's shares in all tokens and in all sequence-seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadgen.records import Run
from loadgen.summary import token_pieces


def tokens(
    run: Run, tenants: Iterable[str], start: float, end: float, *, prompts: bool = True
) -> dict[str, float]:
    """Tokens of each tenant within a span of the run, with or without those of prompts."""
    totals = dict.fromkeys(tenants, 0.0)
    for tenant in totals:
        attempts = (attempt for attempt in run.attempts if attempt.tenant == tenant)
        for begin, finish, count in token_pieces(attempts, prompts=prompts):
            inside = min(finish, end) - max(begin, start)
            if finish > begin and inside > 0:
                totals[tenant] += count * inside / (finish - begin)
            elif finish == begin and start <= begin < end:
                totals[tenant] += count
    return totals


def sequence_seconds(run: Run, tenants: Iterable[str], start: float, end: float) -> dict[str, float]:
    """The running time of each tenant's sequences within a span, as measured at the client.

    A sequence runs from its first token, minus one mean gap between events, to its end. Earlier time counts
    as queueing: a request that waits uses no engine slot.
    """
    totals = dict.fromkeys(tenants, 0.0)
    for attempt in run.attempts:
        if attempt.tenant in totals and attempt.first_s is not None:
            began = max(attempt.first_s - (attempt.gap_mean_s or 0.0), attempt.sent_s)
            inside = min(attempt.end_s, end) - max(began, start)
            totals[attempt.tenant] += max(inside, 0.0)
    return totals


def service(run: Run, tenants: Iterable[str], start: float, end: float) -> dict[str, float]:
    """Each tenant's dominant share of all service in a span: of tokens or of sequence-seconds."""
    names = list(tenants)
    parts = [_shares(count(run, names, start, end)) for count in (tokens, sequence_seconds)]
    return {name: max(part[name] for part in parts) for name in names}


def _shares(totals: Mapping[str, float]) -> dict[str, float]:
    whole = sum(totals.values())
    return {name: total / whole if whole else 0.0 for name, total in totals.items()}


def spans(start: float, end: float, length: float) -> list[tuple[float, float]]:
    """All spans of a length within a given span, five seconds apart; a shorter span itself."""
    found, at = [], start
    while at + length <= end:
        found.append((at, at + length))
        at += 5.0
    return found or [(start, end)]
