"""The budgets of accounts: of the entitlement and of the groups above it."""

from __future__ import annotations

from sidecar.controller.quotas import MOST_CREDENTIALS, QuotaAccounts
from tests.support.domain_builders import account
from tests.unit.tokenpool.control.test_admission_control import control_of
from tokenpool.accounting.account import Account
from tokenpool.entitlements import Group, Quota, Window
from tokenpool.quotas.budget import QuotaHold
from tokenpool.quotas.messages import Scope
from tokenpool.quotas.quotas import Quotas

DAY, HOUR = Quota(1000, Window.DAY), Quota(100, Window.HOUR)


def made() -> QuotaAccounts:
    return QuotaAccounts(control_of(1), Quotas("s1", 1.5, 0.0))


def owners(of: Account) -> list[tuple[Scope, str, str]]:
    return [(budget.id.scope, budget.id.name, budget.id.per) for budget in of.budgets]


def test_members_of_a_group_share_its_budgets() -> None:
    accounts = made()
    chat = account(name="chat", group="team", quotas=(HOUR,))
    search = account(name="search", group="org")
    other = account(name="other")
    groups = (Group("org", "pool", quotas=(DAY,)), Group("team", "pool", "org", quotas=(DAY, HOUR)))

    accounts.configure({"chat": chat, "search": search, "other": other}, groups)

    assert owners(chat) == [
        (Scope.ENTITLEMENT, "chat", "hour"),
        (Scope.GROUP, "team", "day"),
        (Scope.GROUP, "team", "hour"),
        (Scope.GROUP, "org", "day"),
    ]
    assert owners(search) == [(Scope.GROUP, "org", "day")]
    assert chat.budgets[-1] is search.budgets[0]
    assert other.budgets == ()


def test_a_changed_file_keeps_the_spending_and_forgets_removed_quotas() -> None:
    accounts = made()
    tenant = account(name="a", quotas=(DAY, HOUR))
    accounts.configure({"a": tenant}, ())
    day = tenant.budgets[0]
    day.settled = 70.0
    tenant.entitlement = account(name="a", quotas=(Quota(2000, Window.DAY),)).entitlement

    accounts.configure({"a": tenant}, ())

    assert tenant.budgets == (day,)
    assert (day.settled, day.quota.tokens) == (70, 2000)
    assert list(accounts.quotas.budgets) == [day.key]
    tenant.entitlement = account(name="a").entitlement
    accounts.configure({"a": tenant}, ())
    assert tenant.budgets == ()
    assert not accounts.quotas.budgets


def test_without_quotas_nothing_is_followed() -> None:
    accounts = made()
    accounts.configure({"a": account(name="a", group="org")}, (Group("org", "pool"),))
    assert accounts._control.quota_waits is None


def test_credentials_whose_windows_have_ended_are_forgotten() -> None:
    """Rotated credentials would otherwise add up for as long as the process lives."""
    quotas = Quotas("s1", 1.5, 0.0, is_alone=True)
    accounts, own = QuotaAccounts(control_of(1), quotas), (HOUR,)
    for number in range(MOST_CREDENTIALS):
        hold = quotas.cover_at_once(accounts.of_credential(f"k{number}", own), 10.0, 0.0)
        assert isinstance(hold, QuotaHold)
        if number:
            hold.settle(10.0)
    running = accounts.of_credential("k0", own)
    for now in (0.0, 100.0, 200.0):
        quotas.tick(now)

    accounts.of_credential("in the same window", own)
    assert len(quotas.budgets) == MOST_CREDENTIALS + 1
    quotas.tick(4000.0)
    while len(quotas.budgets) < 2 * MOST_CREDENTIALS:
        accounts.of_credential(f"new-{len(quotas.budgets)}", own)
    accounts.of_credential("last", own)

    assert accounts.of_credential("k0", own) is running
    assert {budget.id.name for budget in quotas.budgets.values()} == {"k0", "last"}


def test_only_changed_accounts_are_examined() -> None:
    """A pool file with many entitlements comes into force in one step, and most edits change a few."""
    accounts = made()
    kept, changed, gone = (account(name=name, quotas=(DAY,)) for name in ("kept", "changed", "gone"))
    accounts.configure({"kept": kept, "changed": changed, "gone": gone}, ())
    (budget,), (lost,) = kept.budgets, changed.budgets
    kept.entitlement = account(name="kept").entitlement  # not stated as changed
    changed.entitlement = account(name="changed", quotas=(HOUR,)).entitlement

    accounts.configure({"kept": kept, "changed": changed}, (), [changed], [gone])

    assert kept.budgets == (budget,)
    assert [each.id.per for each in changed.budgets] == ["hour"]
    assert lost.key not in accounts.quotas.budgets
    assert set(accounts.quotas.budgets) == {budget.key, changed.budgets[0].key}


def test_all_accounts_are_examined_when_groups_change() -> None:
    accounts = made()
    member = account(name="a", group="team")
    accounts.configure({"a": member}, (Group("team", "pool"),))

    accounts.configure({"a": member}, (Group("team", "pool", quotas=(DAY,)),), [])

    assert owners(member) == [(Scope.GROUP, "team", "day")]
