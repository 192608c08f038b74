"""The engine here is down: requests run on other replicas, or are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.domain_builders import ASK, account, cost
from tests.unit.tokenpool.control.test_admission_control import (
    OPEN,
    SPENT,
    TERMS,
    WAITS,
    Leased,
    admitted,
    assert_is_empty,
    control_of,
    entitlement,
    gold,
    offer,
    pending,
    room,
)
from tests.unit.tokenpool.control.test_handover import (
    FREE,
    FULL,
    asked,
    cancelled_by_start_here,
    with_peers,
)
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import KnownPeer, Placement
from tokenpool.admission.queue import QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.peer_accounts import peer_cost
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending, Reason

DOWN = replace(room(8), is_down=True)


def without_engine(peers: list[KnownPeer] = FREE, queue: QueueSettings = WAITS) -> AdmissionControl:
    """A control whose engine of eight slots is down."""
    made = with_peers(8, peers, queue)
    made.is_serving = False
    made.engine_changed(DOWN, 0.0)
    return made


@pytest.mark.parametrize("tenant", [account(), gold()], ids=["elastic", "guaranteed"])
def test_another_replica_gets_the_request(tenant: Account) -> None:
    control = without_engine()
    waiting = pending(control, tenant)
    first, second = asked(control)
    assert control.peer_offered(first, 0.1)
    effects = control.take_effects()
    ((decided, ticket),) = effects.decided
    assert decided is waiting
    assert isinstance(ticket, Ticket)
    assert ticket.place == first.place
    assert effects.to_cancel == [second]
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert_is_empty(control)


def test_a_request_of_a_tier_that_does_not_wait_gets_the_time_to_ask() -> None:
    control = without_engine(FREE, QueueSettings())
    pending(control, account(tier=Tier.SPOT))
    assert len(asked(control)) == 2


def test_a_request_larger_than_the_engine_was_is_refused() -> None:
    shed = offer(without_engine(), account(), sequences=9)
    assert isinstance(shed, Shed)
    assert shed.reason is Reason.NEVER_FITS


def test_without_other_replicas_a_request_is_refused_at_once() -> None:
    alone = control_of(8)
    alone.placement = Placement("me")
    alone.engine_changed(DOWN, 0.0)
    assert not alone.knows_others
    for tenant in (account(), gold()):
        shed = offer(alone, tenant)
        assert isinstance(shed, Shed)
        assert shed.reason is Reason.ENGINE_FULL


@pytest.mark.parametrize("tenant", [account(), gold()], ids=["elastic", "guaranteed"])
def test_a_request_is_refused_if_no_replica_has_room_within_its_wait(tenant: Account) -> None:
    control = without_engine(FULL)
    waiting = pending(control, tenant)
    for ask in asked(control):
        control.peer_refused(ask, 0.1)
    control.take_effects()
    control.wake(WAITS.elastic_s)
    ((decided, shed),) = control.take_effects().decided
    assert decided is waiting
    assert isinstance(shed, Shed)
    assert shed.reason is Reason.ENGINE_FULL
    assert_is_empty(control)


def test_the_expected_wait_is_that_for_a_slot_of_another_replica() -> None:
    """With a usual duration of 8 s and eight slots there, a slot becomes free once per second."""
    for wait_s, waits in ((1.1, True), (0.9, False)):
        control = without_engine(FULL[:1], QueueSettings(elastic_s=wait_s))
        control.ledger.residence.value = 8.0
        assert isinstance(offer(control, account()), PendingRequest) is waits


def test_waiting_requests_continue_here_once_the_engine_is_back() -> None:
    control = without_engine(FULL)
    waiting = pending(control, account())
    asks = asked(control)
    control.engine_changed(room(8), 0.1)
    assert cancelled_by_start_here(control, waiting) == asks


def test_a_peer_request_does_not_wait_for_an_engine_that_is_down() -> None:
    control = with_peers(1)
    running = admitted(control, account())
    waiting = control.offer_peer_request(Tier.ELASTIC, peer_cost(1, 112), 9.0, 0.0, is_preemptible=False)
    own = pending(control, account(name="b"))
    control.take_effects()
    control.engine_changed(replace(room(1), is_down=True), 0.1)
    ((decided, shed),) = control.take_effects().decided
    assert decided is waiting
    assert isinstance(shed, Shed)
    control.withdraw(own, 0.2)
    control.take_effects()
    control.settle(running, SPENT, Ending.UPSTREAM_ERROR, 0.3)
    assert_is_empty(control)


def test_no_request_is_admitted_here_after_a_refused_connection() -> None:
    control = with_peers(8, FREE)
    admitted(control, account())
    control.use_room(DOWN)
    pending(control, account())
    assert len(asked(control)) == 2


def test_a_request_without_a_lease_waits_for_it_and_then_for_another_replica() -> None:
    sidecar = Leased(entitlement(), terms=TERMS)
    control, tenant = sidecar.control, sidecar.accounts["a"]
    control.placement = Placement("me")
    control.peers_named(FREE, OPEN)
    control.engine_changed(DOWN, OPEN)
    waiting = control.offer(tenant, ASK, cost(), OPEN)
    assert isinstance(waiting, PendingRequest)
    first, _ = asked(control)
    assert control.peer_offered(first, OPEN + 0.01)
    ((decided, ticket),) = control.take_effects().decided
    assert decided is waiting
    assert isinstance(ticket, Ticket)


def test_an_engine_of_unknown_size_refuses_no_size() -> None:
    control = without_engine()
    control.engine_changed(EngineRoom(256.0, 1e11, is_down=True), 0.0)
    assert isinstance(control.offer(account(), ASK, cost(kv_tokens=10**6), 0.0), PendingRequest | Shed)
