"""The SLO controller: the number of slots to reserve while guaranteed tenants miss their SLO.

If guaranteed tenants' times to first token exceed their SLO, slots are reserved for requests within their
assured share. If the times stay well below the SLO, the slots are returned. Reservations grow by whole slots
and shrink by parts of a slot, because late answers are worse than an idle slot.

Pure: one controller per engine. ``tokenpool.admission`` enforces the reservation.
"""

from __future__ import annotations

WINDOW_S = 2.0
"""The shortest window that is judged, in seconds."""
FEWEST = 3
"""The fewest answers in a window that is judged. A window with fewer lasts longer."""
TOLERATED = 0.05
"""The share of answers in a window that may be late, in addition to one answer. A single late answer proves
nothing. When it counted, an eighth of a busy engine was idle because of outliers that no idle slot
prevents."""
EARLY = 0.7
"""An answer within this part of its SLO is early."""
EARLY_SHARE = 0.75
"""The share of early answers in a window without late ones that returns slots."""
STEP = 1.0
"""Slots that one late window reserves."""
RETURNED = 0.25
"""Slots that one window of early answers returns."""
MOST = 0.25
"""The largest part of the engine's slots that is reserved."""


class SloController:
    """Decides how many slots of one engine are reserved."""

    __slots__ = ("_early", "_judged_at", "_late", "_seen", "reserved_slots")

    def __init__(self, now: float) -> None:
        self._judged_at = now
        self._seen = self._late = self._early = 0
        self.reserved_slots = 0.0
        """Slots that only requests within their assured share may use."""

    def observe(self, ttft_s: float, slo_s: float) -> None:
        """A guaranteed request had its first token after ``ttft_s`` seconds; its SLO is ``slo_s`` seconds."""
        self._seen += 1
        self._late += ttft_s > slo_s
        self._early += ttft_s <= slo_s * EARLY

    def judge(self, slots: float, now: float) -> float:
        """End the window if it is due, and return the slots to reserve.

        ``slots`` is the number of sequences that the engine runs at once; ``now`` is in seconds.
        """
        if now - self._judged_at < WINDOW_S or (0 < self._seen < FEWEST):
            return self.reserved_slots
        if self._late > 1 + TOLERATED * self._seen or (self._seen and self._late == self._seen):
            self.reserved_slots = min(self.reserved_slots + STEP, slots * MOST)
        elif not self._late and self._early >= EARLY_SHARE * self._seen:
            self.reserved_slots = max(self.reserved_slots - RETURNED, 0.0)
        self._judged_at = now
        self._seen = self._late = self._early = 0
        return self.reserved_slots
