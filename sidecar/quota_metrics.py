"""The spending of budgets, for Prometheus: of a lone sidecar, and of a sidecar with several workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric

from tokenpool.quotas.messages import BudgetId

MOST_SERIES = 400
"""The most budgets with series of their own."""
_LABELS = ("scope", "name", "per", "timezone")


def spending(budgets: Iterable[tuple[BudgetId, float, float]]) -> Iterator[Metric]:
    """The quota and the spent tokens of the first ``MOST_SERIES`` budgets. Both are weighted tokens."""
    tokens = GaugeMetricFamily(
        "tokenpool_quota_tokens", "Weighted tokens of the quota per window.", labels=_LABELS
    )
    spent = GaugeMetricFamily(
        "tokenpool_quota_spent_tokens",
        "Weighted tokens of requests that ended in the current window of the quota.",
        labels=_LABELS,
    )
    for budget, quota, used in islice(budgets, MOST_SERIES):
        series = (budget.scope.value, budget.name, budget.per, budget.timezone)
        tokens.add_metric(series, quota)
        spent.add_metric(series, used)
    yield from (tokens, spent)
