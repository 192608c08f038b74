"""The parts of conditions on the command line: a number of a run, an operator, a value with its unit. Pure.

`goals` and `regressions` have the two forms of conditions.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from loadgen.fields import ScenarioError
from loadgen.measures import METRICS, Kind, Metric

_UNITS: dict[Kind, dict[str, float]] = {
    Kind.TIME: {"us": 1e-6, "ms": 1e-3, "s": 1.0},
    Kind.RATE: {"": 1.0, "/s": 1.0},
    Kind.SHARE: {"%": 0.01},
    Kind.COUNT: {"": 1.0},
}
_EXAMPLES = {Kind.TIME: "300ms", Kind.RATE: "25/s", Kind.SHARE: "99%", Kind.COUNT: "0"}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_PARTS = re.compile(r"\s*(?P<place>[^<>=]*?)\s*(?P<operator><=|>=|<|>)\s*(?P<value>.*?)\s*")
_VALUE = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[^\s\d]*)")


class GoalError(ScenarioError):
    """A goal that cannot be read or judged. The text is one line."""


def split(text: str, example: str) -> tuple[str, str, str]:
    """What is left of the operator, the operator, and the value. Raises ``GoalError``."""
    found = _PARTS.fullmatch(text)
    if found is None:
        raise GoalError(f"{text!r} has no operator; write one of {', '.join(OPERATORS)}, as in {example}")
    if not found["value"]:
        raise GoalError(f"{text!r} has no value; write a number with its unit, as in {example}")
    return found["place"], found["operator"], found["value"]


def metric_named(text: str, metric: str, statistic: str) -> Metric:
    """The number with this name. Raises ``GoalError`` for an unknown name."""
    if metric not in METRICS:
        raise GoalError(f"{text!r} names the unknown metric {metric!r}; use one of {', '.join(METRICS)}")
    known = METRICS[metric]
    if statistic not in known:
        raise GoalError(
            f"{text!r} names the unknown statistic {statistic!r} of {metric}; use one of {', '.join(known)}"
        )
    return known[statistic]


def amount(text: str, value: str, kind: Kind) -> float:
    """A value in seconds, per second, as a share or a count. Raises ``GoalError`` for another unit."""
    found, units = _VALUE.fullmatch(value), _UNITS[kind]
    if found is None or found["unit"] not in units:
        named = [unit for unit in units if unit]
        fix = f"a number with {' or '.join(named)}" if named else "a number without a unit"
        raise GoalError(f"{text!r} has the value {value!r}; write {fix}, such as {_EXAMPLES[kind]}")
    return float(found["number"]) * units[found["unit"]]
