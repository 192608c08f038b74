"""Retries: recognition of a request that was shed a moment ago. Bounded in memory.

A client that was shed sends the same bytes again. If each attempt counted as new demand, the scale hint would
ask for replicas that nobody needs. A client that changes its body between attempts is not recognised. A
client that retries at another sidecar is not recognised either.
"""

from __future__ import annotations

MOST_REMEMBERED = 1024
"""Sheds that are remembered of one entitlement; the oldest is forgotten first."""
REMEMBER_S = 60.0
"""The time for which a shed is remembered, in seconds."""
_SAMPLE = 2048
"""Bytes at each end of a body that its fingerprint covers."""


class Retries:
    """The recently shed requests of one entitlement."""

    __slots__ = ("_shed",)

    def __init__(self) -> None:
        self._shed: dict[int, float] = {}

    def is_retry(self, body: bytes, now: float) -> bool:
        """Whether this body was shed recently. Costs nothing while no request was shed."""
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
        """The request was admitted: the same bytes again are a new request."""
        if self._shed:
            self._shed.pop(_fingerprint(body), None)


def _fingerprint(body: bytes) -> int:
    """A hash of length, beginning and end: conversations share beginnings, and grow at the end."""
    return hash((len(body), body[:_SAMPLE], body[-_SAMPLE:]))
