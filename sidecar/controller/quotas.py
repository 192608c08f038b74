"""The budgets of each account: which quotas apply to its requests. Nothing runs here without quotas."""

from __future__ import annotations

from collections.abc import Mapping

from tokenpool.accounting.account import Account
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.quotas.messages import Scope
from tokenpool.quotas.quotas import Quotas


class QuotaAccounts:
    """Gives accounts the budgets of their quotas, when a pool file comes into force."""

    def __init__(self, control: AdmissionControl, quotas: Quotas) -> None:
        self._control = control
        self.quotas = quotas

    def configure(self, accounts: Mapping[str, Account]) -> None:
        """Use these accounts. Budgets that no account has any more are forgotten."""
        quotas = self.quotas
        for name, account in accounts.items():
            own = account.entitlement.quotas
            if own or account.budgets:
                account.budgets = quotas.of(Scope.ENTITLEMENT, name, own)
        if quotas.budgets:
            quotas.keep_only(budget for account in accounts.values() for budget in account.budgets)
        if quotas.budgets:
            self._control.follow_quotas(quotas)
