"""The constants of the lease protocol that a sidecar's side has in more than one module, and its modes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_UNDER_WAY = 8
"""The most messages in flight. With one, a request 40 ms from the store waited for another's answer."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The settings of the protocol, in seconds."""

    lifetime_s: float = 1.5
    interval_s: float = 0.25


class Mode(StrEnum):
    """Where a sidecar's limits come from."""

    JOINED = "joined"
    """It decides from leases."""
    JOINING = "joining"
    """The lease store is new, closed or without limits: the sidecar decides from shares, and reports."""
    EXPIRED = "expired"
    """The sidecar is new, or was paused for longer than its leases live.

    It holds nothing until the lease store answers.
    """
    CUT_OFF = "cut_off"
    """The lease store does not answer, and all leases have expired: the sidecar decides from shares."""
