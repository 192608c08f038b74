"""Active accounts: the accounts of a sidecar that the next plan must include. ``now`` is in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tokenpool.accounting.account import Account
from tokenpool.planning.debt import decayed
from tokenpool.planning.idle import IdleTerms, idle_share


class ActiveAccounts:
    """The accounts that periodic work examines. The work of a tick depends on their number alone.

    An account becomes active at its first offer: call ``touch`` before a limit is read. It becomes idle again
    when the owner of the periodic work calls ``retire``. See ``may_retire``.

    A lone sidecar passes the terms of each plan to ``planned``. An idle account has the limits that a plan
    with it would give, and a full bucket. Its debt and its largest request decay. ``refresh`` computes this
    state when the account is touched or shown. Without terms, because the limits come from the lease store,
    ``refresh`` changes nothing.
    """

    __slots__ = ("_accounts", "_debt_decay_s", "_plan", "_planned_at", "_planned_before", "_terms")

    def __init__(self) -> None:
        self._accounts: dict[Account, None] = {}
        self._terms: IdleTerms | None = None
        self._debt_decay_s = 1.0
        self._plan = 0
        self._planned_at = self._planned_before = -math.inf

    def __iter__(self) -> Iterator[Account]:
        """Iterate in the order in which accounts became active. Iterate over a copy while accounts retire."""
        return iter(self._accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def touch(self, account: Account, now: float) -> None:
        """Make an account active before its first offer. Does nothing to an active account."""
        if not account.is_active:
            self.refresh(account, now)
            account.is_active = True
            self._accounts[account] = None

    def may_retire(self, account: Account, now: float) -> bool:
        """Whether an active account may retire: it has no demand, holds nothing, and has a full bucket.

        Call it after the account's report was taken and its limits were set. A retirement then loses no
        state, not even debt.
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

    def exclude(self, account: Account) -> None:
        """Exclude an account permanently: its entitlement was removed from the pool file.

        Its running requests settle as usual. A request that still waits does not make it active again.
        """
        self._accounts.pop(account, None)
        account.is_active = True

    def planned(self, terms: IdleTerms, now: float, debt_decay_s: float) -> None:
        """Remember the terms of a lone sidecar's new plan, and the decay time of debts, for idle accounts."""
        self._terms = terms
        self._debt_decay_s = debt_decay_s
        self._plan += 1
        self._planned_before, self._planned_at = self._planned_at, now

    def refresh(self, account: Account, now: float) -> None:
        """Bring an idle account's limits, bucket and debt up to date. Does nothing to an active account."""
        terms = self._terms
        if terms is None or account.is_active or account.plan == self._plan:
            return
        # A report states the floor of the report before it.
        account.meter.skip_idle_time(self._planned_before)
        floor = account.meter.floor
        account.meter.skip_idle_time(self._planned_at)
        share = idle_share(account.entitlement, terms, floor, is_bounded=bool(account.groups))
        elapsed = self._planned_at - account.planned_at
        debt = account.debt
        if debt != 0 and elapsed > 0:
            debt = decayed(debt, elapsed, self._debt_decay_s)
        account.set_limits(share.limit, share.assured, debt, now, is_full=True)
        account.plan, account.planned_at = self._plan, self._planned_at
