"""Retries: telling a request that was shed a moment ago from a new one. Pure; bounded in memory.

A client that is shed comes back with the same bytes. Counted anew each time it would ask for replicas that
nobody needs (section 8 of the design). A client that changes its body between attempts is not recognised,
nor one that comes back to another sidecar.
"""

from __future__ import annotations

MOST_REMEMBERED = 1024
"""Sheds that are remembered of one entitlement; the oldest goes first."""
REMEMBER_S = 60.0
_SAMPLE = 2048


class Retries:
    """What was shed of one entitlement's requests."""

    __slots__ = ("_shed",)

    def __init__(self) -> None:
        self._shed: dict[int, float] = {}

    def is_retry(self, body: bytes, now: float) -> bool:
        """Whether this body was shed of late. Costs nothing while nothing was."""
        if not self._shed:
            return False
        shed_at = self._shed.get(_fingerprint(body))
        return shed_at is not None and now - shed_at < REMEMBER_S

    def shed(self, body: bytes, now: float) -> None:
        """Remember a body that was shed."""
        fingerprint = _fingerprint(body)
        self._shed.pop(fingerprint, None)
        self._shed[fingerprint] = now
        if len(self._shed) > MOST_REMEMBERED:
            del self._shed[next(iter(self._shed))]

    def admitted(self, body: bytes) -> None:
        """The request has got in: the same bytes again are a new request."""
        if self._shed:
            self._shed.pop(_fingerprint(body), None)


def _fingerprint(body: bytes) -> int:
    """Length, beginning and end: conversations share beginnings, and grow at the end."""
    return hash((len(body), body[:_SAMPLE], body[-_SAMPLE:]))
