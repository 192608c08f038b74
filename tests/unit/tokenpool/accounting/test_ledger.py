"""The ledger: buckets hold their rate, and reservations end exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, SHAPE, account, cost, entitlement
from tokenpool.accounting.account import Account
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Place, Ticket, TicketEnded
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Pricing, Tier
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Cost, Usage


def bucket(rate: float, depth: float) -> TokenBucket:
    made = TokenBucket(0.0)
    made.resize(rate, depth, 0.0)
    return made


def test_a_new_bucket_is_full_and_a_resized_one_keeps_its_level() -> None:
    made = bucket(10, 100)
    assert made.level == 100
    made.add(-150)
    made.resize(20, 500, 0.0)
    assert made.level == -50
    made.add(1000)
    made.resize(20, 300, 0.0)
    assert made.level == 300


def test_a_bucket_refills_at_its_rate_up_to_its_depth() -> None:
    made = bucket(10, 100)
    made.add(-120)
    assert made.refill(1.0) == -10
    assert made.refill(0.5) == -10  # a clock that steps back removes nothing
    assert made.refill(1000.0) == 100


def test_a_bucket_without_a_rate_never_fills() -> None:
    made = bucket(0, 1)
    made.add(-5)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 500), st.floats(-1, 1)), max_size=60),
    st.floats(1, 100),
    st.floats(1, 200),
)
def test_the_long_run_rate_holds_for_any_sizes(
    steps: list[tuple[float, float, float]], rate: float, depth: float
) -> None:
    """The refill and the first fill cover all admitted requests but the last one."""
    made, now, spent, largest = bucket(rate, depth), 0.0, 0.0, 0.0
    for wait, size, error in steps:
        now += wait
        if made.refill(now) > 0:
            made.add(-size)
            made.add(size * max(error, 0))  # settled for less than the reservation
            spent += size * (1 - max(error, 0))
            largest = max(largest, size)
    assert spent <= depth + rate * now + largest + 1e-6


endings = st.sampled_from(list(Ending))
actions = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "extend", "settle"]),
        st.integers(0, 30),
        st.integers(0, 2000),
        st.integers(1, 4),
        endings,
    ),
    max_size=60,
)


@given(actions)
def test_after_any_events_every_gauge_is_zero_and_the_bucket_is_charged_the_usage(
    script: list[tuple[str, int, int, int, Ending]],
) -> None:
    ledger, tenants = Ledger(), [account(name="a"), account(name="b")]
    running: list[Ticket] = []
    spent = [0.0, 0.0]
    for now, (action, pick, tokens, sequences, ending) in enumerate(script):
        if action == "reserve":
            owner = tenants[pick % 2]
            owner.bucket.level = 0.0 if not spent[pick % 2] else owner.bucket.level
            price = cost(tokens=tokens, kv_tokens=16 * tokens, sequences=sequences)
            running.append(ledger.reserve(owner, ASK, price, float(now)))
        elif running and action == "extend":
            ledger.extend(running[pick % len(running)], tokens, 16, float(now))
        elif running:
            ticket = running.pop(pick % len(running))
            ledger.settle(ticket, Usage(tokens, tokens // 2), ending, float(now))
            spent[tenants.index(ticket.account)] += tokens + tokens // 2
            assert ticket.ending is ending
    for ticket in running:
        ledger.settle(ticket, Usage(0, 0), Ending.DRAINED, 99.0)
    assert (ledger.kv_in_use, ledger.concurrency_in_use) == (0, 0)
    for owner in tenants:
        assert (owner.kv_in_use, owner.concurrency_in_use) == (0, 0)
        assert owner.meter.spent == pytest.approx(spent[tenants.index(owner)])


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 4)), max_size=30), st.booleans())
def test_what_runs_on_other_replicas_counts_for_its_account_and_not_for_the_engine_here(
    requests: list[tuple[bool, bool, int]], becomes_preemptible: bool
) -> None:
    ledger, owner = Ledger(), account(tier=Tier.SPOT, preemptible=False)
    running: list[Ticket] = []
    for is_away, ends, sequences in requests:
        place = Place("peer", "h:1", 1, 0.0) if is_away else None
        running.append(ledger.reserve(owner, ASK, cost(kv_tokens=64, sequences=sequences), 0.0, place))
        if ends:
            ledger.settle(running.pop(0), Usage(5, 5), Ending.FINISHED, 1.0)
        if becomes_preemptible:
            ledger.reconfigure(owner, entitlement(tier=Tier.SPOT, preemptible=True), Pricing())
        here = [ticket for ticket in running if ticket.place is None]
        away = [ticket for ticket in running if ticket.place is not None]
        assert ledger.concurrency_in_use == sum(ticket.cost.sequences for ticket in here)
        assert ledger.kv_in_use == sum(ticket.kv_held for ticket in here)
        assert ledger.preemptible_in_use == (ledger.concurrency_in_use if owner.is_preemptible else 0)
        assert ledger.away == owner.away == sum(ticket.cost.sequences for ticket in away)
        assert owner.concurrency_in_use == sum(ticket.cost.sequences for ticket in running)
        assert owner.kv_in_use == sum(ticket.kv_held for ticket in running)
    for ticket in running:
        ledger.extend(ticket, 500, 16, 2.0)
        ledger.settle(ticket, Usage(5, 5), Ending.PREEMPTED, 3.0)
    assert (ledger.concurrency_in_use, ledger.kv_in_use, ledger.preemptible_in_use) == (0, 0, 0)
    assert (ledger.away, owner.away, owner.concurrency_in_use, owner.kv_in_use) == (0, 0, 0, 0)


def test_a_ticket_ends_once() -> None:
    ledger, owner = Ledger(), account()
    ticket = ledger.reserve(owner, ASK, cost(), 0.0)
    ledger.settle(ticket, Usage(1, 1), Ending.FINISHED, 1.0)
    with pytest.raises(TicketEnded):
        ledger.settle(ticket, Usage(1, 1), Ending.CLIENT_GONE, 1.0)
    with pytest.raises(TicketEnded):
        ledger.extend(ticket, 500, 16, 1.0)
    assert owner.concurrency_in_use == 0


def test_an_extension_grows_in_blocks_and_never_shrinks() -> None:
    ledger, owner = Ledger(), account()
    ticket = ledger.reserve(owner, ASK, cost(tokens=100, kv_tokens=112), 0.0)
    ledger.extend(ticket, 51, 16, 1.0)
    assert (owner.kv_in_use, ticket.output_held) == (128, 51)
    ledger.extend(ticket, 40, 16, 1.0)
    assert (owner.kv_in_use, ticket.output_held) == (128, 51)


def test_only_a_finished_request_with_reported_usage_teaches() -> None:
    ledger, owner = Ledger(), account()
    for ending, reported in ((Ending.CLIENT_GONE, True), (Ending.FINISHED, False)):
        for _ in range(10):
            ticket = ledger.reserve(owner, ASK, cost(), 0.0)
            ledger.settle(ticket, Usage(200, 3), ending, 1.0, reported=reported)
    learned = owner.pricer.overall
    assert (learned.input.per_byte, learned.output.value) == (0.25, 256)
    for _ in range(10):
        ticket = ledger.reserve(owner, ASK, cost(), 0.0)
        ledger.settle(ticket, Usage(200, 3), Ending.FINISHED, 3.0)
    assert learned.output.value == 3
    assert owner.meter.residence.value == 3.0


def test_a_request_that_was_cut_teaches_that_its_output_was_longer() -> None:
    ledger, owner = Ledger(), account()
    for output in (*[50] * 20, *[400] * 4):
        ticket = ledger.reserve(owner, ASK, cost(), 0.0)
        ledger.settle(ticket, Usage(200, output), Ending.FINISHED, 1.0)
    expected = owner.pricer.overall.output.value
    for ending in (Ending.PREEMPTED, Ending.CLIENT_GONE, Ending.UPSTREAM_TIMEOUT, Ending.DRAINED):
        for _ in range(30):
            ticket = ledger.reserve(owner, ASK, cost(), 0.0)
            ledger.settle(ticket, Usage(200, 2), ending, 1.0, reported=False)
    assert owner.pricer.overall.output.value == expected == 400
    assert owner.meter.residence.value == 1.0


def test_an_extension_charges_no_cached_input() -> None:
    ledger, owner = Ledger(), account()
    price = Cost(1000, 50, 1, 150.0, 1056, cached_tokens=900)
    ticket = ledger.reserve(owner, ASK, price, 0.0)
    ledger.extend(ticket, 80, 16, 1.0)
    assert (ticket.charged, owner.meter.spent) == (180, 180)
    ledger.settle(ticket, owner.pricer.spent_so_far(price, 80), Ending.CLIENT_GONE, 2.0, reported=False)
    assert owner.meter.spent == 180


def test_demand_follows_littles_law_and_counts_shed_requests() -> None:
    owner = account()
    owner.meter.residence.observe(2.0)
    for second in range(1, 60):
        for _ in range(5):
            owner.meter.offer(cost(tokens=100, kv_tokens=160, sequences=1))
        report = owner.report(float(second))
    assert report.demand.tokens_per_second == pytest.approx(500, rel=0.01)
    assert report.demand.kv_tokens == pytest.approx(1600, rel=0.01)
    assert report.demand.concurrency == pytest.approx(10, rel=0.01)
    assert report.service == NOTHING
    assert report.floor == Amount(0, 160, 1)


def test_an_entitlement_without_offers_is_soon_idle_but_demands_its_current_use() -> None:
    ledger, owner = Ledger(), account()
    owner.meter.offer(cost())
    ticket = ledger.reserve(owner, ASK, cost(kv_tokens=112), 0.0)
    for second in range(1, 10):
        report = owner.report(float(second))
    assert report.demand.concurrency == 1
    assert report.demand.kv_tokens == 112
    assert report.service.concurrency == pytest.approx(1)
    ledger.settle(ticket, Usage(1, 1), Ending.FINISHED, 9.0)
    owner.report(12.0)
    assert owner.report(13.0).demand == NOTHING


def test_an_interval_of_zero_length_repeats_the_last_demand() -> None:
    owner = account()
    owner.meter.offer(cost())
    first = owner.report(1.0)
    assert owner.report(1.0).demand == first.demand


def test_a_guarantee_of_sequences_alone_does_not_bound_kv_tokens() -> None:
    made = Account(entitlement("g", Tier.GUARANTEED, guarantee=Amount(0, 0, 2)), Pricing(), 0.0)
    assert made.is_inside_guarantee(2, 5000)
    assert not made.is_inside_guarantee(3, 5000)
    named = Account(entitlement("g", Tier.GUARANTEED, guarantee=Amount(0, 1000, 2)), Pricing(), 0.0)
    assert not named.is_inside_guarantee(2, 5000)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_request_that_ran_elsewhere_teaches_its_output_and_not_its_cached_tokens(*, is_moved: bool) -> None:
    """The other engine has another cache. The price here assumes what the engine here reported last."""
    ledger, tenant = Ledger(), account()
    ask = ASK.changed(text_bytes=4000, output_bound=None, prefixes=(1, 2))
    place = Place("p", "p:1", 1, 0.0)

    def run(usage: Usage, *, elsewhere: bool) -> Cost:
        reserved = None if is_moved or not elsewhere else place
        ticket = ledger.reserve(tenant, ask, tenant.pricer.price(ask, SHAPE), 0.0, reserved)
        if elsewhere and is_moved:
            ledger.move(ticket, place)
        ledger.settle(ticket, usage, Ending.FINISHED, 1.0)
        return tenant.pricer.price(ask, SHAPE)

    assert run(Usage(1000, 400, cached_tokens=960), elsewhere=True).cached_tokens == 0
    assert tenant.pricer.experts.candidates == 2  # its output is learned by prefix, too
    assert run(Usage(1000, 400, cached_tokens=480), elsewhere=False).cached_tokens == 480
    for cached_tokens in (0, 960):
        cost = run(Usage(1000, 400, cached_tokens=cached_tokens), elsewhere=True)
        assert cost.cached_tokens == 480
    overall = tenant.pricer.overall
    assert (overall.output.observations, overall.input.observations) == (4, 4)
    assert cost.input_tokens == 1000
