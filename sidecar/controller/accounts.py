"""The accounts of the pool file in force. A changed file keeps the account of each entitlement by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.accounting.group_accounts import group_accounts, place, use_ceilings
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.entitlements import Entitlement, Group, Pool, PoolFile

PER_STEP: Final = 50
"""Accounts that one step makes or compares while a pool file is prepared: 12 µs each."""


class _Prepared:
    """The accounts of a pool file that is not in force yet."""

    __slots__ = ("accounts", "changed", "epoch", "file", "new", "removed")

    def __init__(self, file: PoolFile, epoch: int) -> None:
        self.file = file
        self.epoch = epoch
        """The epoch in which they were gathered. They are outdated after another change."""
        self.accounts: dict[str, Account] = {}
        self.changed: list[tuple[Account, Entitlement]] = []
        self.new: list[Account] = []
        self.removed: list[Account] = []


class Accounts:
    """All accounts by entitlement, replaced as a whole when the pool file changes."""

    def __init__(self, control: AdmissionControl, file: PoolFile, pool: Pool, now: float) -> None:
        self._control = control
        self.by_name: dict[str, Account] = {}
        self.epoch = 0
        """Rises with each pool file. A cached head is valid within one epoch."""
        self.anonymous: Account | None = None
        """The account of callers without a key, if the pool file names one."""
        self.enforces = pool.enforce
        """Whether the pool enforces decisions."""
        self.groups: tuple[Group, ...] = ()
        """The groups of the pool."""
        self.of_groups: dict[str, Account] = {}
        """The accounts of groups with a ceiling, by their names in the lease store."""
        self.changed: list[Account] = []
        """The accounts that the last pool file added or changed."""
        self.removed: list[Account] = []
        """The accounts that the last pool file removed."""
        self._pricing = pool.pricing
        self._prepared: list[_Prepared] = []
        """The last prepared files. The sidecar's own and the published one may be prepared at once."""
        self.configure(file, pool, now)

    def prepare(self, file: PoolFile, pool: Pool, now: float) -> Iterator[None]:
        """Make the accounts of the next pool file, in steps of ``PER_STEP``.

        Requests still use the accounts in force.
        """
        entitlements = file.entitlements_of(pool.name)
        prepared = _Prepared(file, self.epoch)
        for first in range(0, len(entitlements), PER_STEP):
            self._gather(entitlements[first : first + PER_STEP], pool, now, prepared)
            yield
        prepared.removed = self._missing(prepared)
        self._prepared = [*self._prepared[-1:], prepared]

    def configure(self, file: PoolFile, pool: Pool, now: float) -> None:
        """Put a pool file in force. Requests in flight settle on the account on which they began."""
        prepared = next((each for each in self._prepared if each.file is file), None)
        self._prepared = []
        if prepared is None or prepared.epoch != self.epoch:
            prepared = _Prepared(file, self.epoch)
            self._gather(file.entitlements_of(pool.name), pool, now, prepared)
            prepared.removed = self._missing(prepared)
        self.epoch += 1
        control = self._control
        for account, entitlement in prepared.changed:
            control.ledger.reconfigure(account, entitlement, pool.pricing)
        for account in prepared.removed:
            control.active.exclude(account)
        self.changed = [*prepared.new, *[account for account, _ in prepared.changed]]
        self.removed = prepared.removed
        self.by_name = prepared.accounts
        self.anonymous = self.by_name.get(file.anonymous) if file.anonymous else None
        before, self.groups = self.groups, file.groups_of(pool.name)
        if before or self.groups:
            self.of_groups = group_accounts(self.groups, self.of_groups, now)
            is_same = before == self.groups
            place(self.changed if is_same else self.by_name.values(), self.groups, self.of_groups)
        if control.leases is None:
            use_ceilings(self.of_groups.values(), now)
        self._pricing = pool.pricing
        self.enforces = pool.enforce

    def _missing(self, prepared: _Prepared) -> list[Account]:
        """The accounts in force that a prepared file no longer has."""
        if len(prepared.accounts) == len(self.by_name) + len(prepared.new):
            return []
        return [each for name, each in self.by_name.items() if name not in prepared.accounts]

    def _gather(
        self, entitlements: Sequence[Entitlement], pool: Pool, now: float, prepared: _Prepared
    ) -> None:
        """Find or make the account of each entitlement, and note which of those found must change."""
        known, is_repriced = self.by_name, pool.pricing != self._pricing
        for each in entitlements:
            entitlement = each if pool.enforce else replace(each, enforce=False)
            name = entitlement.name
            account = known.get(name)
            if account is None:
                account = Account(entitlement, pool.pricing, now)
                prepared.new.append(account)
            elif is_repriced or not account.entitlement.differs_in_keys_only(entitlement):
                prepared.changed.append((account, entitlement))
            prepared.accounts[name] = account
