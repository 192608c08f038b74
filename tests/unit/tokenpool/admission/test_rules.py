"""The admission rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, PLENTY, ROOM, account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.rules import LONGEST_WAIT_S, SHORTEST_WAIT_S, Shed, admit
from tokenpool.amounts import UNBOUNDED, Amount, Dimension
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom
from tokenpool.entitlements import Pricing, Tier
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Cost, Usage

VAST = EngineRoom(1e6, 1e9)


def shed(answer: Ticket | Shed) -> Shed:
    assert isinstance(answer, Shed)
    return answer


def test_a_request_is_admitted_while_the_level_is_above_zero_and_charged_in_full() -> None:
    ledger, owner = Ledger(), account(Amount(100, 1e6, 10))
    assert isinstance(admit(ledger, owner, ASK, cost(tokens=5000), VAST, 0.0), Ticket)
    assert owner.bucket.level == 100 - 5000
    refusal = shed(admit(ledger, owner, ASK, cost(tokens=1), VAST, 0.0))
    assert (refusal.reason, refusal.dimension) == (Reason.TOKENS_PER_SECOND, Dimension.TOKENS_PER_SECOND)
    assert (refusal.limit, refusal.in_use, refusal.cost) == (100, 4900, 1)
    assert refusal.retry_after_s == pytest.approx(49)
    assert isinstance(admit(ledger, owner, ASK, cost(tokens=1), VAST, 49.1), Ticket)


def test_a_large_request_waits_for_a_small_bucket_only_until_it_is_above_zero() -> None:
    """If the bucket had to hold the whole cost, a small bucket would starve a large request."""
    ledger, owner = Ledger(), account(Amount(10, 1e6, 10))
    for turn in range(5):
        now = turn * 101.0
        assert isinstance(admit(ledger, owner, ASK, cost(tokens=1000), VAST, now), Ticket)
        shed(admit(ledger, owner, ASK, cost(tokens=1000), VAST, now + 50))


@pytest.mark.parametrize(
    ("limit", "price", "reason", "bound", "spent"),
    [
        (Amount(1e6, 200, 10), cost(kv_tokens=112), Reason.KV_TOKENS, 200, 112),
        (Amount(1e6, 1e6, 3), cost(sequences=2), Reason.CONCURRENCY, 3, 2),
    ],
)
def test_gauges_hold(limit: Amount, price: Cost, reason: Reason, bound: float, spent: float) -> None:
    ledger, owner = Ledger(), account(limit)
    assert isinstance(admit(ledger, owner, ASK, price, VAST, 0.0), Ticket)
    refusal = shed(admit(ledger, owner, ASK, price, VAST, 0.0))
    assert (refusal.reason, refusal.limit, refusal.in_use, refusal.cost) == (reason, bound, spent, spent)


@pytest.mark.parametrize(
    ("ceiling", "room", "price", "dimension", "limit"),
    [
        (Amount(1e6, 100, 10), VAST, cost(kv_tokens=112), Dimension.KV_TOKENS, 100),
        (UNBOUNDED, EngineRoom(8, 100), cost(kv_tokens=112), Dimension.KV_TOKENS, 100),
        (Amount(1e6, 1e6, 2), VAST, cost(sequences=3), Dimension.CONCURRENCY, 2),
        (UNBOUNDED, EngineRoom(2, 1e6), cost(sequences=3), Dimension.CONCURRENCY, 2),
        (Amount(0, 1e6, 9), VAST, cost(tokens=7), Dimension.TOKENS_PER_SECOND, 0),
    ],
)
def test_a_cost_that_never_fits_is_refused_and_is_no_demand(
    ceiling: Amount, room: EngineRoom, price: Cost, dimension: Dimension, limit: float
) -> None:
    owner = account(PLENTY, ceiling=ceiling)
    refusal = shed(admit(Ledger(), owner, ASK, price, room, 0.0))
    assert (refusal.reason, refusal.dimension, refusal.limit) == (Reason.NEVER_FITS, dimension, limit)
    assert refusal.retry_after_s == 0
    assert owner.report(1.0).demand == Amount()


def full_engine() -> tuple[Ledger, Account]:
    """A ledger whose eight slots are all held by another's requests."""
    ledger, other = Ledger(), account(name="other")
    for _ in range(8):
        ledger.reserve(other, ASK, cost(kv_tokens=16), 0.0)
    return ledger, other


def test_spot_needs_room_on_the_engine() -> None:
    ledger, _ = full_engine()
    refusal = shed(admit(ledger, account(tier=Tier.SPOT), ASK, cost(), ROOM, 0.0))
    assert (refusal.reason, refusal.dimension) == (Reason.ENGINE_FULL, Dimension.CONCURRENCY)
    assert (refusal.limit, refusal.in_use, refusal.cost) == (8, 8, 1)


def test_the_engines_kv_cache_bounds_spot() -> None:
    ledger, spot = Ledger(), account(tier=Tier.SPOT)
    room = replace(ROOM, foreign_kv_tokens=9_950)
    refusal = shed(admit(ledger, spot, ASK, cost(kv_tokens=112), room, 0.0))
    assert (refusal.reason, refusal.dimension) == (Reason.ENGINE_FULL, Dimension.KV_TOKENS)


def test_foreign_load_on_the_engine_counts() -> None:
    spot = account(tier=Tier.SPOT)
    room = replace(ROOM, foreign_sequences=8)
    assert shed(admit(Ledger(), spot, ASK, cost(), room, 0.0)).reason is Reason.ENGINE_FULL


def test_order_of_sacrifice_on_a_full_engine() -> None:
    """Spot, then elastic above its share, then a burst. Assured requests may queue at the engine."""
    share = Amount(1e6, 1000, 2)
    for tier, assured, passes in (
        (Tier.SPOT, Amount(), 0),
        (Tier.ELASTIC, share, 2),
        (Tier.GUARANTEED, share, 2),
    ):
        ledger, _ = full_engine()
        owner = account(PLENTY, assured=assured, tier=tier)
        answers = [admit(ledger, owner, ASK, cost(kv_tokens=16), ROOM, 0.0) for _ in range(4)]
        assert sum(isinstance(answer, Ticket) for answer in answers) == passes


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(16, 2000)), max_size=20),
    st.lists(st.tuples(st.integers(1, 2), st.integers(16, 500)), min_size=1, max_size=8),
)
def test_a_guaranteed_request_inside_its_guarantee_is_never_shed_for_room(
    others: list[tuple[int, int]], requests: list[tuple[int, int]]
) -> None:
    guarantee = Amount(1e6, 2000, 6)
    ledger, other = Ledger(), account(name="other")
    for sequences, kv_tokens in others:
        ledger.reserve(other, ASK, cost(sequences=sequences, kv_tokens=kv_tokens), 0.0)
    owner = account(guarantee, assured=guarantee, tier=Tier.GUARANTEED)
    for sequences, kv_tokens in requests:
        inside = (
            owner.concurrency_in_use + sequences <= guarantee.concurrency
            and owner.kv_in_use + kv_tokens <= guarantee.kv_tokens
        )
        answer = admit(ledger, owner, ASK, cost(sequences=sequences, kv_tokens=kv_tokens), ROOM, 0.0)
        assert isinstance(answer, Ticket) == inside


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 800), st.floats(0, 0.5)), max_size=80)
)
def test_gauges_never_exceed_their_limits_and_waits_are_bounded(
    script: list[tuple[bool, int, int, float]],
) -> None:
    ledger, owner, now = Ledger(), account(Amount(2000, 2000, 6)), 0.0
    running: list[Ticket] = []
    for admits, sequences, tokens, wait in script:
        now += wait
        if not admits and running:
            ledger.settle(running.pop(0), Usage(tokens, 0), Ending.FINISHED, now)
            continue
        answer = admit(ledger, owner, ASK, cost(tokens=tokens, sequences=sequences), ROOM, now)
        if isinstance(answer, Ticket):
            running.append(answer)
        else:
            assert SHORTEST_WAIT_S <= answer.retry_after_s <= LONGEST_WAIT_S
            assert answer.reason.is_shed
        assert owner.concurrency_in_use <= 6
        assert owner.kv_in_use <= 2000
        assert ledger.concurrency_in_use <= ROOM.slots


def test_a_shed_request_is_demand_but_reserves_nothing() -> None:
    ledger, owner = Ledger(), account(Amount(1e6, 1e6, 0))
    shed(admit(ledger, owner, ASK, cost(), VAST, 0.0))
    assert (owner.concurrency_in_use, owner.meter.spent) == (0, 0)
    assert owner.report(1.0).demand.concurrency > 0


def test_with_other_engines_only_a_guarantee_queues_behind_requests_that_cannot_be_preempted() -> None:
    behind = account(name="other", tier=Tier.ELASTIC)
    for fills, tier, passes in (
        (behind, Tier.ELASTIC, False),
        (behind, Tier.GUARANTEED, True),
        (account(name="other", tier=Tier.SPOT), Tier.ELASTIC, True),
        (account(name="other", tier=Tier.SPOT, preemptible=False), Tier.ELASTIC, False),
    ):
        ledger, owner = Ledger(), account(assured=Amount(1e6, 1000, 2), tier=tier)
        owner.has_peers = True
        if tier is Tier.GUARANTEED:
            owner.entitlement = replace(owner.entitlement, guarantee=Amount(1e6, 1000, 2))
        ledger.reserve(fills, ASK, cost(sequences=8, kv_tokens=16), 0.0)
        assert isinstance(admit(ledger, owner, ASK, cost(kv_tokens=16), ROOM, 0.0), Ticket) is passes


def test_one_preemptible_request_may_wait_in_the_engine() -> None:
    room = replace(ROOM, preemptible_queue=PREEMPTIBLE_QUEUE)
    for owner, most in (
        (account(tier=Tier.SPOT), 9),
        (account(tier=Tier.SPOT, preemptible=False), 8),
        (account(tier=Tier.ELASTIC), 8),
    ):
        ledger = Ledger()
        answers = [admit(ledger, owner, ASK, cost(kv_tokens=16), room, 0.0) for _ in range(12)]
        assert sum(isinstance(answer, Ticket) for answer in answers) == most


def test_the_expected_wait_for_the_engine_follows_from_all_running_requests() -> None:
    """It is not the mean of the own requests: an unserved entitlement has none."""
    ledger, others, owner = Ledger(), account(name="others"), account(name="new")
    first = ledger.reserve(others, ASK, cost(sequences=1, kv_tokens=16), 0.0)
    ledger.settle(first, Usage(50, 50), Ending.PREEMPTED, 0.08)
    for _ in range(8):
        ledger.reserve(others, ASK, cost(kv_tokens=16), 1.0)
    answer = shed(admit(ledger, owner, ASK, cost(kv_tokens=16), ROOM, 1.0))
    assert answer.reason is Reason.ENGINE_FULL
    assert answer.expected_s == pytest.approx(0.08 / 8)
    assert answer.retry_after_s == SHORTEST_WAIT_S  # the answer to a client has a lower bound


def test_a_changed_tier_changes_the_preemptible_sequences() -> None:
    ledger, owner = Ledger(), account(tier=Tier.SPOT)
    ticket = ledger.reserve(owner, ASK, cost(sequences=3), 0.0)
    ledger.reconfigure(owner, replace(owner.entitlement, tier=Tier.ELASTIC), Pricing())
    assert ledger.preemptible_in_use == 0
    ledger.reconfigure(owner, replace(owner.entitlement, tier=Tier.SPOT), Pricing())
    assert ledger.preemptible_in_use == 3
    ledger.reconfigure(owner, replace(owner.entitlement, preemptible=False), Pricing())
    assert (owner.is_spot, ledger.preemptible_in_use) == (True, 0)
    ledger.reconfigure(owner, replace(owner.entitlement, preemptible=True), Pricing())
    ledger.settle(ticket, Usage(1, 1), Ending.FINISHED, 0.0)
    assert ledger.preemptible_in_use == 0
