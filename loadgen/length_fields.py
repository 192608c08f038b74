"""The lengths in a scenario file: a number of tokens, or a distribution. Raises ``ScenarioError``."""

from __future__ import annotations

from collections.abc import Callable

from loadgen.fields import Field, given
from loadgen.scenario import Empirical, Fixed, Lengths, Lognormal, Normal, Uniform

LONGEST_TOKENS = 1 << 20
"""Longer prompts are treated as typing errors."""


def tokens(field: Field) -> int:
    """A number of tokens."""
    return field.whole("tokens", least=1, most=LONGEST_TOKENS)


def _range(field: Field, fields: dict[str, Field]) -> tuple[int, int]:
    least, most = given(fields, "least", tokens, 1), given(fields, "most", tokens, LONGEST_TOKENS)
    if least > most:
        field.fail(f"has least {least} above most {most}", "swap the two")
    return least, most


def _uniform(field: Field) -> Uniform:
    fields = field.fields(("least", "most"), required=("least", "most"))
    return Uniform(*_range(field, fields))


def _normal(field: Field) -> Normal:
    fields = field.fields(("mean", "deviation", "least", "most"), required=("mean", "deviation"))
    mean, deviation = fields["mean"].number("tokens", above=True), fields["deviation"].number("tokens")
    return Normal(mean, deviation, *_range(field, fields))


def _lognormal(field: Field) -> Lognormal:
    fields = field.fields(("median", "sigma", "least", "most"), required=("median", "sigma"))
    median, sigma = fields["median"].number("tokens", above=True), fields["sigma"].number("(no unit)", most=5)
    return Lognormal(median, sigma, *_range(field, fields))


def _empirical(field: Field) -> Empirical:
    found: list[int] = []
    weights: list[float] = []
    for item in field.items():
        fields = (
            item.fields(("tokens", "weight"), required=("tokens",)) if item.is_mapping else {"tokens": item}
        )
        found.append(tokens(fields["tokens"]))
        weights.append(given(fields, "weight", lambda f: f.number("(a weight)"), 1.0))
    if not sum(weights) > 0:
        field.fail("has no length of a weight above 0", "write a list of {tokens: 100, weight: 2}")
    return Empirical(tuple(found), tuple(weights))


_LENGTHS: dict[str, Callable[[Field], Lengths]] = {
    "fixed": lambda field: Fixed(tokens(field)),
    "uniform": _uniform,
    "normal": _normal,
    "lognormal": _lognormal,
    "empirical": _empirical,
}


def lengths(field: Field) -> Lengths:
    """A number of tokens, or a distribution."""
    if field.is_number:
        return Fixed(tokens(field))
    kind, body = field.one(tuple(_LENGTHS))
    return _LENGTHS[kind](body)
