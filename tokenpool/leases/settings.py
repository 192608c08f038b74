"""The settings and the modes of a sidecar in the lease protocol."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_UNDER_WAY = 8
"""The most messages in flight. With one message, a request 40 ms from the store waited for the answer to
another."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The settings of the protocol, in seconds."""

    lifetime_s: float = 1.5
    """The time after which a lease without a renewal expires."""
    interval_s: float = 0.25
    """The time between two regular messages."""


class Mode(StrEnum):
    """The source of a sidecar's limits."""

    JOINED = "joined"
    """The sidecar decides from leases."""
    JOINING = "joining"
    """The lease store is new, closed or without limits. The sidecar decides from shares, and reports its
    use."""
    EXPIRED = "expired"
    """The sidecar is new, or was paused for longer than a lifetime.

    It holds nothing until the lease store answers.
    """
    CUT_OFF = "cut_off"
    """The lease store does not answer, and all leases have expired. The sidecar decides from shares."""
