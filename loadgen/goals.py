"""Goals of a run, such as ``guaranteed.ttft.p99<=300ms``. Pure.

A goal is WHO.METRIC.STATISTIC OPERATOR VALUE. WHO is a tenant, a tier (each tenant of it is judged by itself)
or ``all``. A goal without a measurement is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadgen.conditions import OPERATORS, GoalError, amount, metric_named, split
from loadgen.measures import METRICS, Kind, Metric, shown
from loadgen.records import TenantMeta
from loadgen.statistics import Estimate
from loadgen.summary import EVERYONE, WHOLE, Summary

ALL = "all"
EXAMPLE = "guaranteed.ttft.p99<=300ms"


class Goal(msgspec.Struct, frozen=True):
    """A goal as given."""

    text: str
    who: str
    metric: str
    statistic: str
    operator: str
    bound: float
    """In seconds, per second, a share or a count."""

    @property
    def number(self) -> Metric:
        """The number that it judges."""
        return METRICS[self.metric][self.statistic]


class GoalResult(msgspec.Struct, frozen=True):
    """A goal beside its measurement, for one tenant."""

    goal: str
    tenant: str
    kind: Kind
    operator: str
    bound: float
    measured: Estimate | None
    """``None`` if nothing was measured: the goal is missed."""
    is_met: bool

    @property
    def is_certain(self) -> bool:
        """Whether the whole interval is on the same side of the bound as the measured value."""
        ends = self.measured.ends if self.measured is not None else None
        holds = OPERATORS[self.operator]
        return ends is not None and all(holds(end, self.bound) == self.is_met for end in ends)

    @property
    def verdict(self) -> str:
        """The result in words."""
        said = "met" if self.is_met else "missed"
        has_interval = self.measured is not None and self.measured.ends is not None
        return f"{said}; the interval includes the goal" if has_interval and not self.is_certain else said


def parse(text: str) -> Goal:
    """One goal. Raises ``GoalError``, which names the part and the fix."""
    place, sign, value = split(text, EXAMPLE)
    parts = place.rsplit(".", 2)
    if len(parts) < 3 or not parts[0]:
        raise GoalError(
            f"{text!r} has no tenant; write WHO.METRIC.STATISTIC, where WHO is a tenant, a tier or '{ALL}', "
            f"as in {EXAMPLE}"
        )
    who, metric, statistic = parts
    number = metric_named(text, metric, statistic)
    return Goal(text, who, metric, statistic, sign, amount(text, value, number.kind))


def tenants(text: str, who: str, known: Sequence[TenantMeta]) -> list[str]:
    """The names in the summary that the condition ``text`` is for: those of a tenant, a tier or ``all``.

    Raises ``GoalError`` if ``who`` is none of them.
    """
    names = [tenant.name for tenant in known]
    tiers = list(dict.fromkeys(tenant.tier for tenant in known if tenant.tier))
    if who in names:
        return [who]
    if who in tiers:
        return [tenant.name for tenant in known if tenant.tier == who]
    if who == ALL:
        return [EVERYONE] if len(names) > 1 else names
    choices = f"the tenants {', '.join(names)}"
    choices += f", the tiers {', '.join(tiers)}" if tiers else ""
    raise GoalError(f"{text!r} names {who!r}, which is no tenant or tier; use {choices}, or '{ALL}'")


def check(goals: Iterable[Goal], known: Sequence[TenantMeta]) -> None:
    """Raise ``GoalError`` for a goal that no run of these tenants can be judged by."""
    for goal in goals:
        found = tenants(goal.text, goal.who, known)
        without = [t.name for t in known if t.slo is None and t.name in found]
        if goal.metric == "goodput" and (without or all(t.slo is None for t in known)):
            named = f"tenant {without[0]!r} has" if without else "the tenants have"
            raise GoalError(f"{goal.text!r}: {named} no slo; add 'slo: {{ttft_ms: 300}}' to the tenant")


HEAD = ("goal", "tenant", "measured", "result")


def rows(results: Iterable[GoalResult]) -> list[list[str]]:
    """The lines of a table with the columns of ``HEAD``."""
    return [[r.goal, r.tenant, shown(r.measured, r.kind), r.verdict] for r in results]


def judge(goals: Iterable[Goal], summary: Summary, known: Sequence[TenantMeta]) -> list[GoalResult]:
    """Each goal for each of its tenants, over the whole run. Raises ``GoalError``."""
    results = []
    for goal in goals:
        for name in tenants(goal.text, goal.who, known):
            cell = summary.cell(name, WHOLE)
            measured = goal.number.read(cell) if cell is not None else None
            is_met = measured is not None and OPERATORS[goal.operator](measured.value, goal.bound)
            results.append(
                GoalResult(goal.text, name, goal.number.kind, goal.operator, goal.bound, measured, is_met)
            )
    return results
