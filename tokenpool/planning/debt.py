"""Debt: the service that an entitlement is owed, relative to its fair share. Signed, in seconds of service.

This module has its change over one interval, and its effect on a weight.
"""

from __future__ import annotations

import math

NO_SHARE = 1e-9
"""A fair share below this is a rounding error of sums of floats: no service is owed for it."""


def moved(
    debt: float,
    *,
    fair_share: float,
    service: float,
    has_unmet_demand: bool,
    elapsed_s: float,
    cap_s: float,
    decay_s: float,
) -> float:
    """The debt after ``elapsed_s`` seconds.

    While demand is unmet, it moves by ``(fair share - service) / fair share`` per second, both as dominant
    shares, and stays within ``cap_s`` of zero. While demand is met, it decays with time constant ``decay_s``:
    an idle entitlement collects no credit.
    """
    if not has_unmet_demand or fair_share < NO_SHARE:
        return decayed(debt, elapsed_s, decay_s)
    change = (fair_share - service) / fair_share * elapsed_s
    return min(max(debt + change, -cap_s), cap_s)


def decayed(debt: float, elapsed_s: float, decay_s: float) -> float:
    """The debt after ``elapsed_s`` seconds in which no demand was unmet."""
    return debt * math.exp(-elapsed_s / decay_s)


def weight_factor(debt: float, gain: float) -> float:
    """The factor by which debt multiplies a weight: ``exp(gain * debt)``."""
    return math.exp(gain * debt)
