"""Preemption: the choice of running spot requests to end for a guarantee. Pure.

``AdmissionControl`` decides when to preempt: a request inside its guarantee finds the engine full, or may
wait in an engine with fewer slots than assumed. The owner of the request ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar


class Running(NamedTuple):
    """A running spot request."""

    admitted_at: float
    """Seconds on the sidecar's monotonic clock."""
    sequences: int
    kv_tokens: int
    has_begun: bool = True
    """Whether the engine may have started it. A request in the engine's queue has used no compute."""


_Key = TypeVar("_Key")


def victims(
    running: Iterable[tuple[_Key, Running]], sequences: float, kv_tokens: float
) -> list[tuple[_Key, Running]]:
    """The requests to end so that ``sequences`` and ``kv_tokens`` become free; none if all are not enough.

    Requests that have not started are first: they lose no work, and would otherwise take the freed slots. The
    youngest are next, because they lose the least work. No request is ended without need.
    """
    if sequences <= 0 and kv_tokens <= 0:
        return []
    chosen: list[tuple[_Key, Running]] = []
    freed_sequences = freed_kv = 0
    for key, request in sorted(running, key=lambda row: (row[1].has_begun, -row[1].admitted_at)):
        if freed_sequences >= sequences and freed_kv >= kv_tokens:
            break
        chosen.append((key, request))
        freed_sequences += request.sequences
        freed_kv += request.kv_tokens
    if freed_sequences < sequences or freed_kv < kv_tokens:
        return []
    for row in list(chosen):
        left_sequences, left_kv = freed_sequences - row[1].sequences, freed_kv - row[1].kv_tokens
        if left_sequences >= sequences and left_kv >= kv_tokens:
            chosen.remove(row)
            freed_sequences, freed_kv = left_sequences, left_kv
    return chosen
