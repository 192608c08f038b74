"""Active accounts: plans for them alone give all accounts the limits of plans for all accounts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, PLENTY, account, cost, entitlement
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.rules import admit
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.outcomes import Ending
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.planning.idle import IdleTerms
from tokenpool.planning.planner import Plan, PlanInput, PlannerSettings, plan
from tokenpool.planning.profiles import Profile, after_idle_time
from tokenpool.pricing.cost import Usage

CAPACITY = Amount(1000.0, 4000.0, 8.0)
ROOM = EngineRoom(slots=8, kv_tokens=4000)
SETTINGS = PlannerSettings()
TENANTS = (
    entitlement("g", Tier.GUARANTEED, guarantee=Amount(200, 500, 2)),
    entitlement("e", weight=2.0),
    entitlement("f", ceiling=Amount(300, 1000, 3)),
    entitlement("s", Tier.SPOT),
)


class Sidecar:
    """Ticks, offers and endings of one sidecar; ``plans_all`` keeps every account active."""

    def __init__(self, *, plans_all: bool, tenants: Sequence[Entitlement] = TENANTS) -> None:
        self.plans_all = plans_all
        self.ledger = Ledger()
        self.active = ActiveAccounts()
        self.accounts = [Account(t, Pricing(), 0.0) for t in tenants]
        self.tickets: list[Ticket] = []
        self.profiles: dict[str, tuple[Profile, float]] = {}
        self.ticked_at = 0.0
        self.made: Plan | None = None
        self.tick(0.0)

    def tick(self, now: float) -> None:
        active = self.active
        accounts = self.accounts if self.plans_all else list(active)
        names = [a.entitlement.name for a in accounts]
        before, self.ticked_at = self.ticked_at, now
        made = self.made = plan(
            PlanInput(
                CAPACITY,
                [a.entitlement for a in accounts],
                {a.entitlement.name: a.report(now) for a in accounts},
                {a.entitlement.name: a.debt for a in accounts},
                now - before,
                SETTINGS,
                {n: after_idle_time(*self.profile(n, before)) for n in names},
            )
        )
        if not self.plans_all:
            active.planned(made.idle, now, SETTINGS.debt_decay_s)
        for each in accounts:
            share = made.entitlements[each.entitlement.name]
            each.set_limits(share.limit, share.assured, share.debt, now)
            self.profiles[each.entitlement.name] = made.profiles[each.entitlement.name], now
            if not self.plans_all and active.may_retire(each, now):
                active.retire(each)

    def profile(self, name: str, now: float) -> tuple[Profile, float]:
        """The last profile of an entitlement, and its age in seconds."""
        profile, at = self.profiles.get(name, (Profile(), 0.0))
        return profile, now - at

    def offer(self, place: int, tokens: int, kv_tokens: int, sequences: int, now: float) -> object:
        price = cost(tokens=tokens, kv_tokens=kv_tokens, sequences=sequences)
        self.active.touch(self.accounts[place], now)
        answer = admit(self.ledger, self.accounts[place], ASK, price, ROOM, now)
        if isinstance(answer, Ticket):
            self.tickets.append(answer)
            return None
        return answer.reason

    def end(self, now: float) -> None:
        if self.tickets:
            self.ledger.settle(self.tickets.pop(0), Usage(50, 40), Ending.FINISHED, now)

    def seen(self, now: float) -> list[tuple[Amount, Amount, float]]:
        for each in self.accounts:
            self.active.refresh(each, now)
        return [(a.limit, a.assured, a.debt) for a in self.accounts]


def close(mine: list[tuple[Amount, Amount, float]], theirs: list[tuple[Amount, Amount, float]]) -> None:
    for (limit, assured, debt), (limit2, assured2, debt2) in zip(mine, theirs, strict=True):
        assert limit.values() == pytest.approx(limit2.values(), rel=1e-6)
        assert assured.values() == pytest.approx(assured2.values(), rel=1e-6)
        assert debt == pytest.approx(debt2, rel=1e-6, abs=1e-9)


OFFER = st.tuples(
    st.just("offer"),
    st.integers(0, 3),
    st.integers(1, 800),
    st.sampled_from([16, 112, 1200]),
    st.integers(1, 3),
)
STEP = st.one_of(OFFER, st.just(("end",)), st.tuples(st.just("pass"), st.integers(1, 60)))


@given(st.lists(STEP, max_size=60))
@example(
    [
        ("offer", 0, 1, 16, 1),
        ("pass", 26),
        ("offer", 3, 1, 16, 2),
        ("end",),
        ("end",),
        ("pass", 70),
        ("offer", 0, 1, 16, 3),
        ("offer", 1, 1, 16, 2),
        ("offer", 3, 1, 16, 1),
        ("pass", 3),
    ]
)  # an entitlement without a profile, because it was idle since the start
def test_retiring_idle_accounts_changes_no_limits(steps: list[tuple[object, ...]]) -> None:
    """A bucket may be fuller: if its limit rose in its idle time, it is full at once, not within a second."""
    some, all_planned = Sidecar(plans_all=False), Sidecar(plans_all=True)
    ticks = 0
    for step in steps:
        now = ticks * 0.25 + 0.1
        for sidecar in (some, all_planned):
            if step[0] == "offer":
                sidecar.offer(*step[1:], now)  # type: ignore[arg-type]
            elif step[0] == "end":
                sidecar.end(now)
        if [t.account.entitlement.name for t in some.tickets] != [
            t.account.entitlement.name for t in all_planned.tickets
        ]:
            return  # a fuller bucket admitted one more request: the two runs differ from here on
        if step[0] == "pass":
            for _ in range(int(str(step[1]))):
                ticks += 1
                some.tick(ticks * 0.25)
                all_planned.tick(ticks * 0.25)
        close(some.seen(ticks * 0.25 + 0.1), all_planned.seen(ticks * 0.25 + 0.1))
        for mine, theirs in zip(some.accounts, all_planned.accounts, strict=True):
            now = ticks * 0.25 + 0.1
            assert mine.bucket.refill(now) >= theirs.bucket.refill(now) - 1e-6


def test_an_idle_account_costs_a_tick_nothing_and_comes_back_with_a_full_bucket() -> None:
    sidecar = Sidecar(plans_all=False)
    assert len(sidecar.active) == 0

    assert sidecar.offer(1, 900, 112, 1, 0.1) is None
    sidecar.end(0.2)
    sidecar.tick(0.25)
    assert [a.entitlement.name for a in sidecar.active] == ["e"]
    for tick in range(2, 60):
        sidecar.tick(tick * 0.25)

    assert len(sidecar.active) == 0
    owner = sidecar.accounts[1]
    sidecar.active.touch(owner, 15.0)
    assert owner.bucket.level == owner.bucket.depth == owner.depth > 0
    assert owner.limit.values() == CAPACITY.values()


def test_the_first_request_in_a_busy_pool_meets_the_limits_of_the_last_plan() -> None:
    sidecar = Sidecar(plans_all=False)
    for tick in range(1, 9):
        for _ in range(8):
            sidecar.offer(1, 500, 400, 1, tick * 0.25 - 0.1)
        sidecar.tick(tick * 0.25)
    spot, owner = sidecar.accounts[3], sidecar.accounts[0]

    sidecar.active.touch(spot, 2.1)
    sidecar.active.touch(owner, 2.1)

    assert spot.limit.tokens_per_second == 0
    assert owner.limit.tokens_per_second == 200
    assert owner.assured.values() == (200, 500, 2)


def test_an_account_with_demand_use_or_a_low_bucket_does_not_retire() -> None:
    owner, active = account(Amount(100, 1e6, 8)), ActiveAccounts()
    active.touch(owner, 0.0)
    assert active.may_retire(owner, 0.0)

    owner.kv_in_use = 1
    assert not active.may_retire(owner, 0.0)
    owner.kv_in_use = 0
    owner.meter.offer(cost())
    assert not active.may_retire(owner, 0.0)
    owner.report(10.0)
    owner.report(1000.0)
    assert active.may_retire(owner, 1000.0)
    owner.bucket.add(-50)
    assert not active.may_retire(owner, 1000.0)
    assert active.may_retire(owner, 1001.0)


def test_without_terms_an_idle_account_stays_unchanged() -> None:
    owner, active = account(PLENTY), ActiveAccounts()
    active.touch(owner, 5.0)
    active.retire(owner)

    active.refresh(owner, 6.0)

    assert owner.limit == PLENTY
    assert not owner.is_active


def test_an_account_that_was_removed_from_the_pool_file_does_not_become_active_again() -> None:
    owner, active = account(), ActiveAccounts()
    active.touch(owner, 0.0)
    active.exclude(owner)

    active.touch(owner, 1.0)
    active.planned(IdleTerms(), 1.0, 4.0)
    active.refresh(owner, 1.0)
    active.retire(owner)

    assert list(active) == []
    assert owner.limit == PLENTY


@given(st.lists(st.floats(0.01, 5), max_size=40), st.floats(0, 30))
def test_a_profile_after_idle_time_equals_the_result_of_plans_without_service(
    gaps: list[float], age_s: float
) -> None:
    owner = entitlement("a")
    start = Profile(Amount(10.0, 2000.0, 1.0), 1, age_s)
    stepped = start
    for gap in gaps:
        stepped = plan(PlanInput(CAPACITY, [owner], {}, {}, gap, SETTINGS, {"a": stepped})).profiles["a"]

    at_once = after_idle_time(start, sum(gaps))

    assert at_once.place == stepped.place
    assert at_once.age_s == pytest.approx(stepped.age_s)
    # A step over the boundary between the two averages differs by less than the step.
    assert at_once.service.kv_tokens == pytest.approx(stepped.service.kv_tokens, abs=20.0, rel=0.3)
