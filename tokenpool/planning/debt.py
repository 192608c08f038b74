"""Debt: the service owed to an entitlement, relative to its fair share. Signed, in seconds of service.

This module computes its change over one interval, and its effect on a weight.
"""

from __future__ import annotations

import math

NO_SHARE = 1e-9
"""A fair share below this is a rounding error of sums of floats. No service is owed for it."""


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

    While demand is unmet, debt changes by ``(fair share - service) / fair share`` per second, both as
    dominant shares. It stays within ``cap_s`` of zero. While demand is met, it decays with the time constant
    ``decay_s``, so an idle entitlement accumulates no credit.
    """
    if not has_unmet_demand or fair_share < NO_SHARE:
        return decayed(debt, elapsed_s, decay_s)
    change = (fair_share - service) / fair_share * elapsed_s
    return min(max(debt + change, -cap_s), cap_s)


def decayed(debt: float, elapsed_s: float, decay_s: float) -> float:
    """The debt after ``elapsed_s`` seconds without unmet demand."""
    return debt * math.exp(-elapsed_s / decay_s)


def weight_factor(debt: float, gain: float) -> float:
    """The factor by which debt multiplies a weight: ``exp(gain * debt)``."""
    return math.exp(gain * debt)
