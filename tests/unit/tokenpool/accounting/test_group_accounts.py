"""Group accounts: the use of a group's members counts together, and its ceiling binds all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.support.domain_builders import ASK, PLENTY, account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.group_accounts import group_accounts, has_room, place, use_ceilings
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed, admit
from tokenpool.amounts import Amount, Dimension
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.entitlements import Group, Tier
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Usage

INF = math.inf
ROOM = EngineRoom(64, 1e6)
SPENT = Usage(50, 50)


def sequences(count: float) -> Amount:
    return Amount(INF, INF, count)


def tree(groups: Sequence[Group], **members: str | None) -> tuple[dict[str, Account], dict[str, Account]]:
    """The accounts of a lone sidecar: of entitlements by name, and of groups by name."""
    accounts = {name: account(name=name, group=group) for name, group in members.items()}
    found = group_accounts(groups, {}, 0.0)
    place(accounts.values(), groups, found)
    use_ceilings(found.values(), 0.0)
    return accounts, {name.removeprefix("group:"): each for name, each in found.items()}


def decide(ledger: Ledger, tenant: Account, *, tokens: int = 100, now: float = 0.0) -> Ticket | Shed:
    return admit(ledger, tenant, ASK, cost(tokens=tokens), ROOM, now)


def test_members_count_together_up_to_each_ceiling_above_them() -> None:
    groups = [
        Group("org", "pool", ceiling=sequences(3)),
        Group("team", "pool", parent="org", ceiling=sequences(2)),
        Group("free", "pool"),
    ]
    accounts, found = tree(groups, a="team", b="team", c="org", d="free", e=None)
    ledger = Ledger()
    first = decide(ledger, accounts["a"])
    assert isinstance(first, Ticket)
    assert isinstance(decide(ledger, accounts["b"]), Ticket)
    full = decide(ledger, accounts["a"])
    assert isinstance(full, Shed)
    assert (full.reason, full.group, full.limit, full.in_use) == (Reason.CONCURRENCY, "team", 2, 2)
    assert isinstance(decide(ledger, accounts["c"]), Ticket)
    full = decide(ledger, accounts["c"])
    assert isinstance(full, Shed)
    assert (full.group, full.limit) == ("org", 3)
    assert all(isinstance(decide(ledger, accounts[name]), Ticket) for name in "de")
    assert set(found) == {"org", "team"}
    assert (found["org"].concurrency_in_use, found["team"].concurrency_in_use) == (3, 2)
    ledger.settle(first, SPENT, Ending.FINISHED, 1.0)
    assert (found["org"].concurrency_in_use, found["team"].concurrency_in_use) == (2, 1)
    assert isinstance(decide(ledger, accounts["b"], now=1.0), Ticket)


def test_a_request_larger_than_the_ceiling_of_a_group_never_fits() -> None:
    accounts, _ = tree([Group("g", "pool", ceiling=Amount(INF, 100, INF))], a="g")
    shed = admit(Ledger(), accounts["a"], ASK, cost(kv_tokens=112), ROOM, 0.0)
    assert isinstance(shed, Shed)
    assert (shed.reason, shed.dimension, shed.limit) == (Reason.NEVER_FITS, Dimension.KV_TOKENS, 100)


def test_a_group_has_one_bucket_for_all_members() -> None:
    accounts, found = tree([Group("g", "pool", ceiling=Amount(100, INF, INF))], a="g", b="g")
    ledger = Ledger()
    ticket = decide(ledger, accounts["a"], tokens=150)
    assert isinstance(ticket, Ticket)
    shed = decide(ledger, accounts["b"])
    assert isinstance(shed, Shed)
    assert (shed.reason, shed.group, shed.retry_after_s) == (Reason.TOKENS_PER_SECOND, "g", 0.5)
    assert isinstance(decide(ledger, accounts["b"], now=0.6), Ticket)
    ledger.settle(ticket, Usage(20, 30), Ending.FINISHED, 0.6)  # 100 of 150 tokens come back
    assert found["g"].bucket.level == 60 - 50 - 100 + 100


def test_a_running_request_keeps_its_groups_when_the_pool_file_changes() -> None:
    accounts, found = tree([Group("g", "pool", ceiling=sequences(2))], a="g")
    ledger = Ledger()
    ticket = decide(ledger, accounts["a"])
    assert isinstance(ticket, Ticket)
    new = [Group("h", "pool", ceiling=sequences(1))]
    place(accounts.values(), new, group_accounts(new, {}, 1.0))
    assert accounts["a"].groups == ()
    ledger.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert (found["g"].concurrency_in_use, found["g"].kv_in_use) == (0, 0)


def test_a_changed_ceiling_applies_to_the_use_so_far() -> None:
    groups = [Group("g", "pool", ceiling=sequences(2))]
    accounts, found = tree(groups, a="g")
    ledger = Ledger()
    decide(ledger, accounts["a"])
    later = group_accounts([Group("g", "pool", ceiling=sequences(1))], {"group:g": found["g"]}, 1.0)
    use_ceilings(later.values(), 1.0)
    assert later["group:g"] is found["g"]
    assert not has_room(found["g"], cost())
    assert isinstance(decide(ledger, accounts["a"], now=1.0), Shed)


def test_the_end_of_a_request_serves_a_waiting_request_of_another_member() -> None:
    accounts, _ = tree([Group("g", "pool", ceiling=sequences(1))], a="g", b="g")
    control = AdmissionControl(0.0, AdmissionQueue(QueueSettings(10.0, 10.0, 10.0)))
    control.engine_changed(ROOM, 0.0)
    ticket = control.offer(accounts["a"], ASK, cost(), 0.0)
    assert isinstance(ticket, Ticket)
    waiting = control.offer(accounts["b"], ASK, cost(), 0.1)
    assert isinstance(waiting, PendingRequest)
    control.ledger.settle(ticket, SPENT, Ending.FINISHED, 0.2)
    control.serve(0.2, accounts["a"])
    [(pending, outcome)] = control.take_effects().decided
    assert pending is waiting
    assert isinstance(outcome, Ticket)


def test_an_idle_engine_gives_no_room_beyond_the_ceiling_of_a_group() -> None:
    accounts, _ = tree([Group("g", "pool", ceiling=sequences(2))], a="g", b="g")
    for each in accounts.values():
        each.set_limits(Amount(PLENTY.tokens_per_second, PLENTY.kv_tokens, 1), Amount(), 0.0, 0.0)
    control = AdmissionControl(0.0, AdmissionQueue(QueueSettings(0.0, 0.0, 0.0)))
    control.engine_changed(ROOM, 0.0)
    outcomes = [control.offer(accounts["a"], ASK, cost(), 0.0) for _ in range(3)]
    assert [type(each) for each in outcomes] == [Ticket, Ticket, Shed]  # the second one uses free capacity


def test_a_spot_member_of_a_full_group_is_refused() -> None:
    accounts, _ = tree([Group("g", "pool", ceiling=sequences(1))], a="g")
    spot = account(name="s", tier=Tier.SPOT, group="g")
    spot.groups = accounts["a"].groups
    ledger = Ledger()
    assert isinstance(decide(ledger, accounts["a"]), Ticket)
    assert isinstance(decide(ledger, spot), Shed)


def test_a_tenant_in_shadow_mode_takes_no_more_of_a_group_than_enforcement_would_give_it() -> None:
    groups = [Group("g", "pool", ceiling=sequences(2))]
    accounts = {name: account(name=name, group="g", enforce=name == "a") for name in "ab"}
    found = group_accounts(groups, {}, 0.0)
    place(accounts.values(), groups, found)
    use_ceilings(found.values(), 0.0)
    control = AdmissionControl(0.0, AdmissionQueue(QueueSettings(0.0, 0.0, 0.0)))
    control.engine_changed(ROOM, 0.0)
    shadow = accounts["b"].shadow
    assert shadow is not None
    run = [control.offer_shadow(accounts["b"], shadow, ASK, cost(), 0.0) for _ in range(3)]
    assert [ticket.verdict is not None and ticket.verdict.decision.is_surplus for ticket in run] == [
        False,
        False,
        True,
    ]
    assert found["group:g"].concurrency_in_use == 2
    for ticket in run:
        control.ledger.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert found["group:g"].concurrency_in_use == 0
