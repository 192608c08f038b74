"""Handover in the admission control: asks, offers, peer requests, limits that bind only under contention."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.support.domain_builders import ASK, PLENTY, account, cost, entitlement
from tests.unit.tokenpool.control.test_admission_control import (
    CONTENDED,
    NONE_NOW,
    OPEN,
    SPENT,
    TERMS,
    WAITS,
    Leased,
    admitted,
    assert_is_empty,
    control_of,
    gold,
    offer,
    pending,
    room,
    spot,
)
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest, Standing, WaitsFor
from tokenpool.admission.placement import MOST_ASKED, KnownPeer, PeerAsk, Placement
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import NOTHING, Amount
from tokenpool.control.admission_control import MOST_ASKING, MOST_SENT_BYTES, PLACE_S, AdmissionControl
from tokenpool.control.peer_accounts import peer_cost
from tokenpool.entitlements import Tier
from tokenpool.leases.messages import MOST_ROOM, Limit
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Usage

FULL = [KnownPeer("p", "p:1", 0.0, 0.0), KnownPeer("q", "q:1", 0.0, 0.0)]
FREE = [KnownPeer("p", "p:1", 1e6, 4.0), KnownPeer("q", "q:1", 1e6, 4.0)]


def with_peers(
    slots: float = 1, peers: list[KnownPeer] = FULL, queue: QueueSettings = WAITS
) -> AdmissionControl:
    """A control whose limits do not bind, with an engine of so many slots and two other replicas."""
    made = AdmissionControl(0.0, AdmissionQueue(queue), placement=Placement("me"))
    made.is_serving = True
    made.engine_changed(room(slots), 0.0)
    made.peers_named(peers, 0.0)
    return made


def cancelled_by_start_here(control: AdmissionControl, waiting: PendingRequest) -> list[PeerAsk]:
    """The asks that are cancelled because this request, and no other one, was admitted to the engine here."""
    effects = control.take_effects()
    ((decided, ticket),) = effects.decided
    assert decided is waiting
    assert isinstance(ticket, Ticket)
    assert ticket.place is None
    return effects.to_cancel


def asked(control: AdmissionControl) -> list[PeerAsk]:
    effects = control.take_effects()
    assert (effects.to_end, effects.decided, effects.to_cancel) == ([], [], [])
    return effects.to_ask


# --- a request without room here ---


def test_a_request_for_which_the_engine_is_full_asks_other_replicas() -> None:
    control = with_peers()
    assert isinstance(offer(control, account()), Ticket)
    assert not control.has_effects
    waiting = pending(control, account(name="b"))
    asks = asked(control)
    assert {ask.peer for ask in asks} == {"p", "q"}
    assert all(ask.pending is waiting for ask in asks)
    assert {ask.longest_wait_s for ask in asks} == {WAITS.elastic_s}


def test_the_first_offer_gets_the_request_and_the_other_asks_are_cancelled() -> None:
    control, tenant = with_peers(), account(name="b")
    running, waiting = admitted(control, account()), pending(control, tenant)
    first, second = asked(control)
    assert control.peer_offered(first, 0.1)
    effects = control.take_effects()
    ((decided, ticket),) = effects.decided
    assert decided is waiting
    assert isinstance(ticket, Ticket)
    assert ticket.place == first.place
    assert effects.to_cancel == [second]
    assert not control.peer_offered(second, 0.1)  # its cancel and this offer crossed
    # It counts for its account, and not for the engine here.
    assert (tenant.concurrency_in_use, control.ledger.concurrency_in_use) == (1, 1)
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    control.settle(running, SPENT, Ending.FINISHED, 1.0)
    assert_is_empty(control)
    assert control.ledger.away == 0


def lost_elsewhere(control: AdmissionControl, tenant: Account, now: float) -> Ticket:
    """A request that arrived at time 0, and whose replica could not begin with it."""
    pending(control, tenant)
    first, _ = asked(control)
    assert control.peer_offered(first, now)
    ((_, ticket),) = control.take_effects().decided
    assert isinstance(ticket, Ticket)
    control.settle(ticket, Usage(0, 0), Ending.UPSTREAM_ERROR, now, reported=False)
    return ticket


def test_a_request_that_is_placed_again_keeps_its_arrival_and_its_deadline() -> None:
    control, tenant = with_peers(), account(name="b")
    admitted(control, account())
    lost_elsewhere(control, tenant, 3.0)
    again = control.offer(tenant, ASK, cost(), 3.0, arrived_at=0.0)
    assert isinstance(again, PendingRequest)
    assert (again.arrived_at, again.deadline) == (0.0, WAITS.elastic_s)
    assert not again.may_prefer
    # At the end of its longest wait it is decided for the last time.
    control.withdraw(again, 3.0)
    assert isinstance(control.offer(tenant, ASK, cost(), WAITS.elastic_s, arrived_at=0.0), Shed)


def test_the_demand_of_a_request_that_is_placed_again_is_counted_once() -> None:
    control, tenant = with_peers(), account(name="b")
    admitted(control, account())
    lost_elsewhere(control, tenant, 0.5)
    control.offer(tenant, ASK, cost(), 0.5, arrived_at=0.0)
    once = account(name="c")
    pending(control, once, 0.5)
    demands = [each.meter.report(0, 0, 1.0, NOTHING).demand for each in (tenant, once)]
    assert demands[0] == demands[1]


def test_with_leases_a_request_that_is_placed_again_waits_for_a_lease_as_long_as_it_has_left() -> None:
    sidecar = Leased(entitlement(), terms=CONTENDED)
    tenant = sidecar.accounts["a"]
    again = sidecar.control.offer(tenant, ASK, cost(), OPEN, arrived_at=OPEN - 4.0)
    assert isinstance(again, PendingRequest)
    assert again.waits_for is WaitsFor.LEASE
    longest_s = sidecar.control.queue.settings.longest_wait_s(tenant)
    assert again.longest_wait_s == max(longest_s - 4.0, 0.0)
    assert again.is_counted


def test_room_that_becomes_free_here_cancels_the_asks() -> None:
    control = with_peers()
    running, waiting = admitted(control, account()), pending(control, account(name="b"))
    asks = asked(control)
    control.settle(running, SPENT, Ending.FINISHED, 0.1)
    assert cancelled_by_start_here(control, waiting) == asks
    assert not control.peer_offered(asks[0], 0.1)


@pytest.mark.parametrize("ending", ["withdrawn", "deadline"])
def test_the_asks_of_a_request_that_leaves_are_cancelled(ending: str) -> None:
    control = with_peers()
    admitted(control, account())
    waiting = pending(control, account(name="b"))
    asks = asked(control)
    if ending == "withdrawn":
        control.withdraw(waiting, 0.1)
    else:
        control.wake(WAITS.elastic_s)
    effects = control.take_effects()
    assert effects.to_cancel == asks
    assert [each for each, _ in effects.decided] == ([] if ending == "withdrawn" else [waiting])
    assert not control.peer_offered(asks[0], WAITS.elastic_s)
    assert control.placement is not None
    assert control.placement.asks == {}


def test_the_requests_of_one_entitlement_keep_their_order() -> None:
    """Only the first request asks. When an offer takes it, the next request asks at once."""
    control, tenant = with_peers(), account(name="b")
    admitted(control, account())
    first, second = pending(control, tenant), pending(control, tenant)
    asks = asked(control)
    assert {ask.pending for ask in asks} == {first}
    assert control.peer_offered(asks[0], 0.1)
    effects = control.take_effects()
    assert [each for each, _ in effects.decided] == [first]
    assert effects.to_cancel == [asks[1]]
    assert {ask.pending for ask in effects.to_ask} == {second}


def test_a_bounded_number_of_requests_asks_at_a_time() -> None:
    control = with_peers()
    admitted(control, account())
    waiting = [pending(control, account(name=f"t{number}")) for number in range(MOST_ASKING + 2)]
    assert [*dict.fromkeys(ask.pending for ask in asked(control))] == waiting[:MOST_ASKING]


def test_a_replica_that_failed_is_replaced_by_another() -> None:
    control = with_peers()
    control.peers_named([*FULL, KnownPeer("r", "r:1", 0.0, 0.0)], 0.0)
    admitted(control, account())
    waiting = pending(control, account(name="b"))
    first, second = asked(control)
    control.peer_refused(first, 0.1)  # it has no room: the other one may offer some later
    assert asked(control) == []
    control.peer_refused(second, 0.1, has_failed=True)
    again = asked(control)
    assert len(again) == MOST_ASKED
    assert {ask.pending for ask in again} == {waiting}
    assert second.peer not in {ask.peer for ask in again}


def test_a_waiting_request_asks_a_replica_that_is_named_with_room() -> None:
    control = with_peers()
    admitted(control, account())
    waiting = pending(control, account(name="b"))
    assert len(asked(control)) == MOST_ASKED
    control.peers_named([KnownPeer("r", "r:1", 1e6, 1.0)], 0.1)
    (ask,) = asked(control)
    assert (ask.peer, ask.pending) == ("r", waiting)
    control.peers_named([KnownPeer("r", "r:1", 1e6, 1.0)], 0.2)
    assert asked(control) == []


def test_a_request_that_may_not_wait_asks_while_another_replica_has_room() -> None:
    impatient = QueueSettings(elastic_s=0.0, spot_s=0.0)
    control = with_peers(peers=FREE, queue=impatient)
    admitted(control, account())
    waiting = pending(control, spot())
    assert len(asked(control)) == MOST_ASKED
    assert control.wakes_at() <= PLACE_S
    control.wake(PLACE_S)
    ((decided, shed),) = control.take_effects().decided
    assert decided is waiting
    assert isinstance(shed, Shed)
    assert shed.reason is Reason.ENGINE_FULL
    assert isinstance(offer(with_full_engine(impatient), spot()), Shed)


def with_full_engine(queue: QueueSettings) -> AdmissionControl:
    """A control without room here or elsewhere."""
    control = with_peers(queue=queue)
    admitted(control, account())
    return control


def test_an_assured_request_looks_elsewhere_before_it_waits_in_the_engine_here() -> None:
    control, owner = with_peers(peers=FREE), gold()
    admitted(control, account())
    waiting = pending(control, owner)
    assert waiting.places_until == PLACE_S
    assert len(asked(control)) == MOST_ASKED
    assert control.wakes_at() == PLACE_S
    control.wake(PLACE_S)
    assert len(cancelled_by_start_here(control, waiting)) == MOST_ASKED
    assert isinstance(offer(with_full_engine(WAITS), gold()), Ticket)  # at once if no replica has room


def test_the_expected_wait_is_that_of_the_whole_pool() -> None:
    """With three replicas a slot becomes free three times as often."""
    settings = QueueSettings(elastic_s=1.0)
    alone, pool = control_of(1, settings), with_peers(queue=settings)
    for control in (alone, pool):
        control.ledger.residence.value = 2.0
        admitted(control, account())
    assert isinstance(offer(alone, account(name="b")), Shed)
    assert isinstance(offer(pool, account(name="b")), PendingRequest)


def test_without_handover_nothing_is_asked() -> None:
    control = control_of(1)
    control.peers_named(FREE, 0.0)
    admitted(control, account())
    pending(control, account(name="b"))
    assert not control.has_effects


# --- requests that are sent together with their asks ---


def trusting(peers: list[KnownPeer] = FREE) -> AdmissionControl:
    """A control without room here. Both other replicas have room, and have offered some before."""
    made = with_peers(peers=peers)
    assert made.placement is not None
    for peer in peers:
        made.placement.offered(peer.name)
    admitted(made, account())
    return made


def sent(control: AdmissionControl, tenant: Account, now: float = 0.1) -> Ticket:
    """A request that is sent together with its ask."""
    ticket = admitted(control, tenant, now)
    assert ticket.place is not None
    assert ticket.place.sent is not None
    assert not control.has_effects
    return ticket


def test_a_request_is_sent_at_once_to_a_replica_that_is_likely_to_have_room() -> None:
    control, tenant = trusting(), account(name="b")
    ticket = sent(control, tenant)
    assert not control.has_waiting
    assert (tenant.concurrency_in_use, control.ledger.concurrency_in_use, control.ledger.away) == (1, 1, 1)
    assert ticket.place is not None
    control.place_answered(ticket.place, has_room=True)
    assert control.placement is not None
    assert control.placement.sent == 0
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert control.ledger.away == 0
    sent(control, tenant, 0.2)


def test_an_offer_makes_a_replica_likely_to_have_room() -> None:
    control = with_peers(peers=FREE)
    admitted(control, account())
    pending(control, account(name="b"))
    first, _ = asked(control)
    assert control.peer_offered(first, 0.1)
    control.take_effects()
    ticket = sent(control, account(name="c"))
    assert ticket.place is not None
    assert ticket.place.peer == first.peer


def test_a_request_that_is_refused_asks_and_waits_as_any_other() -> None:
    control, tenant = trusting(), account(name="b")
    ticket = sent(control, tenant)
    assert ticket.place is not None
    control.place_answered(ticket.place, has_room=False)
    control.settle(ticket, Usage(0, 0), Ending.UPSTREAM_ERROR, 0.2, reported=False)
    again = control.offer(tenant, ASK, cost(), 0.2, arrived_at=0.1)
    assert isinstance(again, PendingRequest)
    assert again.deadline == 0.1 + WAITS.elastic_s
    asks = asked(control)
    assert {ask.pending for ask in asks} == {again}
    assert all(ask.place.sent is None for ask in asks)
    # Its demand was counted once.
    once = account(name="c")
    pending(control, once, 0.2)
    demands = [each.meter.report(0, 0, 1.0, NOTHING).demand for each in (tenant, once)]
    assert demands[0] == demands[1]


def test_a_request_that_may_not_wait_looks_for_room_after_a_refusal() -> None:
    control = with_peers(peers=FREE[:1], queue=QueueSettings(elastic_s=0.0, spot_s=0.0))
    assert control.placement is not None
    control.placement.offered("p")
    admitted(control, account())
    tenant = spot()
    ticket = sent(control, tenant)
    assert ticket.place is not None
    control.place_answered(ticket.place, has_room=False)
    control.settle(ticket, Usage(0, 0), Ending.UPSTREAM_ERROR, 0.101, reported=False)
    again = control.offer(tenant, ASK, cost(), 0.101, arrived_at=0.1)
    assert isinstance(again, PendingRequest)
    assert again.deadline == 0.1 + PLACE_S
    assert {ask.pending for ask in asked(control)} == {again}
    assert isinstance(control.offer(spot("t"), ASK, cost(), 0.2, arrived_at=0.1), Shed)


def test_a_request_that_ends_without_an_answer_ends_the_trust_in_the_replica() -> None:
    control, tenant = trusting(FREE[:1]), account(name="b")
    ticket = sent(control, tenant)
    control.settle(ticket, Usage(0, 0), Ending.CLIENT_GONE, 0.2, reported=False)
    assert control.placement is not None
    assert control.placement.sent == 0
    assert isinstance(offer(control, tenant, 0.2), PendingRequest)


def test_no_request_is_sent_before_those_that_wait_for_the_engine() -> None:
    control = trusting(FULL)
    pending(control, account(name="b"))
    asked(control)
    assert control.placement is not None
    control.placement.learn(FREE, 0.1)
    assert isinstance(offer(control, account(name="c"), 0.1), PendingRequest)


def test_a_long_body_is_not_sent_together_with_its_ask() -> None:
    control, tenant = trusting(), account(name="b")
    long = control.offer(tenant, ASK, cost(), 0.1, body=bytes(MOST_SENT_BYTES + 1))
    assert isinstance(long, PendingRequest)
    assert len(asked(control)) == MOST_ASKED


def test_a_request_beyond_its_limit_is_not_sent_and_takes_no_room() -> None:
    control = trusting(FREE[:1])
    assert control.placement is not None
    before = control.placement.known
    waiting = offer(control, account(NONE_NOW, name="b"), 0.1)
    assert isinstance(waiting, PendingRequest)
    assert waiting.waits_for is WaitsFor.LIMIT
    assert (control.placement.sent, control.placement.known) == (0, before)


# --- the room here, for others ---


def test_the_stated_room_is_what_is_free_here_less_what_waits() -> None:
    control = with_peers(4)
    control.peer_address = "me:1"
    admitted(control, account())
    stated = control.stated_room()
    assert (stated.sequences, stated.kv_tokens, stated.address) == (3, 1e6 - 112, "me:1")
    assert stated.tokens_spent == control.ledger.spent == 100
    full = with_peers(1)
    admitted(full, account())
    pending(full, account(name="b"))
    assert full.stated_room().sequences == 0  # not less: a request waits at several replicas
    full.is_serving = False
    assert (full.stated_room().sequences, full.stated_room().address) == (0, "")


def test_an_engine_without_a_bound_states_a_number_that_can_be_added_up() -> None:
    control = with_peers()
    control.engine_changed(replace(control.room, kv_tokens=math.inf), 0.0)
    assert control.stated_room().kv_tokens == MOST_ROOM


def test_a_peer_request_takes_room_and_is_no_demand_of_anyone_here() -> None:
    control = with_peers(1)
    ticket = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 0.0, 0.0, is_preemptible=False)
    assert isinstance(ticket, Ticket)
    assert (control.ledger.concurrency_in_use, control.peer_accounts.sequences) == (1, 1)
    assert control.ledger.spent == 0
    assert isinstance(offer(control, account()), PendingRequest)
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0, reported=False)
    assert control.peer_accounts.sequences == 0


def test_a_peer_request_without_room_waits_as_long_as_it_may_and_is_not_passed_on() -> None:
    control = with_peers(1, FREE)
    admitted(control, account())
    asked(control)
    refused = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 0.0, 0.0, is_preemptible=False)
    assert isinstance(refused, Shed)
    waiting = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    assert isinstance(waiting, PendingRequest)
    assert asked(control) == []
    control.wake(9.0)
    ((decided, shed),) = control.take_effects().decided
    assert decided is waiting
    assert isinstance(shed, Shed)


def test_peer_requests_and_own_requests_are_served_by_tier_and_deadline() -> None:
    control = with_peers(1)
    running = admitted(control, account())
    own = pending(control, account(name="b"))
    elastic = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 3.0, 0.0, is_preemptible=False)
    guarantee = control.offer_peer_request(Tier.GUARANTEED, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    order = [guarantee, elastic, own]
    for expected in order:
        control.settle(running, SPENT, Ending.FINISHED, 0.1)
        ((decided, ticket),) = control.take_effects().decided
        assert decided is expected
        assert isinstance(ticket, Ticket)
        running = ticket


def test_a_large_peer_request_delays_no_smaller_peer_request_of_its_tier() -> None:
    control = with_peers(2)
    first, second = admitted(control, account()), admitted(control, account())
    large = control.offer_peer_request(Tier.ELASTIC, peer_cost(2, 112), 5.0, 0.0, is_preemptible=False)
    small = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    control.settle(first, SPENT, Ending.FINISHED, 0.1)
    ((decided, ticket),) = control.take_effects().decided
    assert decided is small
    assert isinstance(ticket, Ticket)
    for each in (second, ticket):
        control.settle(each, SPENT, Ending.FINISHED, 0.2)
    ((decided, ticket),) = control.take_effects().decided
    assert decided is large


def test_a_preemptible_peer_request_ends_for_a_guarantee_here() -> None:
    control = with_peers(1)
    kept = control.offer_peer_request(Tier.SPOT, peer_cost(1, 112), 0.0, 0.0, is_preemptible=True)
    admitted(control, gold(), 0.1)
    assert control.take_effects().to_end == [kept]
    other = with_peers(1)
    other.offer_peer_request(Tier.SPOT, peer_cost(1, 112), 0.0, 0.0, is_preemptible=False)
    admitted(other, gold(), 0.1)
    assert other.take_effects().to_end == []


# --- limits bind only under contention ---


def test_a_lone_sidecar_admits_beyond_a_limit_while_its_engine_has_room() -> None:
    control, tenant = control_of(2), account(NONE_NOW)
    tickets = [admitted(control, tenant) for _ in range(2)]
    assert all(ticket.uses_free_capacity for ticket in tickets)
    assert isinstance(offer(control, tenant), PendingRequest)
    for ticket in tickets:
        control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert tenant.limit.concurrency == tenant.concurrency_in_use


def test_a_lone_sidecar_keeps_free_room_for_those_who_wait_for_it() -> None:
    control, greedy = control_of(2), account(NONE_NOW)
    admitted(control, account())
    large = control.offer(account(name="large"), ASK, cost(sequences=2), 0.0)
    assert isinstance(large, PendingRequest)
    assert large.waits_for is WaitsFor.ENGINE
    waiting = pending(control, greedy)
    assert waiting.waits_for is WaitsFor.LIMIT


def test_no_use_of_free_capacity_exceeds_a_ceiling() -> None:
    control, tenant = control_of(8), account(NONE_NOW, ceiling=Amount(math.inf, math.inf, 1))
    tenant.set_limits(NONE_NOW, NOTHING, 0.0, 0.0)
    admitted(control, tenant)
    assert pending(control, tenant).waits_for is WaitsFor.LIMIT


def test_no_use_of_free_capacity_exceeds_the_throughput_of_the_engine() -> None:
    control, tenant = control_of(8), account(Amount(1.0, 1e6, 8))
    tenant.bucket.level = -50.0
    assert isinstance(offer(control, tenant), Shed)
    control.free_capacity.set_throughput(1000.0, 0.0)
    ticket = admitted(control, tenant)
    assert ticket.uses_free_capacity
    assert tenant.meter.free_tokens == 150  # what it lacks to pay for the request


def test_an_engine_that_was_busy_for_long_gives_what_is_left_of_its_throughput() -> None:
    control, busy = control_of(8), account()
    control.free_capacity.set_throughput(1000.0, 0.0)
    for tick in range(1, 101):
        for _ in range(2):  # 800 tokens per second
            control.settle(admitted(control, busy, tick / 4), SPENT, Ending.FINISHED, tick / 4)
        control.free_capacity.set_throughput(1000.0, tick / 4)
    tenant = account(Amount(1.0, 1e6, 8), name="b")
    tenant.bucket.level = 0.0
    admissions = 0
    while isinstance(offer(control, tenant, 25.0), Ticket) and admissions < 100:
        admissions += 1
        tenant.bucket.level = 0.0
        control.engine_changed(room(1000), 25.0)
    assert admissions in (8, 9, 10)  # the bucket has one second of throughput


def test_with_leases_a_request_is_admitted_at_once_while_every_claim_is_met() -> None:
    sidecar = Leased(entitlement(), terms=TERMS)
    ticket = admitted(sidecar.control, sidecar.accounts["a"], OPEN)
    assert ticket.uses_free_capacity
    sidecar.control.settle(ticket, SPENT, Ending.FINISHED, OPEN + 0.1)
    assert sidecar.accounts["a"].limit.concurrency == 0


def test_with_leases_a_request_waits_for_the_lease_store_while_others_want_more() -> None:
    sidecar = Leased(entitlement(), terms=CONTENDED)
    assert pending(sidecar.control, sidecar.accounts["a"], OPEN).waits_for is WaitsFor.LEASE


def test_a_request_behind_another_of_its_entitlement_keeps_no_free_capacity() -> None:
    sidecar = Leased(entitlement(), terms=TERMS, slots=1)
    control, tenant = sidecar.control, sidecar.accounts["a"]
    admitted(control, tenant, OPEN)
    held = tenant.limit
    for _ in range(3):
        pending(control, tenant, OPEN)
        assert not tenant.uses_free_capacity
        assert tenant.limit == held


def test_an_offer_is_not_taken_if_the_limit_is_short_then() -> None:
    sidecar = Leased(entitlement(), terms=CONTENDED, slots=1)
    control, tenant = sidecar.control, sidecar.accounts["a"]
    control.placement = Placement("me")
    control.engine_changed(room(1, foreign=1), OPEN)
    control.peers_named(FULL, OPEN)
    waiting = pending(control, tenant, OPEN)
    sidecar.exchange(OPEN + 0.01)
    asks = asked(control)
    assert {ask.pending for ask in asks} == {waiting}
    sidecar.store.publish({"a": Limit(1000, 10_000, 0, 1000)}, CONTENDED, 1, OPEN + 0.02)
    sidecar.lower_the_limit(OPEN + 0.02)
    assert not control.peer_offered(asks[0], OPEN + 0.03)
    assert waiting.waits_for is WaitsFor.LEASE
    assert control.take_effects().to_cancel == [asks[1]]
    assert (tenant.concurrency_in_use, control.ledger.away) == (0, 0)


# --- beyond a limit ---


def beyond_its_limit(slots: float) -> tuple[Leased, PendingRequest]:
    """A request that waits for a lease: its entitlement's limit is none, and the engine is full."""
    sidecar = Leased(entitlement(), terms=CONTENDED, slots=slots)
    control, tenant = sidecar.control, sidecar.accounts["a"]
    control.is_serving = True
    control.engine_changed(room(slots, foreign=slots), OPEN)
    control.placement = Placement("me")
    control.peers_named(FULL, OPEN)
    sidecar.lower_the_limit(OPEN)
    waiting = pending(control, tenant, OPEN)
    assert waiting.waits_for is WaitsFor.LEASE
    return sidecar, waiting


def test_a_request_beyond_its_limit_asks_others_once_the_lease_store_has_answered() -> None:
    sidecar, waiting = beyond_its_limit(1)
    control, tenant = sidecar.control, sidecar.accounts["a"]
    assert not control.has_effects
    sidecar.exchange(OPEN + 0.01)
    first, second = asked(control)
    assert (first.standing, second.standing) == (Standing.BEYOND, Standing.BEYOND)
    assert waiting.waits_for is WaitsFor.LEASE
    assert control.peer_offered(first, OPEN + 0.02)
    effects = control.take_effects()
    ((decided, ticket),) = effects.decided
    assert (decided, effects.to_cancel) == (waiting, [second])
    assert isinstance(ticket, Ticket)
    assert ticket.uses_free_capacity
    control.settle(ticket, SPENT, Ending.FINISHED, OPEN + 0.5)
    assert (tenant.limit.concurrency, tenant.concurrency_in_use) == (0, 0)


def test_free_room_here_serves_a_request_beyond_its_limit_and_cancels_its_asks() -> None:
    sidecar, waiting = beyond_its_limit(1)
    control = sidecar.control
    sidecar.exchange(OPEN + 0.01)
    asks = asked(control)
    control.engine_changed(room(1), OPEN + 0.02)
    assert cancelled_by_start_here(control, waiting) == asks


def test_a_request_beyond_its_limit_asks_nobody_without_tokens() -> None:
    sidecar, waiting = beyond_its_limit(1)
    waiting.account.bucket.hold(-1e6)
    sidecar.leases.free = (0.0, 0.0, 0.0)
    waiting.first_answer_at = OPEN
    sidecar.control.serve_lease_waits(OPEN + 0.01)
    assert not sidecar.control.has_effects


def test_peer_requests_beyond_their_limits_wait_behind_those_within() -> None:
    control = with_peers(1)
    running = admitted(control, account())
    beyond = control.offer_peer_request(
        Tier.GUARANTEED, peer_cost(1, 112), 1.0, 0.0, is_preemptible=False, standing=Standing.BEYOND
    )
    within = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    for expected in (within, beyond):
        control.settle(running, SPENT, Ending.FINISHED, 0.1)
        ((decided, ticket),) = control.take_effects().decided
        assert decided is expected
        assert isinstance(ticket, Ticket)
        running = ticket


def test_a_request_inside_its_guarantee_ends_spot_on_one_of_the_replicas_that_it_asks() -> None:
    control = with_peers(1)
    owner = gold(name="o")
    owner.has_peers = True
    admitted(control, account())
    pending(control, owner)
    assert [ask.standing for ask in asked(control)] == [Standing.ASSURED, Standing.WITHIN]


def test_spot_ends_for_an_assured_peer_request_and_for_no_other() -> None:
    control = with_peers(1)
    running = admitted(control, spot())
    other = control.offer_peer_request(Tier.GUARANTEED, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    assert isinstance(other, PendingRequest)
    control.withdraw(other, 0.0)
    assured = control.offer_peer_request(
        Tier.GUARANTEED, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False, standing=Standing.ASSURED
    )
    assert isinstance(assured, Ticket)
    assert control.take_effects().to_end == [running]


def test_an_assured_peer_request_waits_where_nothing_is_preemptible() -> None:
    control = with_peers(1)
    admitted(control, account())
    peer_request = control.offer_peer_request(
        Tier.GUARANTEED, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False, standing=Standing.ASSURED
    )
    assert isinstance(peer_request, PendingRequest)


def test_a_backlog_beyond_limits_keeps_nobody_within_theirs_from_asking() -> None:
    names = [f"t{number}" for number in range(MOST_ASKING)]
    sidecar = Leased(*(entitlement(name) for name in names), entitlement("w"), terms=CONTENDED, slots=1)
    control = sidecar.control
    control.is_serving, control.placement = True, Placement("me")
    control.engine_changed(room(1, foreign=1), OPEN)
    control.peers_named(FULL, OPEN)
    within = pending(control, sidecar.accounts["w"], OPEN)
    sidecar.exchange(OPEN + 0.01)
    assert {ask.pending for ask in asked(control)} == {within}
    control.withdraw(within, OPEN + 0.02)
    control.take_effects()
    sidecar.lower_the_limit(OPEN + 0.03)
    beyond = {pending(control, sidecar.accounts[name], OPEN + 0.04) for name in names}
    sidecar.exchange(OPEN + 0.05)
    assert {ask.pending for ask in asked(control)} == beyond
    sidecar.publish(OPEN + 0.06)
    again = pending(control, sidecar.accounts["w"], OPEN + 0.06)
    sidecar.exchange(OPEN + 0.07)
    assert again in {ask.pending for ask in control.take_effects().to_ask}


def test_a_request_whose_asks_were_refused_asks_again_when_room_is_named() -> None:
    control = with_peers()
    admitted(control, account())
    waiting = pending(control, account(name="b"))
    for ask in asked(control):
        control.peer_refused(ask, 0.01)
    assert not control.has_effects
    control.peers_named(FREE, 0.05)
    assert {ask.pending for ask in asked(control)} == {waiting}


def test_a_request_does_not_look_elsewhere_longer_than_others_take_to_refuse() -> None:
    control, owner = with_peers(1, FREE), gold(name="o")
    owner.has_peers = True
    running = admitted(control, spot())
    waiting = pending(control, owner)
    asks = control.take_effects().to_ask
    assert waiting.places_until == PLACE_S
    for ask in asks:
        control.peer_refused(ask, 0.002)
    effects = control.take_effects()
    ((decided, ticket),) = effects.decided
    assert decided is waiting
    assert isinstance(ticket, Ticket)
    assert effects.to_end == [running]


def owner() -> Account:
    """A guaranteed account in a pool with other sidecars."""
    made = gold(name="o")
    made.has_peers = True
    return made


def test_a_guarantee_for_which_a_replica_has_no_spot_probes_the_next_one() -> None:
    control = with_peers()
    admitted(control, account())
    waiting = pending(control, owner())
    probe, waits = asked(control)
    assert (probe.is_probe, probe.pending, waits.is_probe) == (True, waiting, False)
    control.peer_refused(probe, 0.001)
    (again,) = asked(control)
    assert (again.is_probe, again.peer, again.standing) == (True, waits.peer, Standing.ASSURED)
    assert control.peer_offered(again, 0.002)
    effects = control.take_effects()
    assert [decided for decided, _ in effects.decided] == [waiting]
    assert effects.to_cancel == [waits]


def test_a_probe_that_fails_is_followed_by_another() -> None:
    control = with_peers()
    admitted(control, account())
    pending(control, owner())
    probe, waits = asked(control)
    control.peer_refused(probe, 0.001, has_failed=True)
    (again,) = asked(control)
    assert (again.is_probe, again.peer) == (True, waits.peer)


def test_a_guarantee_that_is_tried_here_after_a_refusal_probes_one_replica_at_a_time() -> None:
    """It looked elsewhere first. Its probe was its only ask, so the try here makes the next asks."""
    control = with_peers(peers=[FREE[0], *FULL[1:]])
    control.peers_named([KnownPeer(name, f"{name}:1", 0.0, 0.0) for name in "rst"], 0.0)
    admitted(control, account())
    waiting = pending(control, owner())
    assert waiting.places_until == PLACE_S
    probe, waits = asked(control)
    control.peer_refused(waits, 0.001)
    assert asked(control) == []
    control.peer_refused(probe, 0.001)
    assert [ask.standing for ask in asked(control)].count(Standing.ASSURED) == 1


def test_the_asks_end_when_all_replicas_have_refused_a_guarantee() -> None:
    control = with_peers()
    admitted(control, account())
    waiting = pending(control, owner())
    asks = asked(control)
    for _ in range(10):
        for ask in asks:
            control.peer_refused(ask, 0.001)
        asks = control.take_effects().to_ask
    assert asks == []
    assert not waiting.has_left


def test_a_waiting_request_does_not_take_the_slot_that_is_freed_for_a_guarantee() -> None:
    """An assured elastic request may wait in the engine behind spot. It would start before the guarantee."""
    control, tenant = with_peers(3, FREE), account(assured=PLENTY, name="e")
    tenant.has_peers = True
    admitted(control, account(name="other"))
    admitted(control, spot())
    admitted(control, spot("t"))
    waiting = pending(control, tenant)
    control.take_effects()
    control.peers_named(FULL, 0.02)
    guarantee = admitted(control, owner(), 0.02)
    (ended,) = control.take_effects().to_end
    control.settle(ended, SPENT, Ending.PREEMPTED, 2 * PLACE_S, reported=False)
    assert control.take_effects().decided == []
    assert not waiting.has_left
    control.first_token(guarantee, 0.02)
    control.serve(3 * PLACE_S)
    cancelled_by_start_here(control, waiting)


def test_an_offer_after_a_pause_is_not_taken_by_leases_that_have_expired() -> None:
    sidecar = Leased(entitlement(), terms=CONTENDED, slots=1)
    control = sidecar.control
    control.placement = Placement("me")
    control.engine_changed(room(1, foreign=1), OPEN)
    control.peers_named(FULL, OPEN)
    pending(control, sidecar.accounts["a"], OPEN)
    sidecar.exchange(OPEN + 0.01)
    first, _ = asked(control)
    assert not control.peer_offered(first, sidecar.leases.expires_at + 0.1)
    assert control.take_effects().decided == []


def test_an_unused_offer_says_nothing_about_the_time_of_requests() -> None:
    control = with_peers(4)
    control.settle(admitted(control, account()), SPENT, Ending.FINISHED, 10.0)
    before = control.ledger.residence.value
    peer_request = control.offer_peer_request(
        Tier.ELASTIC, peer_cost(1, 112), 1.0, 10.0, is_preemptible=False
    )
    assert isinstance(peer_request, Ticket)
    control.settle(peer_request, SPENT, Ending.CLIENT_GONE, 10.001, reported=False)
    assert control.ledger.residence.value == before


def test_after_its_wait_for_a_lease_spot_looks_elsewhere_before_it_waits_in_the_engine_here() -> None:
    sidecar = Leased(entitlement(tier=Tier.SPOT), terms=CONTENDED, slots=1)
    control = sidecar.control
    control.placement = Placement("me")
    control.engine_changed(replace(room(1, foreign=1), preemptible_queue=2.0), OPEN)
    control.peers_named(FREE, OPEN)
    waiting = pending(control, sidecar.accounts["a"], OPEN)
    assert waiting.waits_for is WaitsFor.LEASE
    sidecar.exchange(OPEN + 0.01)
    assert {ask.pending for ask in asked(control)} == {waiting}
