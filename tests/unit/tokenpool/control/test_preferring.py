"""Requests that ask the replica with their prompt in its cache: their order, end and lessons."""

from __future__ import annotations

import math

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Place, Ticket
from tokenpool.admission.affinity import Preference, PrefixCaches
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.control.preferring import PREFER_S, Preferring
from tokenpool.pricing.cost import Usage

PREFERENCE = Preference("p", 800, 500)


def ticket(place: Place | None = None) -> Ticket:
    return Ledger().reserve(account(), ASK, cost(), 0.0, place)


def begun(preferring: Preferring, now: float) -> tuple[PendingRequest, PeerAsk]:
    """A request that asks since ``now``."""
    pending = PendingRequest(account(), ASK, cost(), now, longest_wait_s=1.0)
    ask = PeerAsk(1, "p", "p:1", pending, 0.0, 0.0)
    preferring.begin(pending, ticket(), ask, now)
    return pending, ask


def test_requests_without_an_answer_in_time_are_returned_in_order_and_once() -> None:
    preferring = Preferring()
    assert preferring.wakes_at() == math.inf
    (first, ask), (second, _), (third, _) = (begun(preferring, now) for now in (0.0, 0.01, 0.02))
    assert preferring.wakes_at() == PREFER_S
    overdue = preferring.overdue(PREFER_S + 0.01)
    assert [pending for pending, _ in overdue] == [first, second]
    assert overdue[0][1].ask is ask
    assert preferring.overdue(PREFER_S + 0.01) == []
    assert preferring.wakes_at() == 0.02 + PREFER_S
    assert preferring.of(first) is None
    assert preferring.end(third) is not None
    assert preferring.end(third) is None
    assert (preferring.is_any_asking, len(preferring)) == (False, 0)


def test_the_gain_of_a_preferred_replica_is_learned_from_a_report_alone() -> None:
    preferring, caches = Preferring(), PrefixCaches()
    for reported in (True, False):
        away = ticket(Place("p", "p:1", 1, 0.0))
        preferring.runs(away, PREFERENCE)
        preferring.finished(away, Usage(1000, 10, 700), caches, 1.0, reported=reported)
    assert (caches.gains.requests, caches.gains.reported, caches.own) == (1, 400, 0)
    cut = ticket(Place("p", "p:1", 2, 0.0))
    preferring.runs(cut, PREFERENCE)
    preferring.forget(cut)
    preferring.finished(cut, Usage(1000, 10, 700), caches, 1.0, reported=True)
    assert (caches.gains.requests, len(preferring)) == (1, 0)
