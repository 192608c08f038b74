"""The SLO controller: how many slots are reserved while guaranteed tenants miss their SLO.

Where guaranteed tenants' times to first token exceed their SLO, slots are reserved for requests within their
assured share. Where the times stay well below it, the slots are returned. Reservations grow by whole slots
and shrink by parts of one, because late answers are worse than an idle slot.

Pure: one controller per engine. ``tokenpool.admission`` enforces the reservation.
"""

from __future__ import annotations

WINDOW_S = 2.0
"""The shortest window that is judged, in seconds."""
FEWEST = 3
"""A window with answers lasts until it has so many."""
TOLERATED = 0.05
"""The share of answers in a window that may be late, besides one: a single late answer proves nothing. When
that one counted, an eighth of a busy engine stood idle for outliers that an idle slot would not have
spared."""
CALM = 0.7
"""An answer within this part of its SLO is calm."""
CALM_SHARE = 0.75
"""A window without a late answer and with this share of calm ones returns slots."""
STEP = 1.0
"""Slots that one late window reserves."""
RETURNED = 0.25
"""Slots that one calm window returns."""
MOST = 0.25
"""The largest part of the engine's slots that is reserved."""


class SloController:
    """Decides how many slots of one engine are reserved."""

    __slots__ = ("_calm", "_judged_at", "_late", "_seen", "reserved_slots")

    def __init__(self, now: float) -> None:
        self._judged_at = now
        self._seen = self._late = self._calm = 0
        self.reserved_slots = 0.0
        """Slots that only requests within their assured share may use."""

    def observe(self, ttft_s: float, slo_s: float) -> None:
        """A guaranteed request had its first token after ``ttft_s`` seconds; its SLO is ``slo_s`` seconds."""
        self._seen += 1
        self._late += ttft_s > slo_s
        self._calm += ttft_s <= slo_s * CALM

    def judge(self, slots: float, now: float) -> float:
        """End the window if it is due, and return the slots to reserve.

        ``slots`` is the number of sequences that the engine runs at once; ``now`` is in seconds.
        """
        if now - self._judged_at < WINDOW_S or (0 < self._seen < FEWEST):
            return self.reserved_slots
        if self._late > 1 + TOLERATED * self._seen or (self._seen and self._late == self._seen):
            self.reserved_slots = min(self.reserved_slots + STEP, slots * MOST)
        elif not self._late and self._calm >= CALM_SHARE * self._seen:
            self.reserved_slots = max(self.reserved_slots - RETURNED, 0.0)
        self._judged_at = now
        self._seen = self._late = self._calm = 0
        return self.reserved_slots
