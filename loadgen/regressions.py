"""Regressions of a comparison, such as ``ttft.p99>+10%``. Pure.

A regression is [WHO.]METRIC.STATISTIC OPERATOR CHANGE, against the first label. WHO is as in `goals`, and
``all`` by default. The change has a sign. It is in percent, or an amount with its unit. A change
of a share is in percentage points. A number that is missing on one side fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from loadgen import words
from loadgen.conditions import OPERATORS, GoalError, amount, metric_named, split
from loadgen.goals import ALL
from loadgen.measures import METRICS, Kind, Metric, shown, written
from loadgen.statistics import Estimate

EXAMPLE = "ttft.p99>+10%"


class Regression(msgspec.Struct, frozen=True):
    """A regression as given."""

    text: str
    who: str
    metric: str
    statistic: str
    operator: str
    change: float
    """A relative change (0.1 is 10 % more) or, if not ``is_relative``, an amount as in `Goal.bound`."""
    is_relative: bool

    @property
    def number(self) -> Metric:
        """The number that it judges."""
        return METRICS[self.metric][self.statistic]

    def result(
        self, tenant: str, label: str, before: Estimate | None, after: Estimate | None
    ) -> RegressionResult:
        """Judge one tenant of a label."""
        change = self._change(before, after)
        is_failed = change is None or OPERATORS[self.operator](change, self.change)
        return RegressionResult(
            self.text, tenant, label, self.number.kind, before, after, change, self.is_relative, is_failed
        )

    def _change(self, before: Estimate | None, after: Estimate | None) -> float | None:
        if before is None or after is None:
            return None
        change = after.value - before.value
        if not self.is_relative or change == 0:
            return change
        return change / before.value if before.value else math.copysign(math.inf, change)


class RegressionResult(msgspec.Struct, frozen=True):
    """A regression in one tenant of one label, against the first label."""

    regression: str
    tenant: str
    label: str
    kind: Kind
    before: Estimate | None
    after: Estimate | None
    change: float | None
    """As in `Regression.change`; ``None`` if one of the numbers is missing."""
    is_relative: bool
    is_failed: bool
    """True for a regression, and if it cannot be judged."""

    @property
    def _overlap(self) -> bool:
        one = self.before.ends if self.before is not None else None
        other = self.after.ends if self.after is not None else None
        return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]

    @property
    def written(self) -> str:
        """The change with its sign."""
        if self.change is None:
            return words.NOTHING
        sign = "+" if self.change >= 0 else "-"
        if math.isinf(self.change):
            return f"{sign} from 0"
        size = abs(self.change)
        return f"{sign}{100 * size:.1f} %" if self.is_relative else f"{sign}{written(size, self.kind)}"

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.change is None:
            return "failed: nothing measured"
        said = "failed" if self.is_failed else "passed"
        return f"{said}; the intervals overlap" if self._overlap else said


HEAD = ("regression", "tenant", "label", "before", "after", "change", "result")


def rows(results: Iterable[RegressionResult]) -> list[list[str]]:
    """The lines of a table with the columns of ``HEAD``."""
    return [
        [
            r.regression,
            r.tenant,
            r.label,
            shown(r.before, r.kind),
            shown(r.after, r.kind),
            r.written,
            r.verdict,
        ]
        for r in results
    ]


def parse(text: str) -> Regression:
    """One regression. Raises ``GoalError``, which names the part and the fix."""
    place, sign, value = split(text, EXAMPLE)
    parts = place.rsplit(".", 2)
    if len(parts) < 2:
        raise GoalError(f"{text!r} has no statistic; write [WHO.]METRIC.STATISTIC, as in {EXAMPLE}")
    who, metric, statistic = [ALL, *parts] if len(parts) == 2 else parts
    number = metric_named(text, metric, statistic)
    if value[0] not in "+-":
        raise GoalError(f"{text!r} has the value {value!r}; write a change with its sign, as in {EXAMPLE}")
    is_relative = value.endswith("%") and number.kind is not Kind.SHARE
    change = amount(text, value, Kind.SHARE if is_relative else number.kind)
    return Regression(text, who, metric, statistic, sign, change, is_relative)
