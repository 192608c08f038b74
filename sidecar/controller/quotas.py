"""The budgets of each account: which quotas apply to its requests. Nothing runs here without quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.entitlements import Group, Quota, chain
from tokenpool.quotas.budget import Budget
from tokenpool.quotas.messages import Scope
from tokenpool.quotas.quotas import Quotas

MOST_CREDENTIALS: Final = 1000
"""With more used credentials than this, those whose windows have ended are forgotten."""


class QuotaAccounts:
    """Gives accounts the budgets of their quotas, when a pool file comes into force."""

    def __init__(self, control: AdmissionControl, quotas: Quotas) -> None:
        self._control = control
        self.quotas = quotas
        self._by_credential: dict[str, tuple[tuple[Quota, ...], tuple[Budget, ...]]] = {}
        """The quotas of credentials that were used, with their budgets."""
        self._groups: Sequence[Group] = ()
        """The groups of the pool file in force."""
        self._forget_at = MOST_CREDENTIALS
        """The number of these credentials at which ended ones are forgotten."""

    def configure(
        self,
        accounts: Mapping[str, Account],
        groups: Sequence[Group],
        changed: Iterable[Account] | None = None,
        removed: Iterable[Account] = (),
    ) -> None:
        """Use these accounts and groups. Budgets that no account has any more are forgotten.

        Only the ``changed`` accounts are examined, unless the groups have changed. ``None``: all.
        ``removed`` are the accounts that the pool file before had.
        """
        quotas = self.quotas
        by_name = {group.name: group for group in groups} if any(each.quotas for each in groups) else {}
        before, self._groups = self._groups, groups
        forgets = any(account.budgets for account in removed)
        for account in accounts.values() if changed is None or groups != before else changed:
            entitlement = account.entitlement
            above = chain(entitlement.group, by_name) if by_name else ()
            if entitlement.quotas or above or account.budgets:
                budgets = quotas.of(Scope.ENTITLEMENT, entitlement.name, entitlement.quotas)
                for group in above:
                    budgets += quotas.of(Scope.GROUP, group.name, group.quotas)
                forgets = forgets or bool(set(account.budgets) - set(budgets))
                account.budgets = budgets
        if forgets:
            kept = [budget for account in accounts.values() for budget in account.budgets]
            kept += [budget for _, budgets in self._by_credential.values() for budget in budgets]
            quotas.keep_only(kept)
        if quotas.budgets:
            self._control.follow_quotas(quotas)

    def of_credential(self, name: str, quotas: tuple[Quota, ...]) -> tuple[Budget, ...]:
        """The budgets of the quotas of a credential."""
        known = self._by_credential.get(name)
        if known is not None and known[0] is quotas:
            return known[1]
        if len(self._by_credential) >= self._forget_at:
            self._forget_ended()
        budgets = self.quotas.of(Scope.CREDENTIAL, name, quotas)
        self._by_credential[name] = quotas, budgets
        self._control.follow_quotas(self.quotas)
        return budgets

    def _forget_ended(self) -> None:
        """Forget credentials that were not used in the current windows. Many of them may have ended."""
        for name, (_, budgets) in list(self._by_credential.items()):
            if self.quotas.forget_ended(budgets):
                del self._by_credential[name]
        self._forget_at = max(2 * len(self._by_credential), MOST_CREDENTIALS)
