"""The header lines about quotas, on answers to requests that have quotas.

``x-tokenpool-quota`` has one member for each quota, in the form of a structured field: the quota, the rest,
and the time of its reset. ``x-tokenpool-quota-warning`` has the percentage that is spent, from 80.
"""

from __future__ import annotations

from tokenpool.quotas.budget import Budget


def quota_lines(budgets: tuple[Budget, ...]) -> bytes:
    """The lines about these budgets, as last known here; none without budgets."""
    if not budgets:
        return b""
    level, members = 0, []
    for budget in budgets:
        rest = budget.tokens - budget.spent
        members.append(f"{budget.text_before}{int(rest) if rest > 0 else 0}{budget.text_after}")
        if budget.level > level:
            level = budget.level
    warning = f"x-tokenpool-quota-warning: {level}\r\n" if level else ""
    return f"x-tokenpool-quota: {', '.join(members)}\r\n{warning}".encode()
