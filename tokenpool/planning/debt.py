"""Debt: how far service has fallen behind the fair share, signed, in seconds of service owed.

Only its movement over one interval lives here, and the weight that it lends. Section 6 of the design.
"""

from __future__ import annotations

import math

NO_SHARE = 1e-9
"""A fair share below this is what sums of floats leave over: nothing is owed of it."""


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

    While demand is unmet it moves by ``(fair share - service) / fair share`` per second, both as dominant
    shares, within ``cap_s`` either way; while demand is met it decays with time constant ``decay_s``, so
    that nobody banks credit by idling.
    """
    if not has_unmet_demand or fair_share < NO_SHARE:
        return decayed(debt, elapsed_s, decay_s)
    change = (fair_share - service) / fair_share * elapsed_s
    return min(max(debt + change, -cap_s), cap_s)


def decayed(debt: float, elapsed_s: float, decay_s: float) -> float:
    """The debt after ``elapsed_s`` seconds in which no demand was unmet."""
    return debt * math.exp(-elapsed_s / decay_s)


def weight_factor(debt: float, gain: float) -> float:
    """What debt multiplies a weight by: ``exp(gain * debt)``."""
    return math.exp(gain * debt)
