"""An account gets its limits by one call from each source, and keeps its use."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import Account, PoolView
from tokenpool.accounting.bucket import BUCKET_REQUESTS, BUCKET_SECONDS
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.amounts import NOTHING, UNBOUNDED, Amount
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage

LIMIT = Amount(1000.0, 8000.0, 8.0)
VIEW = PoolView(LIMIT, 1000.0, 0.5, 300.0, 2000.0, 3.0, has_peers=True)
USED = Usage(50, 50)


def leased(limit: Amount, *, tokens: float, ceiling: Amount = UNBOUNDED) -> Account:
    """An account with exactly this lease."""
    made = account(limit, ceiling=ceiling)
    made.set_lease(limit, NOTHING, tokens)
    return made


def test_the_planner_of_a_lone_sidecar_sets_every_limit_at_once() -> None:
    owner = account()
    owner.set_pool(VIEW)

    owner.set_limits(LIMIT, Amount(0, 400, 2), 1.5, 0.0)

    assert (owner.limit, owner.pool_limit, owner.debt) == (LIMIT, LIMIT, 1.5)
    assert owner.assured == Amount(0, 400, 2)
    assert (owner.level_elsewhere, owner.kv_elsewhere, owner.concurrency_elsewhere) == (0, 0, 0)
    assert (owner.bucket.rate, owner.bucket.depth, owner.depth) == (1000, 1000, 1000)


def test_a_full_bucket_comes_with_the_limits_of_an_idle_account() -> None:
    owner = account(LIMIT)
    owner.charge(700)

    owner.set_limits(LIMIT, NOTHING, 0.0, 0.1)
    assert owner.level == pytest.approx(400)
    owner.set_limits(LIMIT, NOTHING, 0.0, 0.1, is_full=True)
    assert owner.level == 1000


def test_a_bucket_is_as_deep_as_two_typical_requests() -> None:
    owner = account()
    owner.meter.offer(cost(tokens=5000))

    owner.set_limits(LIMIT, NOTHING, 0.0, 0.0)

    assert owner.depth == BUCKET_REQUESTS * 5000 > 1000 * BUCKET_SECONDS


def test_the_pool_view_does_not_change_the_lease() -> None:
    owner = account(LIMIT)

    owner.set_pool(VIEW)

    assert (owner.limit, owner.bucket.level) == (LIMIT, 1000)
    assert (owner.pool_limit, owner.depth, owner.debt) == (LIMIT, 1000, 0.5)
    assert (owner.kv_elsewhere, owner.concurrency_elsewhere) == (2000, 3)
    assert owner.level == 1300
    assert owner.has_peers


def test_a_lease_has_exactly_the_granted_amounts_and_does_not_refill() -> None:
    owner = account(LIMIT)

    owner.set_lease(Amount(1000, 640, 2), Amount(0, 320, 1), -50.0)

    assert (owner.limit, owner.assured) == (Amount(1000, 640, 2), Amount(0, 320, 1))
    assert owner.bucket.holds_lease
    assert owner.bucket.refill(100.0) == -50


def test_a_share_after_a_lease_has_at_least_the_tokens_of_the_share() -> None:
    share = Amount(500, 4000, 4)
    for held, level in ((90.0, 200.0), (350.0, 350.0), (5000.0, 500.0)):
        owner = account(LIMIT)
        owner.set_lease(LIMIT, NOTHING, held)

        owner.set_share(share, Amount(0, 100, 1), 200.0, 1.0)

        assert (owner.limit, owner.assured) == (share, Amount(0, 100, 1))
        assert owner.bucket.level == level
        assert owner.bucket.refill(1.1) == pytest.approx(min(level + 50, 500))


def test_a_share_after_a_share_adds_no_tokens() -> None:
    owner = account()
    owner.set_share(LIMIT, NOTHING, 0.0, 0.0)
    owner.charge(2e6)
    level = owner.bucket.level

    owner.set_share(LIMIT, NOTHING, 200.0, 0.0)

    assert owner.bucket.level == level


def test_a_forgotten_bucket_is_full_with_the_next_limits() -> None:
    owner = account(LIMIT)
    owner.charge(5000)
    owner.forget_bucket()

    owner.set_share(LIMIT, NOTHING, 0.0, 0.0)

    assert owner.bucket.level == 1000


def test_an_account_without_a_lease_keeps_its_overspent_tokens() -> None:
    owner = account(LIMIT)
    owner.set_pool(VIEW)
    owner.hold_nothing()
    assert (owner.limit, owner.assured, owner.bucket.level) == (Amount(1000, 0, 0), NOTHING, 0)

    owner.charge(70)
    owner.hold_nothing()
    assert owner.bucket.level == -70


def test_only_the_amounts_beyond_the_given_ones_are_given_up() -> None:
    owner = account(LIMIT)

    owner.give_up_beyond(640.0, 20.0, 100.0)

    assert owner.limit == Amount(1000, 640, 8)
    assert owner.bucket.level == 100
    owner.give_up_beyond(8000.0, 2.0, 500.0)
    assert owner.limit == Amount(1000, 640, 2)
    assert owner.bucket.level == 100


@given(st.integers(0, 4), st.floats(-100, 2000), st.floats(0, 4000), st.floats(0, 8), st.integers(1, 3000))
def test_the_missing_part_taken_ahead_covers_the_cost(
    running: int, tokens: float, kv_tokens: float, sequences: float, price: int
) -> None:
    owner, ledger, each = account(LIMIT), Ledger(), cost(tokens=0, kv_tokens=112)
    owner.set_pool(VIEW)
    for _ in range(running):
        ledger.reserve(owner, ASK, each, 0.0)
    owner.set_lease(Amount(1000, kv_tokens, sequences), NOTHING, tokens)
    wanted, level = cost(tokens=price, kv_tokens=224, sequences=2), owner.level

    missing = owner.missing(wanted)
    owner.take_ahead(missing)

    assert owner.level == pytest.approx(level)  # the tokens come from the part elsewhere
    assert owner.missing(wanted) == pytest.approx((0, 0, 0), abs=1e-9)
    if missing == (0, 0, 0):
        assert owner.limit == Amount(1000, kv_tokens, sequences)


def test_hold_enough_adds_one_request_and_returns_the_added_tokens() -> None:
    owner, ledger = account(LIMIT), Ledger()
    ledger.reserve(owner, ASK, cost(tokens=0, kv_tokens=112), 0.0)
    owner.set_lease(Amount(1000, 50, 1), NOTHING, 30.0)

    assert owner.hold_enough(cost(tokens=100, kv_tokens=112)) == 70
    assert owner.limit == Amount(1000, 224, 2)
    assert owner.bucket.level == 100
    assert owner.hold_enough(cost(tokens=100, kv_tokens=112)) == 0


def test_free_capacity_goes_back_as_soon_as_the_lease_is_enough() -> None:
    ledger, tenant = Ledger(), leased(Amount(100, 1000, 1), tokens=100.0)
    own = ledger.reserve(tenant, ASK, cost(), 0.0)
    tenant.use_free_capacity(cost())
    assert tenant.limit == Amount(100, 1000, 2)
    assert (tenant.bucket.level, tenant.meter.free_tokens) == (100, 100)
    free_used = ledger.reserve(tenant, ASK, cost(), 0.0)
    assert tenant.take_free_use()
    assert not tenant.take_free_use()
    ledger.settle(own, USED, Ending.FINISHED, 1.0)
    assert (tenant.limit, tenant.free_used) == (Amount(100, 1000, 1), NOTHING)
    ledger.settle(free_used, USED, Ending.FINISHED, 1.0)
    assert (tenant.limit, tenant.free_used) == (Amount(100, 1000, 1), NOTHING)
    assert tenant.meter.free_tokens == 100  # its tokens were spent


def test_free_capacity_above_a_lowered_limit_lasts_no_longer_than_the_use() -> None:
    """A new request then takes free capacity for the use beyond the limit, too."""
    ledger, tenant = Ledger(), leased(Amount(100, 1000, 4), tokens=1000.0)
    running = [ledger.reserve(tenant, ASK, cost(), 0.0) for _ in range(3)]
    tenant.set_lease(Amount(100, 0, 0), NOTHING, 1000.0)
    tenant.use_free_capacity(cost())
    running.append(ledger.reserve(tenant, ASK, cost(), 0.0))
    assert tenant.take_free_use()
    for ticket in reversed(running):
        assert tenant.limit.concurrency == tenant.concurrency_in_use
        ledger.settle(ticket, USED, Ending.FINISHED, 1.0)
    assert (tenant.limit, tenant.free_used) == (Amount(100, 0, 0), NOTHING)


def test_only_what_a_lease_lacks_is_taken_from_free_capacity() -> None:
    tenant = leased(Amount(100, 1000, 4), tokens=40.0)
    tenant.use_free_capacity(cost())
    assert (tenant.limit, tenant.free_used) == (Amount(100, 1000, 4), NOTHING)
    assert (tenant.bucket.level, tenant.meter.free_tokens) == (100, 60)


def test_the_free_capacity_of_a_request_that_does_not_run_goes_back_as_a_whole() -> None:
    tenant = leased(Amount(100, 50, 0), tokens=-30.0)
    tenant.use_free_capacity(cost())
    tenant.return_free_capacity()
    assert (tenant.limit, tenant.free_used) == (Amount(100, 50, 0), NOTHING)
    assert (tenant.bucket.level, tenant.meter.free_tokens) == (-30, 0)
    tenant.return_free_capacity()
    assert (tenant.limit, tenant.bucket.level) == (Amount(100, 50, 0), -30)


@pytest.mark.parametrize("source", ["planner", "lease", "share", "expiry"])
def test_new_limits_have_no_part_from_free_capacity(source: str) -> None:
    """A request that used free capacity before them takes nothing from them at its end."""
    ledger, tenant, new = Ledger(), leased(Amount(100, 1000, 0), tokens=100.0), Amount(100, 2000, 4)
    tenant.use_free_capacity(cost())
    ticket = ledger.reserve(tenant, ASK, cost(), 0.0)
    tenant.take_free_use()
    if source == "planner":
        tenant.set_limits(new, NOTHING, 0.0, 0.0)
    elif source == "lease":
        tenant.set_lease(new, NOTHING, 10.0)
    elif source == "share":
        tenant.set_share(new, NOTHING, 10.0, 0.0)
    else:
        tenant.hold_nothing()
        new = Amount(tenant.pool_limit.tokens_per_second, 0, 0)
    ledger.settle(ticket, USED, Ending.FINISHED, 1.0)
    assert tenant.limit == new


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 500)), max_size=30), st.randoms())
def test_after_any_use_of_free_capacity_the_lease_is_as_granted(
    requests: list[tuple[bool, int, int]], random: Random
) -> None:
    granted = Amount(100, 300, 2)
    ledger, tenant = Ledger(), leased(granted, tokens=50.0)
    running: list[Ticket] = []
    for runs, sequences, tokens in requests:
        asked = cost(tokens=tokens, kv_tokens=tokens, sequences=sequences)
        tenant.use_free_capacity(asked)
        assert tenant.missing(asked) == (0, 0, 0)
        if runs:
            ticket = ledger.reserve(tenant, ASK, asked, 0.0)
            tenant.take_free_use()
            running.append(ticket)
        else:
            tenant.return_free_capacity()
        if running and random.random() < 0.4:
            ledger.settle(running.pop(random.randrange(len(running))), USED, Ending.FINISHED, 1.0)
        assert granted.fits(tenant.limit)
    for ticket in running:
        ledger.settle(ticket, USED, Ending.FINISHED, 1.0)
    assert (tenant.limit, tenant.free_used) == (granted, NOTHING)


@pytest.mark.parametrize(
    ("sequences_elsewhere", "kv_elsewhere", "is_below"),
    [(0, 0, True), (3, 0, True), (4, 0, False), (0, 888, True), (0, 889, False)],
)
def test_free_capacity_stays_within_the_ceiling_of_the_whole_pool(
    sequences_elsewhere: float, kv_elsewhere: float, is_below: bool
) -> None:
    tenant = leased(Amount(100, 0, 0), tokens=100.0, ceiling=Amount(math.inf, 1000, 4))
    limit = Amount(100, 500, 2)
    tenant.set_pool(
        PoolView(limit, 100, kv_elsewhere=kv_elsewhere, concurrency_elsewhere=sequences_elsewhere)
    )
    assert tenant.is_below_ceiling(cost()) is is_below


def test_requests_that_wait_are_demand_inside_the_guarantee_only() -> None:
    waiting, guarantee = Amount(0.0, 3000, 30), Amount(1000, 1120, 10)
    owner = account(tier=Tier.GUARANTEED, guarantee=guarantee)
    owner.hold(112, 1, 0.0)
    assert owner.report(1.0, waiting).demand == Amount(0.0, 1120, 10)
    other = account()
    other.hold(112, 1, 0.0)
    assert other.report(1.0, waiting).demand == Amount(0.0, 112, 1)


def test_sidecars_that_do_not_know_of_each_other_stay_within_a_ceiling_together() -> None:
    tenants = [
        leased(Amount(100, 0, 0), tokens=1e6, ceiling=Amount(math.inf, math.inf, 10)) for _ in range(3)
    ]
    for tenant in tenants:
        tenant.set_pool(PoolView(Amount(100, 1e6, 3), 100))
        while tenant.is_below_ceiling(cost(), sidecars=3):
            tenant.use_free_capacity(cost())
            tenant.hold(112, 1, 0.0)
    assert [tenant.concurrency_in_use for tenant in tenants] == [2, 2, 2]  # and three by leases: nine in all


def test_a_limit_at_the_ceiling_is_not_exceeded_on_free_capacity() -> None:
    """The use elsewhere may be known late. Then the leases bound it exactly."""
    tenant = leased(Amount(100, 1000, 1), tokens=100.0, ceiling=Amount(math.inf, math.inf, 1))
    assert tenant.is_below_ceiling(cost())
    tenant.hold(112, 1, 0.0)
    assert not tenant.is_below_ceiling(cost())


def test_peaks_are_taken_once_and_restart_at_the_current_use() -> None:
    owner, ledger = account(LIMIT), Ledger()
    first = ledger.reserve(owner, ASK, cost(kv_tokens=112), 0.0)
    second = ledger.reserve(owner, ASK, cost(kv_tokens=112), 0.0)
    for ticket in (first, second):
        owner.hold(-ticket.kv_held, -1, 1.0)

    assert owner.take_peaks() == (224, 2)
    assert owner.take_peaks() == (0, 0)
