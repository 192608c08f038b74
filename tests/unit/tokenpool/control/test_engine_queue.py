"""The queue of a full engine, while other replicas may have room."""

from __future__ import annotations

import pytest

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import KnownPeer, Placement
from tokenpool.admission.queue import MOST_WAITING, AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import PLACE_S, AdmissionControl
from tokenpool.entitlements import Tier

GUARANTEE = Amount(1e4, 1e6, 100)


def full(peer_room: float, *, preemptible_queue: float = 0.0, runs: Tier = Tier.ELASTIC) -> AdmissionControl:
    """A control whose engine has one slot, in use. It knows one other replica."""
    made = AdmissionControl(0.0, AdmissionQueue(QueueSettings(2.0, 1.0, 0.0)), placement=Placement("me"))
    made.engine_changed(EngineRoom(1.0, 1e6, proven_slots=1.0, preemptible_queue=preemptible_queue), 0.0)
    assert isinstance(offer(made, account(tier=runs, name="runs")), Ticket)
    made.peers_named([KnownPeer("x", "x:1", 1e6, peer_room)], 0.0)
    return made


def owner() -> Account:
    made = account(tier=Tier.GUARANTEED, guarantee=GUARANTEE, assured=GUARANTEE, name="owner")
    made.has_peers = True
    return made


def offer(control: AdmissionControl, tenant: Account) -> Ticket | PendingRequest | Shed:
    return control.offer(tenant, ASK, cost(), 0.0)


@pytest.mark.parametrize("peer_room", [0.0, 1.0])
def test_a_guaranteed_request_asks_others_and_joins_the_engines_queue_at_its_deadline(
    peer_room: float,
) -> None:
    control = full(peer_room)
    pending = offer(control, owner())
    assert isinstance(pending, PendingRequest)
    assert [ask.peer for ask in control.take_effects().to_ask] == ["x"]
    control.wake(PLACE_S + 0.01)
    assert control.take_effects().decided == []
    control.wake(pending.deadline)
    ((decided, outcome),) = control.take_effects().decided
    assert decided is pending
    assert isinstance(outcome, Ticket)
    assert outcome.place is None


def test_a_guaranteed_request_takes_the_slot_of_spot_here_if_no_other_replica_has_room() -> None:
    control = full(0.0, runs=Tier.SPOT)
    assert isinstance(offer(control, owner()), Ticket)
    assert len(control.take_effects().to_end) == 1


def test_a_guaranteed_request_that_may_not_wait_joins_the_engines_queue() -> None:
    control, tenant = full(0.0), owner()
    for _ in range(MOST_WAITING):
        assert isinstance(offer(control, tenant), PendingRequest)
    assert isinstance(offer(control, tenant), Ticket)


def test_spot_waits_in_the_engine_only_if_no_other_replica_has_room() -> None:
    spot = account(tier=Tier.SPOT, name="spot")
    assert isinstance(offer(full(0.0, preemptible_queue=1.0), spot), Ticket)
    control = full(1.0, preemptible_queue=1.0)
    pending = offer(control, spot)
    assert isinstance(pending, PendingRequest)
    control.wake(pending.deadline)
    ((_, outcome),) = control.take_effects().decided
    assert isinstance(outcome, Ticket)


def test_a_peer_request_does_not_wait_in_the_engine() -> None:
    control = full(0.0, preemptible_queue=1.0)
    outcome = control.offer_peer_request(Tier.SPOT, cost(), 0.0, 0.0, is_preemptible=True)
    assert isinstance(outcome, Shed)
