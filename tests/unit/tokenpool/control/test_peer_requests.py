"""Peer requests: the accounts of requests of peers, and one request from its ask to its end."""

from __future__ import annotations

import math

import pytest

from tests.support.domain_builders import account
from tests.unit.tokenpool.control.test_admission_control import assert_is_empty, gold, room
from tests.unit.tokenpool.control.test_driver import Pod
from tokenpool.control.peer_accounts import PeerAccounts, peer_cost
from tokenpool.control.peer_request import PeerRequest
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending


class Line:
    """The way back to the sidecar that asks, which records each answer."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def offer(self) -> None:
        self.heard.append("offer")

    def refuse(self) -> None:
        self.heard.append("refuse")

    def preempt(self) -> None:
        self.heard.append("preempt")


class Host(Pod):
    """A driver that serves peer requests."""

    def __init__(self, slots: float = 1) -> None:
        super().__init__(slots)
        self.control.is_serving = True

    def ask(
        self, wait_s: float = 5.0, *, tier: Tier = Tier.ELASTIC, is_preemptible: bool = False
    ) -> tuple[PeerRequest, Line]:
        line = Line()
        peer_request = PeerRequest(self.driver, line)
        peer_request.ask(tier, 1, 112, wait_s, self.ports.at, is_preemptible=is_preemptible)
        return peer_request, line


# --- accounts ---


def test_each_tier_has_an_account_without_limits() -> None:
    peer_accounts = PeerAccounts(0.0)
    for tier in Tier:
        made = peer_accounts.account(tier, is_preemptible=False)
        assert made.entitlement.tier is tier
        assert made.is_active
        assert not made.is_preemptible
        assert made.missing(peer_cost(1000, 10**9)) == (0, 0, 0)
        assert peer_accounts.has(made)
    assert not peer_accounts.has(account())


def test_only_spot_is_preemptible() -> None:
    peer_accounts = PeerAccounts(0.0)
    assert peer_accounts.account(Tier.SPOT, is_preemptible=True).is_preemptible
    for tier in (Tier.ELASTIC, Tier.GUARANTEED):
        assert not peer_accounts.account(tier, is_preemptible=True).is_preemptible
    names = {
        peer_accounts.account(tier, is_preemptible=each).entitlement.name
        for tier in Tier
        for each in (True, False)
    }
    assert len(names) == len(Tier) + 1  # the queue keeps requests by name


def test_the_bucket_of_peer_requests_is_never_empty() -> None:
    made = PeerAccounts(0.0).account(Tier.ELASTIC, is_preemptible=False)
    made.charge(1e12)
    assert made.bucket.refill(100.0) == math.inf


# --- one request ---


def test_a_peer_request_gets_an_offer_at_once_where_there_is_room() -> None:
    host = Host()
    peer_request, line = host.ask()
    assert (line.heard, peer_request.has_room) == (["offer"], True)
    assert host.control.ledger.concurrency_in_use == 1
    peer_request.end(Ending.FINISHED)
    peer_request.end(Ending.FINISHED)
    assert (line.heard, peer_request.has_room) == (["offer"], False)
    host.assert_is_empty()


def test_a_peer_request_gets_an_offer_once_there_is_room() -> None:
    host = Host()
    running = host.offer(account())
    peer_request, line = host.ask()
    assert (line.heard, peer_request.has_room) == ([], False)
    host.finish(running)
    assert (line.heard, peer_request.has_room) == (["offer"], True)
    peer_request.end(Ending.CLIENT_GONE)
    host.assert_is_empty()


def test_a_peer_request_that_may_not_wait_is_refused_at_once() -> None:
    host = Host()
    running = host.offer(account())
    peer_request, line = host.ask(0.0)
    assert (line.heard, peer_request.has_room) == (["refuse"], False)
    host.finish(running)
    assert line.heard == ["refuse"]
    host.assert_is_empty()


def test_a_peer_request_is_refused_at_the_end_of_its_longest_wait() -> None:
    host = Host()
    running = host.offer(account())
    _, line = host.ask(5.0)
    host.ports.at = host.ports.alarms[-1]
    assert host.ports.at == 5.0
    host.driver.wake()
    assert line.heard == ["refuse"]
    host.finish(running)
    host.assert_is_empty()


def test_a_peer_request_that_can_never_fit_is_refused() -> None:
    host = Host(slots=0)
    _, line = host.ask()
    assert line.heard == ["refuse"]


def test_a_sidecar_that_does_not_serve_takes_no_peer_requests() -> None:
    host = Host()
    host.control.is_serving = False
    _, line = host.ask()
    assert line.heard == ["refuse"]
    host.assert_is_empty()


@pytest.mark.parametrize("has_room", [True, False])
def test_a_cancelled_ask_leaves_its_room_to_the_next(*, has_room: bool) -> None:
    host = Host()
    running = None if has_room else host.offer(account())
    first, first_line = host.ask()
    _, second_line = host.ask()
    first.end(Ending.CLIENT_GONE)
    if running is not None:
        host.finish(running)
    assert first_line.heard == (["offer"] if has_room else [])
    host.ports.at = min(host.ports.alarms[-1], 0.1)
    host.driver.wake()
    assert second_line.heard == ["offer"]


def test_a_guarantee_here_ends_a_preemptible_peer_request() -> None:
    host = Host()
    peer_request, line = host.ask(tier=Tier.SPOT, is_preemptible=True)
    owner = host.offer(gold())
    assert line.heard == ["offer", "preempt"]
    assert not peer_request.has_room
    assert host.control.ledger.concurrency_in_use == 1
    peer_request.end(Ending.FINISHED)
    host.finish(owner)
    host.assert_is_empty()


def test_a_peer_request_teaches_no_prices_and_raises_no_spending_here() -> None:
    host = Host()
    peer_request, _ = host.ask()
    peer_request.begun(0.2)
    peer_request.end(Ending.FINISHED)
    peer_request.begun(0.3)
    assert host.control.ledger.spent == 0


def test_peer_requests_of_a_lost_connection_leave_no_state() -> None:
    host = Host(slots=2)
    peer_requests = [host.ask()[0] for _ in range(4)]
    for peer_request in peer_requests:
        peer_request.end(Ending.CLIENT_GONE)
    host.control.engine_changed(room(4), 0.1)
    host.driver.act()
    assert_is_empty(host.control)
    host.assert_is_empty()
