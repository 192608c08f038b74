"""Preemption: which spot requests in flight are ended to make room for a guarantee. Pure.

The controller decides when: a request inside its guarantee finds the engine full, or may wait in an engine
with fewer slots than assumed. The relay decides how: it sends a last event and closes the engine's
connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar


class Running(NamedTuple):
    """A spot request in flight."""

    admitted_at: float
    """Seconds on the sidecar's monotonic clock."""
    sequences: int
    kv_tokens: int
    has_begun: bool = True
    """Whether the engine has begun with it, as far as is known: what waits there has cost nothing yet."""


_Key = TypeVar("_Key")


def victims(
    running: Iterable[tuple[_Key, Running]], sequences: float, kv_tokens: float
) -> list[tuple[_Key, Running]]:
    """The requests to end so that ``sequences`` and ``kv_tokens`` become free; none if all are not enough.

    Requests that have not started come first: no computed work is lost, and otherwise they would take the
    freed slots. Then the youngest, because they lose the least work. No request is ended without need.
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
