"""What is done for guarantees beyond admission: whom to end, what to keep back, who waits at the door."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.tokenpool.builders import account
from tokenpool.door import MOST_WAITING, Door, DoorSettings
from tokenpool.entitlements import Tier
from tokenpool.feedback import CALM, FEWEST, MOST, WINDOW_S, Feedback
from tokenpool.ledger import Account
from tokenpool.preemption import Running, victims

requests = st.lists(
    st.builds(Running, st.floats(0, 100), st.integers(1, 4), st.integers(16, 512)), max_size=12
)


@given(requests, st.integers(0, 10), st.integers(0, 1000))
def test_never_more_is_ended_than_needed(running: list[Running], sequences: int, kv_tokens: int) -> None:
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


def window(feedback: Feedback, now: float, *ttfts: float, slo: float = 0.1, slots: float = 8) -> float:
    for ttft in ttfts:
        feedback.observe(ttft, slo)
    return feedback.judge(slots, now)


def test_late_answers_keep_slots_back_and_calm_ones_give_them_back_slowly() -> None:
    feedback = Feedback(0.0)
    assert window(feedback, 0.5 * WINDOW_S, 0.2, 0.05) == 0
    assert window(feedback, WINDOW_S, 0.05) == 0  # a single late one says nothing
    assert window(feedback, 2 * WINDOW_S, 0.2, 0.2, 0.05) == 1
    assert window(feedback, 3 * WINDOW_S, 0.2, 0.2, 0.2) == 2
    assert window(feedback, 4 * WINDOW_S, 0.05, 0.05, 0.05) == 1.75
    assert window(feedback, 5 * WINDOW_S, *[0.1 * (CALM + 0.1)] * 3) == 1.75  # kept, but not calm
    assert window(feedback, 6 * WINDOW_S, *[0.05] * 9, 0.2) == 1.75  # one late
    for number in range(7, 20):
        window(feedback, number * WINDOW_S)  # nobody asks: nothing to protect
    assert feedback.kept_back == 0


def test_no_more_than_half_an_engine_is_kept_back() -> None:
    feedback = Feedback(0.0)
    for number in range(1, 20):
        window(feedback, number * WINDOW_S, 9.0, 9.0, 9.0)
    assert feedback.kept_back == 8 * MOST


def test_a_few_measurements_are_not_judged_and_not_forgotten() -> None:
    feedback = Feedback(0.0)
    assert window(feedback, WINDOW_S, *[9.0] * (FEWEST - 1)) == 0
    assert window(feedback, WINDOW_S + 0.1, 9.0) == 1


class Caller:
    """A request at the door that fits once it is told to."""

    def __init__(self, door: Door, tenant: Account, now: float, log: list[str], name: str) -> None:
        self.fits = False
        self.log, self.name = log, name
        self.place = door.enter(tenant, now, self.try_now)

    def try_now(self, is_last: bool) -> bool:
        if self.fits or is_last:
            self.log.append(f"{self.name} {'in' if self.fits else 'shed'}")
            return True
        return False


def test_at_the_door_tiers_come_first_then_deadlines() -> None:
    door, log = Door(DoorSettings(guaranteed_s=1.0, elastic_s=0.5)), []
    elastic, gold = account(name="e"), account(name="g", tier=Tier.GUARANTEED)
    callers = [
        Caller(door, elastic, 0.0, log, "e1"),
        Caller(door, elastic, 0.1, log, "e2"),
        Caller(door, gold, 0.2, log, "g1"),
    ]
    for caller in callers:
        caller.fits = True
    door.serve(0.3)
    assert log == ["g1 in", "e1 in", "e2 in"]
    assert len(door) == 0
    assert (door.waited, round(door.waited_s, 6)) == (3, 0.6)


def test_nobody_is_overtaken_by_his_own_and_time_is_bounded() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5)), []
    first, second = (Caller(door, account(name="e"), at, log, f"e{at:g}") for at in (0.0, 0.1))
    second.fits = True
    door.serve(0.2)
    assert log == []
    assert door.looks_at() == 0.5
    door.serve(0.5)
    assert log == ["e0 shed", "e0.1 in"]
    assert door.looks_at() == math.inf
    assert first.place.deadline == 0.5


def test_who_would_wait_in_vain_or_is_spot_or_one_too_many_does_not() -> None:
    door = Door(DoorSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic = account(name="e")
    assert door.waits(elastic, 0.5)
    assert not door.waits(elastic, 0.6)
    assert not door.waits(account(name="s", tier=Tier.SPOT), 0.0)
    assert not Door(DoorSettings()).waits(elastic, 0.0)
    for number in range(MOST_WAITING):
        Caller(door, elastic, 0.0, [], str(number))
    assert not door.waits(elastic, 0.0)
    assert door.waits(account(name="other"), 0.0)


def test_who_leaves_is_not_asked() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5)), []
    tenant = account(name="e")
    caller = Caller(door, tenant, 0.0, log, "e")
    assert door.has_waiting(tenant)
    door.leave(caller.place, 0.1)
    door.leave(caller.place, 0.1)
    door.serve(9.0)
    assert (log, len(door), door.has_waiting(tenant)) == ([], 0, False)


def test_what_waits_in_the_engine_is_ended_first() -> None:
    running = {"waits": Running(1.0, 1, 100, has_begun=False), "old": Running(5.0, 1, 100)}
    running["young"] = Running(9.0, 1, 100)
    assert [name for name, _ in victims(running.items(), 1, 0)] == ["waits"]
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["waits", "young"]
