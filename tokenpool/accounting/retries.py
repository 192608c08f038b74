"""Retries: recognition of a request that was shed recently. Its memory is bounded.

A client whose request was shed sends the same bytes again. If each attempt counted as new demand, the scale
hint would ask for unneeded replicas. A retry with another body, or at another sidecar, is not recognised.
"""

from __future__ import annotations

from typing import Final

MOST_REMEMBERED: Final = 1024
"""The most shed requests that are remembered per entitlement. The oldest is forgotten first."""
REMEMBER_S: Final = 60.0
"""The time for which a shed request is remembered, in seconds."""
_SAMPLE: Final = 2048
"""The bytes at each end of a body that the fingerprint covers."""


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
        """Remember the body of a shed request."""
        fingerprint = _fingerprint(body)
        self._shed.pop(fingerprint, None)
        self._shed[fingerprint] = now
        if len(self._shed) > MOST_REMEMBERED:
            del self._shed[next(iter(self._shed))]

    def admitted(self, body: bytes) -> None:
        """Forget the body of an admitted request: the same bytes are a new request from now on."""
        if self._shed:
            self._shed.pop(_fingerprint(body), None)


def _fingerprint(body: bytes) -> int:
    """A hash of length, beginning and end: conversations share beginnings and grow at the end."""
    return hash((len(body), body[:_SAMPLE], body[-_SAMPLE:]))
