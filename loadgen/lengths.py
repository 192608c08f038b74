"""Lengths of prompts and answers, drawn from a scenario's distributions. Pure; randomness is an argument."""

from __future__ import annotations

import math
import random

from loadgen.scenario import Empirical, Fixed, Lengths, Lognormal, Normal, Uniform

_DRAWS = 4000


def draw(lengths: Lengths, source: random.Random) -> int:
    """One length in tokens, at least 1. Each takes the same number of random draws."""
    match lengths:
        case Fixed(tokens):
            return tokens
        case Uniform(least, most):
            return source.randint(least, most)
        case Normal(mean, deviation, least, most):
            return _clipped(source.gauss(mean, deviation), least, most)
        case Lognormal(median, sigma, least, most):
            return _clipped(source.lognormvariate(math.log(median), sigma), least, most)
        case Empirical(values, weights):
            return source.choices(values, weights)[0]


def _clipped(value: float, least: int, most: int) -> int:
    return min(max(round(value), least), most)


def mean(lengths: Lengths) -> float:
    """The mean of the drawn lengths in tokens, with the effect of clipping."""
    if isinstance(lengths, Fixed):
        return lengths.tokens
    source = random.Random(0)
    return sum(draw(lengths, source) for _ in range(_DRAWS)) / _DRAWS
