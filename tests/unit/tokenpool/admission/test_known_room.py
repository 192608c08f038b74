"""The known room of other replicas: asks use it up, and the end of an ask corrects it."""

from __future__ import annotations

from tests.support.domain_builders import ASK, account, cost
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import KnownPeer, Placement


def placement(sequences: float = 1.0, *names: str) -> Placement:
    made = Placement("me")
    made.learn([KnownPeer(name, f"{name}:1", 1e6, sequences) for name in names or ("x", "y")], 0.0)
    return made


def request() -> PendingRequest:
    return PendingRequest(account(), ASK, cost(), 0.0, longest_wait_s=1.0)


def test_an_ask_uses_up_the_room_of_its_replica() -> None:
    made = placement()
    assert len(made.ask(request(), 1.0, 0.0)) == 2
    assert not made.has_room(1, 112, 0.0)


def test_a_cancelled_ask_leaves_the_room_to_others() -> None:
    made, pending = placement(), request()
    taken, cancelled = made.ask(pending, 1.0, 0.0)
    assert made.ended(taken)
    assert made.withdraw(pending) == [cancelled]
    rooms = {peer.name: peer.sequences for peer in made.known}
    assert rooms == {taken.peer: 0.0, cancelled.peer: 1.0}


def test_a_cancelled_ask_does_not_change_a_room_that_was_stated_after_it() -> None:
    made, pending = placement(1.0, "x"), request()
    made.ask(pending, 1.0, 0.0)
    made.learn([KnownPeer("x", "x:1", 1e6, 3.0)], 0.1)
    made.withdraw(pending)
    assert made.known[0].sequences == 3.0


def test_a_replica_that_refuses_has_no_room_until_it_states_some() -> None:
    made = placement(8.0, "x")
    made.refused("x")
    assert not made.has_room(1, 112, 0.0)
    made.learn([KnownPeer("x", "x:1", 1e6, 1.0)], 0.1)
    assert made.has_room(1, 112, 0.1)
    made.refused("gone")
