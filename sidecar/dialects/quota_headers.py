"""The header lines about quotas, on answers to requests that have quotas.

``x-tokenpool-quota`` has one member for each quota, in the form of a structured field: the quota, the rest,
and the time of its reset. ``x-tokenpool-quota-warning`` has the percentage that is spent, from 80.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tokenpool.quotas.budget import Budget
from tokenpool.quotas.windows import text_of

_reset = lru_cache(maxsize=256)(text_of)


def quota_lines(budgets: Sequence[Budget]) -> bytes:
    """The lines about these budgets, as last known here; none without budgets."""
    if not budgets:
        return b""
    members, level = [], 0
    for budget in budgets:
        quota = budget.quota.tokens
        rest = quota - budget.spent
        members.append(
            f"{budget.label};q={int(quota)};r={int(rest) if rest > 0 else 0}"
            f';reset="{_reset(budget.window.end)}"'
        )
        if budget.level > level:
            level = budget.level
    lines = f"x-tokenpool-quota: {', '.join(members)}\r\n"
    if level:
        lines += f"x-tokenpool-quota-warning: {level}\r\n"
    return lines.encode()
