"""The SLO controller: how many slots are reserved while guaranteed tenants miss their SLO.

Where a guaranteed tenant's time to first token exceeds its SLO, the room for everything that is not assured
shrinks; where it keeps well below, the room grows back. What is reserved rises by whole slots and falls by
parts of one: late answers are worse than an idle slot.

Pure; one per engine. What is reserved is enforced by ``admission``.
"""

from __future__ import annotations

WINDOW_S = 2.0
"""Measurements are judged so often ..."""
FEWEST = 3
"""... or later, when there are so many."""
TOLERATED = 0.05
"""The share of answers that may be late, beside one: a single late answer in a window says nothing. With that
one counted, a busy engine stood an eighth idle for outliers that an idle slot would not have spared."""
CALM = 0.7
"""Below this part of the SLO an answer is calm."""
CALM_SHARE = 0.75
"""A window with none late and so many calm gives room back."""
STEP = 1.0
"""Slots that one window of late answers takes."""
RETURNED = 0.25
"""Slots that one calm window gives back."""
MOST = 0.25
"""Never more than this part of the engine's slots is reserved."""


class SloController:
    """Slots reserved on one engine."""

    __slots__ = ("_calm", "_judged_at", "_late", "_seen", "reserved_slots")

    def __init__(self, now: float) -> None:
        self._judged_at = now
        self._seen = self._late = self._calm = 0
        self.reserved_slots = 0.0
        """Slots that only what is assured may use."""

    def observe(self, ttft_s: float, slo_s: float) -> None:
        """A guaranteed request had its first token after ``ttft_s`` seconds; ``slo_s`` was promised."""
        self._seen += 1
        self._late += ttft_s > slo_s
        self._calm += ttft_s <= slo_s * CALM

    def judge(self, slots: float, now: float) -> float:
        """Move what is reserved, if it is time to; returns it. ``slots`` is what the engine runs at once."""
        if now - self._judged_at < WINDOW_S or (0 < self._seen < FEWEST):
            return self.reserved_slots
        if self._late > 1 + TOLERATED * self._seen or (self._seen and self._late == self._seen):
            self.reserved_slots = min(self.reserved_slots + STEP, slots * MOST)
        elif not self._late and self._calm >= CALM_SHARE * self._seen:
            self.reserved_slots = max(self.reserved_slots - RETURNED, 0.0)
        self._judged_at = now
        self._seen = self._late = self._calm = 0
        return self.reserved_slots
