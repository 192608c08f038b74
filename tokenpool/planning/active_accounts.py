"""Active accounts: which accounts of a sidecar need a place in the next plan. ``now`` is seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tokenpool.accounting.account import Account
from tokenpool.planning.debt import decayed
from tokenpool.planning.idle import IdleTerms, idle_share


class ActiveAccounts:
    """The accounts that periodic work examines. The work of a tick follows these, not all that exist.

    An account becomes active at its first offer: call ``touch`` before a limit is read. It becomes idle again
    when the owner of the periodic work retires it: see ``can_rest``.

    A lone sidecar passes the terms of each plan to ``planned``. An idle account has the limits that a plan
    with it would give, its bucket is full, and its debt and its largest request fade. ``refresh`` computes
    that when the account is touched or shown. Without terms (limits come from the lease store) ``refresh``
    changes nothing.
    """

    __slots__ = ("_accounts", "_debt_decay_s", "_plan", "_planned_at", "_planned_before", "_terms")

    def __init__(self) -> None:
        self._accounts: dict[Account, None] = {}
        self._terms: IdleTerms | None = None
        self._debt_decay_s = 1.0
        self._plan = 0
        self._planned_at = self._planned_before = -math.inf

    def __iter__(self) -> Iterator[Account]:
        """In the order in which they became active. Iterate over a copy while accounts retire."""
        return iter(self._accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def touch(self, account: Account, now: float) -> None:
        """Make an account active before it offers or holds something. Does nothing to an active one."""
        if not account.is_active:
            self.refresh(account, now)
            account.is_active = True
            self._accounts[account] = None

    def can_rest(self, account: Account, now: float) -> bool:
        """Whether an active account needs no tick: it has no demand, holds nothing, and its bucket is full.

        Call it after the account's report was taken and its limits were set. Retiring the account then loses
        nothing, its debt included.
        """
        return (
            account.concurrency_in_use == 0
            and account.kv_in_use == 0
            and account.meter.is_idle
            and account.bucket.refill(now) >= account.bucket.depth
        )

    def retire(self, account: Account) -> None:
        """Make an account idle until it is touched."""
        if account in self._accounts:
            del self._accounts[account]
            account.is_active = False
            account.plan, account.planned_at = self._plan, self._planned_at

    def expel(self, account: Account) -> None:
        """Exclude an account for good: its entitlement is gone from the pool file.

        Its running requests settle as they began. A request that still waits does not make it active again.
        """
        self._accounts.pop(account, None)
        account.is_active = True

    def planned(self, terms: IdleTerms, now: float, debt_decay_s: float) -> None:
        """Note the terms of a lone sidecar's new plan, and its time constant of debt, for idle accounts."""
        self._terms = terms
        self._debt_decay_s = debt_decay_s
        self._plan += 1
        self._planned_before, self._planned_at = self._planned_at, now

    def refresh(self, account: Account, now: float) -> None:
        """Bring an idle account's limits, bucket and debt up to date. Does nothing to an active one."""
        terms = self._terms
        if terms is None or account.is_active or account.plan == self._plan:
            return
        # The floor in a report is as of the report before it.
        account.meter.rest(self._planned_before)
        floor = account.meter.floor
        account.meter.rest(self._planned_at)
        share = idle_share(account.entitlement, terms, floor)
        elapsed = self._planned_at - account.planned_at
        debt = account.debt
        if debt != 0 and elapsed > 0:
            debt = decayed(debt, elapsed, self._debt_decay_s)
        account.set_limits(share.limit, share.assured, debt, now, is_full=True)
        account.plan, account.planned_at = self._plan, self._planned_at
