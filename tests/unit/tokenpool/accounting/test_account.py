"""An account gets its limits by one call from each source, and keeps its use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import PoolView
from tokenpool.accounting.bucket import BUCKET_REQUESTS, BUCKET_SECONDS
from tokenpool.accounting.ledger import Ledger
from tokenpool.amounts import NOTHING, Amount

LIMIT = Amount(1000.0, 8000.0, 8.0)
VIEW = PoolView(LIMIT, 1000.0, 0.5, 300.0, 2000.0, 3.0, has_peers=True)


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


def test_peaks_are_taken_once_and_restart_at_the_current_use() -> None:
    owner, ledger = account(LIMIT), Ledger()
    first = ledger.reserve(owner, ASK, cost(kv_tokens=112), 0.0)
    second = ledger.reserve(owner, ASK, cost(kv_tokens=112), 0.0)
    for ticket in (first, second):
        owner.hold(-ticket.kv_held, -1, 1.0)

    assert owner.take_peaks() == (224, 2)
    assert owner.take_peaks() == (0, 0)
