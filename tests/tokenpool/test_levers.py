"""What is done for guarantees beyond admission: preemption, reserved slots, the admission queue."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.tokenpool.builders import account
from tokenpool.door import MOST_WAITING, Door, DoorSettings
from tokenpool.entitlements import Slo, Tier
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
    """A request in the queue that fits once it is told to."""

    def __init__(
        self, door: Door, tenant: Account, now: float, log: list[str], name: str, **lacks: Any
    ) -> None:
        self.fits = False
        self.log, self.name, self.tries = log, name, 0
        self.place = door.enter(tenant, now, self.try_now, **lacks)

    def try_now(self, is_last: bool) -> bool:
        self.tries += 1
        if self.fits or is_last:
            self.log.append(f"{self.name} {'in' if self.fits else 'shed'}")
            return True
        return False


def test_tiers_come_first_then_deadlines() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5, spot_s=3.0)), []
    elastic, gold, spot = account(name="e"), account(name="g", tier=Tier.GUARANTEED), account(name="s")
    spot.entitlement = replace(spot.entitlement, tier=Tier.SPOT)
    callers = [
        Caller(door, spot, 0.0, log, "s1"),
        Caller(door, elastic, 0.0, log, "e1"),
        Caller(door, elastic, 0.1, log, "e2"),
        Caller(door, account(name="f"), 0.05, log, "f1"),
        Caller(door, gold, 0.2, log, "g1"),
    ]
    for caller in callers:
        caller.fits = True
    door.serve(0.3)
    assert log == ["g1 in", "e1 in", "f1 in", "e2 in", "s1 in"]
    assert len(door) == 0
    assert (door.waited, round(door.waited_s, 6)) == (5, 1.15)


def test_requests_of_one_entitlement_keep_their_order_and_time_is_bounded() -> None:
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


def test_the_ttft_that_was_promised_shortens_the_wait() -> None:
    settings = DoorSettings()
    gold, elastic, spot = (account(name=t.value, tier=t) for t in Tier)
    assert [settings.patience(each) for each in (gold, elastic, spot)] == [2.0, 1.0, 0.0]
    for promised_ms, patience in ((300.0, [0.3, 0.3, 0.0]), (1500.0, [1.5, 1.0, 0.0])):
        for each in (gold, elastic, spot):
            each.entitlement = replace(each.entitlement, slo=Slo(ttft_ms=promised_ms))
        assert [settings.patience(each) for each in (gold, elastic, spot)] == patience


def test_a_wait_for_a_lease_counts_against_the_deadline() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5)), []
    caller = Caller(door, account(name="e"), 0.2, log, "e", came_at=0.0)
    assert caller.place.deadline == 0.5


def test_a_request_that_would_wait_in_vain_or_is_one_too_many_is_not_queued() -> None:
    door = Door(DoorSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic = account(name="e")
    assert door.waits(elastic, 0.5)
    assert not door.waits(elastic, 0.6)
    assert not door.waits(account(name="s", tier=Tier.SPOT), 0.0)
    assert not Door(DoorSettings(elastic_s=0.0)).waits(elastic, 0.0)
    for number in range(MOST_WAITING):
        Caller(door, elastic, 0.0, [], str(number))
    assert not door.waits(elastic, 0.0)
    assert door.waits(account(name="other"), 0.0)


def test_a_place_far_back_in_the_queue_is_expected_to_take_longer() -> None:
    door = Door(DoorSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic, gold = account(name="e"), account(name="g", tier=Tier.GUARANTEED)
    for number in range(4):
        assert door.waits(elastic, 0.1, needs_engine=True)
        Caller(door, elastic, 0.0, [], str(number), needs_engine=True)
    assert door.waits(elastic, 0.1, needs_engine=True)
    assert not door.waits(elastic, 0.11, needs_engine=True)
    assert not door.waits(
        account(name="f"), 0.11, needs_engine=True
    )  # another tenant waits for the same slots
    assert door.waits(account(name="f"), 0.11)  # ... but not for the same limit
    assert door.waits(gold, 0.5, needs_engine=True)  # tried first


def test_a_request_that_left_is_not_tried() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5)), []
    tenant = account(name="e")
    caller = Caller(door, tenant, 0.0, log, "e", needs_engine=True)
    assert door.has_waiting(tenant)
    assert door.needs_engine
    door.leave(caller.place, 0.1)
    door.leave(caller.place, 0.1)
    door.serve(9.0)
    assert (log, len(door), door.has_waiting(tenant), door.needs_engine) == ([], 0, False, False)


def test_the_end_of_a_request_costs_few_tries_however_many_wait() -> None:
    door, log = Door(DoorSettings()), []
    tenants = [account(name=f"t{number}") for number in range(200)]
    engine = [Caller(door, t, 0.0, log, "engine", needs_engine=True) for t in tenants[:100] for _ in range(5)]
    limits = [Caller(door, t, 0.0, log, "limit") for t in tenants[100:] for _ in range(5)]
    for ended in tenants[:3] + tenants[100:103]:
        door.serve(0.1, ended)
    assert sum(caller.tries for caller in engine) <= 6 * 2
    assert sum(caller.tries for caller in limits) == 3
    engine[0].fits = engine[1].fits = limits[0].fits = True
    door.serve(0.2, tenants[150])
    assert log == ["engine in", "engine in"]
    door.serve(0.2, tenants[100])
    assert log[2:] == ["limit in"]


def test_the_next_in_line_is_tried_soon_after_one_has_left() -> None:
    door, log = Door(DoorSettings(elastic_s=0.5)), []
    first, second = (Caller(door, account(name="e"), 0.0, log, name) for name in ("first", "second"))
    second.fits = True
    door.leave(first.place, 0.1)
    assert door.looks_at() < 0.11
    door.serve(door.looks_at(), account(name="other"))
    assert log == ["second in"]


def test_a_request_that_lacks_tokens_is_tried_when_its_bucket_has_filled() -> None:
    door, log = Door(DoorSettings()), []
    tenant = account(name="e")
    caller = Caller(door, tenant, 0.0, log, "e", retry_in_s=0.3)
    assert door.looks_at() == 0.3
    door.serve(0.25, account(name="other"))
    assert caller.tries == 0
    caller.fits = True
    door.serve(door.looks_at(), account(name="other"))
    assert log == ["e in"]


def test_what_a_request_lacks_may_change_while_it_waits() -> None:
    door, log = Door(DoorSettings()), []
    tenant = account(name="e")

    class Turns(Caller):
        def try_now(self, is_last: bool) -> bool:
            self.place.needs_engine = not self.place.needs_engine
            return super().try_now(is_last)

    caller = Turns(door, tenant, 0.0, log, "e", needs_engine=True)
    other = account(name="other")
    door.serve(0.1, other)
    assert (caller.tries, door.needs_engine) == (1, False)
    door.serve(0.1, other)
    assert caller.tries == 1  # the engine's room concerns it no more
    door.serve(0.1, tenant)
    assert (caller.tries, door.needs_engine) == (2, True)
    caller.fits = True
    door.serve(0.1, other)
    assert (log, len(door), door.needs_engine) == (["e in"], 0, False)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "leave", "serve", "ended"]),
            st.integers(0, 5),
            st.booleans(),
            st.booleans(),
            st.floats(0, 0.4),
        ),
        max_size=60,
    )
)
def test_every_wait_ends_once_and_in_time(script: list[tuple[str, int, bool, bool, float]]) -> None:
    door, log, now = Door(DoorSettings()), [], 0.0
    tiers = [Tier.GUARANTEED, Tier.ELASTIC, Tier.ELASTIC]
    tenants = [account(name=f"t{number}", tier=tier) for number, tier in enumerate(tiers)]
    callers: list[Caller] = []
    for number, (what, which, needs_engine, fits, wait) in enumerate(script):
        now += wait
        door.serve(min(door.looks_at(), now))
        tenant = tenants[which % 3]
        if what == "enter":
            callers.append(Caller(door, tenant, now, log, str(number), needs_engine=needs_engine))
        elif callers:
            callers[which % len(callers)].fits = fits
            if what == "leave":
                gone = callers[which % len(callers)]
                if gone.place.is_waiting:
                    log.append(f"{gone.name} left")
                door.leave(gone.place, now)
            else:
                door.serve(now, tenant if what == "ended" else None)
        assert len(door) == sum(caller.place.is_waiting for caller in callers)
        assert door.needs_engine == any(c.place.is_waiting and c.place.needs_engine for c in callers)
    while door.looks_at() < math.inf:
        now = max(now, door.looks_at())
        door.serve(now)
    assert sorted(line.split()[0] for line in log) == sorted(caller.name for caller in callers)
    assert len(door) == 0


def test_what_waits_in_the_engine_is_ended_first() -> None:
    running = {"waits": Running(1.0, 1, 100, has_begun=False), "old": Running(5.0, 1, 100)}
    running["young"] = Running(9.0, 1, 100)
    assert [name for name, _ in victims(running.items(), 1, 0)] == ["waits"]
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["waits", "young"]
