"""Prefix affinity in admission control: a request never loses its room here by asking another replica."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.domain_builders import account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.affinity import PrefixCaches, beginnings
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import MOST_ASKED, KnownPeer, PeerAsk, Placement
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.preferring import PREFER_S
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Ask, Usage

ASK = Ask(text_bytes=4096, target=("chat", "m"), prefixes=(7, 8))
COST = cost(tokens=2048, kv_tokens=2048)
SPENT = Usage(1024, 100, 16)
SLOTS = 4


def statement() -> str:
    """The statement of a replica that has the prompt in its cache."""
    caches = PrefixCaches()
    caches.reported((), 16)
    caches.computed(beginnings(ASK, COST.input_tokens, COST.output_tokens), 1000, 0.0)
    return caches.statement(0.0)


HELD = statement()


def control_of(sequences: float = SLOTS, cached: str = HELD, *, affinity: bool = True) -> AdmissionControl:
    """A control that knows another replica with so much room and this content of its cache."""
    placement = Placement("a", PrefixCaches() if affinity else None)
    made = AdmissionControl(0.0, AdmissionQueue(QueueSettings()), placement=placement)
    made.engine_changed(EngineRoom(SLOTS, 1e6, proven_slots=SLOTS), 0.0)
    made.is_serving = True
    made.peers_named([KnownPeer("b", "host:1", 1e6, sequences, cached)], 0.0)
    return made


def offer(control: AdmissionControl, tenant: Account, now: float = 0.0, ask: Ask = ASK) -> PendingRequest:
    made = control.offer(tenant, ask, COST, now)
    assert isinstance(made, PendingRequest)
    return made


def asked(control: AdmissionControl) -> PeerAsk:
    (ask,) = control.take_effects().to_ask
    return ask


def decided(control: AdmissionControl) -> Ticket:
    ((_, ticket),) = control.take_effects().decided
    assert isinstance(ticket, Ticket)
    return ticket


def assert_is_empty(control: AdmissionControl) -> None:
    ledger = control.ledger
    assert (ledger.concurrency_in_use, ledger.kv_in_use, ledger.preemptible_in_use, ledger.away) == (
        0,
        0,
        0,
        0,
    )
    assert not control.has_waiting
    assert len(control.preferring) == 0
    assert not control.preemption.spot
    assert control.wakes_at() == math.inf


def test_a_request_asks_the_replica_with_its_prompt_and_moves_there() -> None:
    control, tenant = control_of(), account(tier=Tier.SPOT)
    offer(control, tenant)
    ask = asked(control)
    prompt = beginnings(ASK, COST.input_tokens, COST.output_tokens)
    assert (ask.peer, ask.longest_wait_s, ask.prompt) == ("b", 0.0, prompt)
    assert control.ledger.concurrency_in_use == 1  # its room here is kept meanwhile
    assert control.peer_offered(ask, 0.001)
    ticket = decided(control)
    assert ticket.place == ask.place
    assert (control.ledger.concurrency_in_use, control.ledger.away, tenant.concurrency_in_use) == (0, 1, 1)
    control.settle(ticket, Usage(1024, 100, 900), Ending.FINISHED, 1.0)
    assert_is_empty(control)
    assert control.placement is not None
    assert control.placement.caches is not None
    gains = control.placement.caches.gains
    assert (gains.requests, gains.expected, gains.reported, gains.error) == (1, 1023, 900, 123)


@pytest.mark.parametrize("has_failed", [False, True])
def test_without_room_there_it_starts_here(has_failed: bool) -> None:
    control = control_of()
    offer(control, account())
    control.peer_refused(asked(control), 0.001, has_failed=has_failed)
    ticket = decided(control)
    assert ticket.place is None
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert_is_empty(control)


def test_without_an_answer_it_starts_here() -> None:
    control = control_of()
    offer(control, account())
    ask = asked(control)
    assert control.wakes_at() == PREFER_S
    control.wake(PREFER_S)
    effects = control.take_effects()
    assert effects.to_cancel == [ask]
    ((_, ticket),) = effects.decided
    assert isinstance(ticket, Ticket)
    assert not control.peer_offered(ask, PREFER_S)  # too late
    control.peer_refused(ask, PREFER_S)
    assert control.take_effects().decided == []
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    assert_is_empty(control)


def test_a_client_that_leaves_frees_its_room() -> None:
    control = control_of()
    pending = offer(control, account())
    ask = asked(control)
    ticket = control.withdraw(pending, 0.001)
    assert ticket is not None
    assert control.take_effects().to_cancel == [ask]
    control.settle(ticket, Usage(0, 0), Ending.CLIENT_GONE, 0.001)
    assert not control.peer_offered(ask, 0.002)
    assert_is_empty(control)


@pytest.mark.parametrize(
    "control",
    [
        control_of(affinity=False),
        control_of(cached=""),
        control_of(sequences=0),
        control_of(sequences=1),  # none is left there
    ],
    ids=["affinity is off", "nothing is cached there", "no room there", "little room there"],
)
def test_otherwise_it_is_admitted_here_at_once(control: AdmissionControl) -> None:
    ticket = control.offer(account(), ASK, COST, 0.0)
    assert isinstance(ticket, Ticket)
    assert not control.take_effects().to_ask


def test_a_prompt_that_is_cached_here_stays() -> None:
    control = control_of(cached="")
    ticket = control.offer(account(), ASK, COST, 0.0)
    assert isinstance(ticket, Ticket)
    control.settle(ticket, SPENT, Ending.FINISHED, 0.1)
    control.peers_named([KnownPeer("b", "host:1", 1e6, SLOTS, HELD)], 0.1)
    assert isinstance(control.offer(account(), ASK, COST, 0.2), Ticket)


def test_a_request_whose_replica_was_lost_prefers_none() -> None:
    outcome = control_of().offer(account(), ASK, COST, 0.0, arrived_at=0.0)
    assert isinstance(outcome, Ticket)


def test_a_request_without_room_here_asks_the_replica_with_its_prompt_alone_and_then_others() -> None:
    control, tenant = control_of(), account()
    others = [KnownPeer(f"p{number}", "host:1", 1e6, SLOTS) for number in range(8)]
    control.peers_named(others, 0.0)
    for _ in range(SLOTS):
        assert isinstance(control.offer(tenant, Ask(), COST, 0.0), Ticket)
    offer(control, tenant)
    first = asked(control)
    assert (first.peer, first.longest_wait_s) == ("b", 0.0)
    control.peer_refused(first, 0.001)
    effects = control.take_effects()
    assert len(effects.to_ask) == MOST_ASKED
    assert "b" not in [ask.peer for ask in effects.to_ask]
    assert control.peer_offered(effects.to_ask[0], 0.002)
    assert decided(control).place == effects.to_ask[0].place


def test_what_ran_here_is_stated_also_if_it_came_from_another_replica() -> None:
    control = control_of(cached="")
    ticket = control.offer(account(), ASK.changed(prefixes=(1,)), COST, 0.0)
    assert isinstance(ticket, Ticket)
    control.settle(ticket, SPENT, Ending.FINISHED, 1.0)
    before = control.stated_cache(1.0)
    control.peer_request_computed(beginnings(ASK, 1024, 100), 2048, 2.0)
    after = control.stated_cache(2.0)
    assert "" != before != after
    control.forget_cache()
    assert control.stated_cache(3.0) == ""


@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "refuse", "end", "leave", "wake", "prefer"]), st.integers(0, 9))
    )
)
@settings(max_examples=200)
def test_affinity_refuses_no_request_that_fits(steps: list[tuple[str, int]]) -> None:
    """Each request with room here is admitted, whatever the other replica answers and when."""
    control = control_of(SLOTS)
    tenants = [account(name="x"), account(name="y", tier=Tier.SPOT)]
    asks: list[PeerAsk] = []
    running: list[Ticket] = []
    waiting: dict[PendingRequest, None] = {}
    now = 0.0

    def perform() -> None:
        effects = control.take_effects()
        asks.extend(effects.to_ask)
        for pending, outcome in effects.decided:
            assert isinstance(outcome, Ticket)
            waiting.pop(pending)
            running.append(outcome)

    for step, number in steps:
        now += 0.01
        control.peers_named([KnownPeer("b", "host:1", 1e6, SLOTS, HELD)], now)
        if step == "offer" and control.ledger.concurrency_in_use < SLOTS:
            outcome = control.offer(tenants[number % 2], ASK, COST, now)
            if isinstance(outcome, Ticket):
                running.append(outcome)
            else:
                assert isinstance(outcome, PendingRequest)
                waiting[outcome] = None
        elif step in ("refuse", "prefer") and asks:
            ask = asks.pop(number % len(asks))
            if step == "refuse":
                control.peer_refused(ask, now, has_failed=number > 7)
            else:
                control.peer_offered(ask, now)
        elif step == "end" and running:
            control.settle(running.pop(number % len(running)), SPENT, Ending.FINISHED, now)
        elif step == "leave" and waiting:
            pending = next(iter(waiting))
            del waiting[pending]
            ticket = control.withdraw(pending, now)
            assert ticket is not None
            control.settle(ticket, Usage(0, 0), Ending.CLIENT_GONE, now)
        elif step == "wake":
            control.wake(now)
        perform()
        held = sum(ticket.place is None for ticket in running) + len(waiting)
        assert control.ledger.concurrency_in_use == held <= SLOTS
        assert control.ledger.away == len(running) + len(waiting) - held
    control.wake(now + PREFER_S)
    perform()
    assert not waiting
    for ticket in running:
        control.settle(ticket, SPENT, Ending.FINISHED, now + 1)
    assert_is_empty(control)
