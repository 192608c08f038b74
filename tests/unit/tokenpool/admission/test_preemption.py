"""Preemption: the choice of spot requests to end for a guarantee, and no more than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.preemption import GUARANTEED_START_S, Preemption, Running, victims
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import Tier

requests = st.lists(
    st.builds(Running, st.floats(0, 100), st.integers(1, 4), st.integers(16, 512)), max_size=12
)


@given(requests, st.integers(0, 10), st.integers(0, 1000))
def test_no_more_requests_are_ended_than_needed(
    running: list[Running], sequences: int, kv_tokens: int
) -> None:
    ended = [request for _, request in victims(enumerate(running), sequences, kv_tokens)]
    if sum(r.sequences for r in running) < sequences or sum(r.kv_tokens for r in running) < kv_tokens:
        assert ended == []
        return
    for left_out in range(len(ended)):
        rest = ended[:left_out] + ended[left_out + 1 :]
        is_enough = (
            sum(r.sequences for r in rest) >= sequences and sum(r.kv_tokens for r in rest) >= kv_tokens
        )
        assert not is_enough
    assert sum(r.sequences for r in ended) >= sequences
    assert sum(r.kv_tokens for r in ended) >= kv_tokens


def test_the_youngest_is_ended_first() -> None:
    running = {name: Running(at, 1, 100) for name, at in (("old", 1.0), ("young", 9.0), ("middle", 5.0))}
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["young", "middle"]
    assert victims(running.items(), 0, 0) == []


def test_a_request_in_the_engines_queue_is_ended_first() -> None:
    running = {"waits": Running(1.0, 1, 100, has_begun=False), "old": Running(5.0, 1, 100)}
    running["young"] = Running(9.0, 1, 100)
    assert [name for name, _ in victims(running.items(), 1, 0)] == ["waits"]
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["waits", "young"]


# --- the running requests ---


def running(tier: Tier, ledger: Ledger, at: float, sequences: int = 1) -> Ticket:
    made = ledger.reserve(account(name=tier.value, tier=tier), ASK, cost(sequences=sequences), at)
    made.is_guaranteed = tier is Tier.GUARANTEED
    return made


def test_the_requests_to_end_are_returned_once_and_count_until_they_left() -> None:
    ledger, preemption, room = Ledger(), Preemption(), EngineRoom(2.0, 1e6, proven_slots=2.0)
    old, young = (running(Tier.SPOT, ledger, at) for at in (1.0, 2.0))
    for ticket in (old, young):
        assert preemption.admitted(ticket, ledger, room) == []
    first = running(Tier.GUARANTEED, ledger, 3.0)
    assert preemption.admitted(first, ledger, room) == [young]
    assert preemption.is_guarantee_starting(3.0)
    second = running(Tier.GUARANTEED, ledger, 3.0)
    assert preemption.admitted(second, ledger, room) == [old]
    assert (list(preemption.spot), list(preemption.ending)) == ([], [young, old])
    for ticket in (first, second, old, young):
        preemption.left(ticket)
    assert not preemption.ending
    assert not preemption.not_begun
    assert not preemption.is_guarantee_starting(3.0)


def test_a_surplus_is_ended_once_per_guaranteed_request_that_may_wait() -> None:
    ledger, preemption, room = Ledger(), Preemption(), EngineRoom(8.0, 1e6, proven_slots=8.0)
    for at in range(4):
        preemption.admitted(running(Tier.SPOT, ledger, float(at)), ledger, room)
    few = EngineRoom(2.0, 1e6, proven_slots=2.0)
    assert preemption.surplus(ledger, few) == []  # no guaranteed request waits
    guaranteed = running(Tier.GUARANTEED, ledger, 5.0)
    preemption.admitted(guaranteed, ledger, room)
    assert preemption.surplus(ledger, room) == []
    assert len(preemption.surplus(ledger, few)) == 3
    assert preemption.surplus(ledger, few) == []


def test_no_spot_request_waits_in_the_engine_before_a_guaranteed_one_has_started() -> None:
    ledger, preemption, room = Ledger(), Preemption(), EngineRoom(8.0, 1e6, proven_slots=8.0)
    ticket = running(Tier.GUARANTEED, ledger, 1.0)
    preemption.admitted(ticket, ledger, room)
    assert preemption.is_guarantee_starting(1.0 + 0.9 * GUARANTEED_START_S)
    ticket.has_begun = True
    preemption.began(ticket)
    assert not preemption.is_guarantee_starting(1.0 + 0.9 * GUARANTEED_START_S)
    preemption.admitted(running(Tier.GUARANTEED, ledger, 2.0), ledger, room)
    assert not preemption.is_guarantee_starting(2.0 + GUARANTEED_START_S)
