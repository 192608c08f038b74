"""The budgets of sidecars: portions, windows, outages and restored stores, on a virtual clock."""

from __future__ import annotations

import random
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpool.entitlements import Quota, Window
from tokenpool.quotas.budget import Budget, Exhausted, QuotaHold
from tokenpool.quotas.messages import BudgetId, Scope, budget_id, parsed_key
from tokenpool.quotas.quotas import MOST_ROWS, Crossed, Quotas
from tokenpool.quotas.reference import ReferenceQuotaStore

LIFETIME = 1.5
DAY = Quota(10_000.0, Window.DAY)
START = datetime(2026, 11, 29, 12, tzinfo=ZoneInfo("UTC")).timestamp()


class World:
    """Some sidecars and a store. Each sidecar's clock has another zero."""

    def __init__(
        self, sidecars: int = 2, quota: Quota = DAY, at: float = START, *, is_new: bool = False
    ) -> None:
        self.at = at
        self.store = ReferenceQuotaStore(LIFETIME)
        if not is_new:
            self.store.states(at - 40 * 86400)
        self.quotas = [Quotas(f"s{n}", LIFETIME, at - 100 * n) for n in range(sidecars)]
        self.budgets = [each.of(Scope.ENTITLEMENT, "gold", (quota,)) for each in self.quotas]
        self.zero = at
        self.is_down = False
        self.crossed: list[Crossed] = []

    def now(self, number: int) -> float:
        return self.at - self.zero + 100 * number

    def budget(self, number: int = 0) -> Budget:
        return self.budgets[number][0]

    def exchange(self, number: int, *, is_regular: bool = False) -> bool:
        """Send the message that is due, if any."""
        quotas = self.quotas[number]
        message = quotas.message(self.now(number), is_regular=is_regular)
        if message is None:
            return False
        if self.is_down:
            quotas.failed(message)
        else:
            answer = self.store.exchange(message, self.at)
            self.crossed += quotas.answered(message, answer, self.now(number))
        return True

    def tick(self, seconds: float = 0.25) -> None:
        """Let time pass, and let each sidecar send its regular message."""
        self.at += seconds
        for number, quotas in enumerate(self.quotas):
            self.crossed += quotas.tick(self.now(number))
            self.exchange(number, is_regular=True)

    def try_cover(self, number: int, tokens: float) -> QuotaHold | Exhausted | None:
        return self.quotas[number].cover(self.budgets[number], tokens, self.now(number))

    def cover(self, number: int, tokens: float) -> QuotaHold | Exhausted:
        """Cover a request, after a message if need be."""
        found = self.try_cover(number, tokens)
        if found is not None:
            return found
        quotas, budgets = self.quotas[number], self.budgets[number]
        quotas.begin_wait(budgets, tokens)
        self.exchange(number)
        quotas.end_wait(budgets, tokens)
        covered = quotas.cover_waiting(budgets, tokens, self.now(number))
        if isinstance(covered, Budget):
            return quotas.exhausted(covered, tokens, self.now(number))
        return covered

    def spend(self, number: int, tokens: float, actual: float | None = None) -> bool:
        found = self.cover(number, tokens)
        if isinstance(found, Exhausted):
            return False
        found.settle(tokens if actual is None else actual)
        return True


def test_a_key_names_its_budget() -> None:
    identity = budget_id(Scope.CREDENTIAL, "key/1", Quota(1, Window.MONTH, "America/Argentina/Ushuaia"))
    assert parsed_key(identity.key) == identity
    assert parsed_key("planet/day/UTC/x") is None
    assert parsed_key("group/day") is None


def test_the_first_request_needs_a_message_and_the_next_ones_do_not() -> None:
    world = World()
    assert world.try_cover(0, 100) is None
    assert world.spend(0, 100)
    assert isinstance(world.try_cover(0, 100), QuotaHold)
    assert world.budget().left >= 200


def test_a_request_is_held_then_settled_exactly() -> None:
    world = World()
    hold = world.cover(0, 300)
    assert isinstance(hold, QuotaHold)
    hold.grow(50)
    assert (world.budget().held, world.budget().settled) == (350, 0)
    hold.settle(120)
    hold.settle(999)  # it ends once
    assert (world.budget().held, world.budget().settled) == (0, 120)
    world.tick()
    [state] = world.store.states(world.at)
    assert state.spent == 120


def test_unused_portions_are_returned_when_the_requests_end() -> None:
    world = World()
    assert world.spend(0, 100)
    for _ in range(80):
        world.tick()
    [state] = world.store.states(world.at)
    assert (state.spent, state.portions) == (100, 0)
    message = world.quotas[0].message(world.now(0), is_regular=True)
    assert message is not None
    assert not message.requests, "an idle sidecar only says that it is there"
    assert world.quotas[1].message(world.now(1), is_regular=True) is None, "this one has spent nothing"


def test_the_quota_is_spent_to_its_end_and_then_refused_with_the_reset() -> None:
    world = World()
    spent = 0
    while world.spend(spent % 2, 100):
        spent += 1
        world.tick(0.05)
    assert spent == 100
    found = world.cover(0, 100)
    assert isinstance(found, Exhausted)
    assert found.is_final
    assert (found.spent, found.tokens, found.resets_in_s) == (
        10_000,
        10_000,
        pytest.approx(12 * 3600, abs=20),
    )
    assert [each.level for each in world.crossed] == [80, 95, 100]
    assert not world.quotas[0].is_due, "the next requests are refused without a message"


def test_tokens_that_running_requests_hold_are_no_final_refusal() -> None:
    world = World()
    hold = world.cover(0, 9_500)
    found = world.cover(1, 600)
    assert isinstance(found, Exhausted)
    assert not found.is_final
    assert isinstance(hold, QuotaHold)
    hold.settle(100)
    world.tick()
    assert world.spend(1, 600)


def test_a_new_window_begins_with_nothing_spent() -> None:
    world = World(at=datetime(2026, 11, 29, 23, 59, 50, tzinfo=ZoneInfo("UTC")).timestamp())
    assert world.spend(0, 9_900)
    hold = world.cover(0, 80)
    assert isinstance(hold, QuotaHold)
    assert not world.spend(0, 200)
    while world.at < world.zero + 11:
        world.tick()
    assert world.spend(1, 9_000)
    assert world.budget(0).settled == 0
    hold.settle(70)
    assert world.budget(0).settled == 70, "a request counts in the window in which it ends"


@pytest.mark.parametrize(
    ("zone", "at", "hours"),
    [("Europe/Berlin", (2026, 3, 28, 23, 30), 23.5), ("America/New_York", (2026, 10, 31, 23, 30), 25.5)],
)
def test_windows_of_a_clock_change_on_a_virtual_clock(zone: str, at: tuple[int, ...], hours: float) -> None:
    """The day after ``at`` has 23 or 25 hours: its quota is spent once in that time."""
    year, month, day, hour, minute = at
    start = datetime(year, month, day, hour, minute, tzinfo=ZoneInfo(zone)).timestamp()
    world = World(quota=Quota(1000, Window.DAY, zone), at=start)
    grants = []
    while world.at < start + (hours + 0.5) * 3600:
        if world.spend(0, 1000):
            grants.append((world.at - start) / 3600)
        world.tick(60)
    assert grants == [0, pytest.approx(0.5, abs=0.02), pytest.approx(hours, abs=0.02)]


def test_a_correction_of_the_clock_does_not_return_to_the_window_before() -> None:
    world = World(1, at=datetime(2026, 11, 30, tzinfo=ZoneInfo("UTC")).timestamp())
    assert world.spend(0, 500)
    world.at -= 0.2  # the store's clock is behind
    world.tick(0)
    assert world.budget().settled == 500


def test_a_wrong_clock_is_corrected_by_the_store() -> None:
    world = World(1)
    world.quotas[0] = Quotas("s0", LIFETIME, START + 3 * 86400)
    world.budgets[0] = world.quotas[0].of(Scope.ENTITLEMENT, "gold", (DAY,))
    assert not world.spend(0, 100)
    assert world.spend(0, 100)
    assert {each.start for each in world.store.states(world.at) if each.spent} == set()
    world.tick()
    [state] = [each for each in world.store.states(world.at) if each.spent]
    assert state.start == START - 12 * 3600


def test_without_the_store_a_sidecar_spends_its_portion_and_a_reserve() -> None:
    world = World()
    for number in (0, 1):
        assert world.spend(number, 100)
    world.tick()
    world.is_down = True
    assert world.budget().free > 8000
    free = world.budget().free
    portion = world.budget().left
    assert not world.spend(0, portion + 1), "a slow answer is no reason to use the reserve"
    while not world.quotas[0].is_cut_off(world.now(0)):
        world.tick(0.1)
    taken = 0
    while world.spend(0, 100):
        taken += 100
        world.tick(0.05)
    assert taken <= free / 4 + 4 * 100 + 100
    assert taken > free / 5
    refused = world.cover(0, 100)
    assert isinstance(refused, Exhausted)
    assert not refused.is_final


def test_a_paused_sidecar_does_not_use_its_old_portion() -> None:
    world = World()
    assert world.spend(0, 100)
    assert world.budget().left > 0
    world.at += LIFETIME
    assert world.try_cover(0, 100) is None


def test_a_store_that_lost_its_content_hears_of_all_spending() -> None:
    world = World()
    for number in (0, 1):
        assert world.spend(number, 1_000)
    for _ in range(100):
        world.tick()
    assert world.spend(0, 10)
    world.store = ReferenceQuotaStore(LIFETIME)
    world.spend(0, 10)
    for _ in range(8):
        world.tick()
    [state] = world.store.states(world.at)
    assert state.spent == pytest.approx(2020)
    assert state.may_restore
    assert not state.is_restored
    assert world.store.restore(state.key, state.start, 5_000, world.at)
    for _ in range(100):
        world.tick()
    assert world.spend(1, 4_900)
    assert not world.spend(1, 200)


def test_a_lone_sidecar_has_the_whole_quota() -> None:
    quotas = Quotas("", LIFETIME, START, is_alone=True)
    budgets = quotas.of(Scope.ENTITLEMENT, "gold", (DAY,))
    hold = quotas.cover(budgets, 9_000, 0.0)
    assert isinstance(hold, QuotaHold)
    hold.settle(8_000)
    assert [each.level for each in quotas.tick(1.0)] == [80]
    assert quotas.message(1.0, is_regular=True) is None
    assert isinstance(quotas.cover(budgets, 2_001, 2.0), Exhausted)
    assert isinstance(quotas.cover(budgets, 2_000, 2.0), QuotaHold)
    assert isinstance(quotas.cover(budgets, 9_000, 13 * 3600.0), Exhausted), "the running request is held"
    assert isinstance(quotas.cover(budgets, 8_000, 13 * 3600.0), QuotaHold)


def test_all_quotas_of_a_request_apply() -> None:
    quotas = Quotas("", LIFETIME, START, is_alone=True)
    budgets = quotas.of(Scope.ENTITLEMENT, "gold", (DAY, Quota(500, Window.HOUR)))
    assert quotas.of(Scope.ENTITLEMENT, "gold", (DAY, Quota(500, Window.HOUR))) == budgets
    hold = quotas.cover(budgets, 400, 0.0)
    assert isinstance(hold, QuotaHold)
    assert [budget.held for budget in budgets] == [400, 400]
    found = quotas.cover(budgets, 200, 0.0)
    assert isinstance(found, Exhausted)
    assert found.budget == BudgetId(Scope.ENTITLEMENT, "gold", "hour", "UTC")
    assert [budget.held for budget in budgets] == [400, 400]


def test_a_changed_quota_keeps_its_spending() -> None:
    world = World(1)
    assert world.spend(0, 9_900)
    assert not world.spend(0, 200)
    world.budgets[0] = world.quotas[0].of(Scope.ENTITLEMENT, "gold", (Quota(20_000, Window.DAY),))
    assert world.spend(0, 200)
    assert world.budget().settled == 10_100
    world.quotas[0].keep_only([])
    assert world.quotas[0].last_message() is None


def test_a_message_has_a_part_of_many_budgets_and_all_are_stated_in_turn() -> None:
    """One call with all of them would keep Redis from all other calls."""
    world = World(sidecars=1)
    [quotas] = world.quotas
    many = 2 * MOST_ROWS + 100
    budgets = [quotas.of(Scope.ENTITLEMENT, f"t{number}", (DAY,)) for number in range(many)]
    for each in budgets:
        assert quotas.cover(each, 10.0, world.now(0)) is None
        quotas.begin_wait(each, 10.0)

    sizes = []
    while quotas.is_due:
        message = quotas.message(world.now(0), is_regular=False)
        assert message is not None
        sizes.append(len(message.requests))
        quotas.answered(message, world.store.exchange(message, world.at), world.now(0))
    assert sizes == [MOST_ROWS] * 4  # the first ones again, because the store is another one than before
    for each in budgets:
        found = quotas.cover_waiting(each, 10.0, world.now(0))
        assert isinstance(found, QuotaHold)
        quotas.end_wait(each, 10.0)
        found.settle(7.0)
    for _ in range(3):
        world.tick()

    assert {state.spent for state in world.store.states(world.at)} == {7.0}
    assert len(world.store.states(world.at)) == many


def test_requests_that_wait_do_not_keep_other_budgets_from_being_stated() -> None:
    world = World(sidecars=1)
    [quotas] = world.quotas
    for number in range(2 * MOST_ROWS):
        [budget] = quotas.of(Scope.ENTITLEMENT, f"t{number}", (DAY,))
        if number % 2:
            quotas.begin_wait((budget,), 1.0)
        else:
            quotas.cover_at_once((budget,), 1.0, world.now(0))

    message = quotas.message(world.now(0), is_regular=True)

    assert message is not None
    waiting = sum(request.needed > request.held for request in message.requests)
    assert (waiting, len(message.requests)) == (MOST_ROWS // 2, MOST_ROWS)
    assert quotas.is_due


def test_a_sidecar_that_stops_returns_its_portions() -> None:
    world = World()
    assert world.spend(0, 100)
    last = world.quotas[0].last_message()
    assert last is not None
    world.store.exchange(last, world.at)
    [state] = world.store.states(world.at)
    assert (state.spent, state.portions) == (100, 0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 4), st.sampled_from([500.0, 3_000.0, 20_000.0]))
def test_any_requests_keep_the_quota_but_for_what_they_outgrow(
    seed: int, sidecars: int, tokens: float
) -> None:
    """With a store that answers, spending exceeds the quota only by what requests outgrew."""
    chance = random.Random(seed)
    world = World(sidecars, Quota(tokens, Window.DAY))
    running: list[tuple[QuotaHold, float]] = []
    spent = outgrown = 0.0
    for _ in range(60):
        number = chance.randrange(sidecars)
        cost = chance.uniform(1, 400)
        found = world.cover(number, cost)
        if isinstance(found, QuotaHold):
            running.append((found, cost))
        if running and chance.random() < 0.5:
            hold, held = running.pop(chance.randrange(len(running)))
            actual = held * chance.choice([0.0, 0.5, 1.0, 1.0, 1.2])
            if actual > held:
                hold.grow(actual - held)
                outgrown += actual - held
            hold.settle(actual)
            spent += actual
        if chance.random() < 0.4:
            world.tick(chance.choice([0.0, 0.25, 1.0]))
    held = sum(held for _, held in running)
    assert spent + held <= tokens + outgrown + 1e-6
    world.tick()
    world.tick()
    [state] = world.store.states(world.at) or [None]
    assert state is None or state.spent == pytest.approx(spent)


def test_a_request_of_exactly_the_rest_is_covered_although_sums_have_rounding_errors() -> None:
    world = World(quota=Quota(0.4, Window.DAY))
    for _ in range(3):
        assert world.spend(0, 0.1)
    assert world.budget().quota.tokens - world.budget().spent < 0.1
    assert world.spend(0, 0.1)
    assert not world.spend(0, 0.1)


def test_a_request_beyond_the_rest_takes_no_portion_from_smaller_ones() -> None:
    world = World()
    assert world.spend(0, 9_970)
    world.tick()
    assert not world.spend(1, 100)
    world.tick()
    for _ in range(10):
        world.tick()
        refusal = world.try_cover(1, 100)
        assert isinstance(refusal, Exhausted)
        assert refusal.is_final
    assert world.spend(0, 30)


def test_a_refusal_by_the_spending_is_confirmed_by_the_store_from_time_to_time() -> None:
    world = World()
    assert world.spend(0, 9_970)
    assert not world.spend(1, 100)
    world.at += 5.1
    assert world.try_cover(1, 100) is None
