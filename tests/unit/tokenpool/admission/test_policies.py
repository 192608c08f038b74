"""What is done for guarantees beyond admission: preemption, reserved slots, the admission queue."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import account
from tokenpool.accounting.ledger import Account
from tokenpool.admission.preemption import Running, victims
from tokenpool.admission.queue import MOST_WAITING, AdmissionQueue, QueueSettings
from tokenpool.capacity.slo_controller import CALM, FEWEST, MOST, WINDOW_S, SloController
from tokenpool.entitlements import Slo, Tier

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


def window(
    slo_controller: SloController, now: float, *ttfts: float, slo: float = 0.1, slots: float = 8
) -> float:
    for ttft in ttfts:
        slo_controller.observe(ttft, slo)
    return slo_controller.judge(slots, now)


def test_late_answers_keep_slots_back_and_calm_ones_give_them_back_slowly() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, 0.5 * WINDOW_S, 0.2, 0.05) == 0
    assert window(slo_controller, WINDOW_S, 0.05) == 0  # a single late one says nothing
    assert window(slo_controller, 2 * WINDOW_S, 0.2, 0.2, 0.05) == 1
    assert window(slo_controller, 3 * WINDOW_S, 0.2, 0.2, 0.2) == 2
    assert window(slo_controller, 4 * WINDOW_S, 0.05, 0.05, 0.05) == 1.75
    assert window(slo_controller, 5 * WINDOW_S, *[0.1 * (CALM + 0.1)] * 3) == 1.75  # kept, but not calm
    assert window(slo_controller, 6 * WINDOW_S, *[0.05] * 9, 0.2) == 1.75  # one late
    for number in range(7, 20):
        window(slo_controller, number * WINDOW_S)  # nobody asks: nothing to protect
    assert slo_controller.reserved_slots == 0


def test_no_more_than_half_an_engine_is_kept_back() -> None:
    slo_controller = SloController(0.0)
    for number in range(1, 20):
        window(slo_controller, number * WINDOW_S, 9.0, 9.0, 9.0)
    assert slo_controller.reserved_slots == 8 * MOST


def test_a_few_measurements_are_not_judged_and_not_forgotten() -> None:
    slo_controller = SloController(0.0)
    assert window(slo_controller, WINDOW_S, *[9.0] * (FEWEST - 1)) == 0
    assert window(slo_controller, WINDOW_S + 0.1, 9.0) == 1


class Caller:
    """A request in the queue that fits once it is told to."""

    def __init__(
        self, queue: AdmissionQueue, tenant: Account, now: float, log: list[str], name: str, **lacks: Any
    ) -> None:
        self.fits = False
        self.log, self.name, self.tries = log, name, 0
        self.place = queue.enter(tenant, now, self.try_now, **lacks)

    def try_now(self, is_last: bool) -> bool:
        self.tries += 1
        if self.fits or is_last:
            self.log.append(f"{self.name} {'in' if self.fits else 'shed'}")
            return True
        return False


def test_tiers_come_first_then_deadlines() -> None:
    queue, log = AdmissionQueue(QueueSettings(elastic_s=0.5, spot_s=3.0)), []
    elastic, gold, spot = account(name="e"), account(name="g", tier=Tier.GUARANTEED), account(name="s")
    spot.entitlement = replace(spot.entitlement, tier=Tier.SPOT)
    callers = [
        Caller(queue, spot, 0.0, log, "s1"),
        Caller(queue, elastic, 0.0, log, "e1"),
        Caller(queue, elastic, 0.1, log, "e2"),
        Caller(queue, account(name="f"), 0.05, log, "f1"),
        Caller(queue, gold, 0.2, log, "g1"),
    ]
    for caller in callers:
        caller.fits = True
    queue.serve(0.3)
    assert log == ["g1 in", "e1 in", "f1 in", "e2 in", "s1 in"]
    assert len(queue) == 0
    assert (queue.waited, round(queue.waited_s, 6)) == (5, 1.15)


def test_requests_of_one_entitlement_keep_their_order_and_time_is_bounded() -> None:
    queue, log = AdmissionQueue(QueueSettings(elastic_s=0.5)), []
    first, second = (Caller(queue, account(name="e"), at, log, f"e{at:g}") for at in (0.0, 0.1))
    second.fits = True
    queue.serve(0.2)
    assert log == []
    assert queue.looks_at() == 0.5
    queue.serve(0.5)
    assert log == ["e0 shed", "e0.1 in"]
    assert queue.looks_at() == math.inf
    assert first.place.deadline == 0.5


def test_the_ttft_that_was_promised_shortens_the_wait() -> None:
    settings = QueueSettings()
    gold, elastic, spot = (account(name=t.value, tier=t) for t in Tier)
    assert [settings.patience(each) for each in (gold, elastic, spot)] == [2.0, 1.0, 0.0]
    for promised_ms, patience in ((300.0, [0.3, 0.3, 0.0]), (1500.0, [1.5, 1.0, 0.0])):
        for each in (gold, elastic, spot):
            each.entitlement = replace(each.entitlement, slo=Slo(ttft_ms=promised_ms))
        assert [settings.patience(each) for each in (gold, elastic, spot)] == patience


def test_a_wait_for_a_lease_counts_against_the_deadline() -> None:
    queue, log = AdmissionQueue(QueueSettings(elastic_s=0.5)), []
    caller = Caller(queue, account(name="e"), 0.2, log, "e", came_at=0.0)
    assert caller.place.deadline == 0.5


def test_a_request_that_would_wait_in_vain_or_is_one_too_many_is_not_queued() -> None:
    queue = AdmissionQueue(QueueSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic = account(name="e")
    assert queue.waits(elastic, 0.5)
    assert not queue.waits(elastic, 0.6)
    assert not queue.waits(account(name="s", tier=Tier.SPOT), 0.0)
    assert not AdmissionQueue(QueueSettings(elastic_s=0.0)).waits(elastic, 0.0)
    for number in range(MOST_WAITING):
        Caller(queue, elastic, 0.0, [], str(number))
    assert not queue.waits(elastic, 0.0)
    assert queue.waits(account(name="other"), 0.0)


def test_a_place_far_back_in_the_queue_is_expected_to_take_longer() -> None:
    queue = AdmissionQueue(QueueSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic, gold = account(name="e"), account(name="g", tier=Tier.GUARANTEED)
    for number in range(4):
        assert queue.waits(elastic, 0.1, needs_engine=True)
        Caller(queue, elastic, 0.0, [], str(number), needs_engine=True)
    assert queue.waits(elastic, 0.1, needs_engine=True)
    assert not queue.waits(elastic, 0.11, needs_engine=True)
    assert not queue.waits(
        account(name="f"), 0.11, needs_engine=True
    )  # another tenant waits for the same slots
    assert queue.waits(account(name="f"), 0.11)  # ... but not for the same limit
    assert queue.waits(gold, 0.5, needs_engine=True)  # tried first


def test_a_request_that_left_is_not_tried() -> None:
    queue, log = AdmissionQueue(QueueSettings(elastic_s=0.5)), []
    tenant = account(name="e")
    caller = Caller(queue, tenant, 0.0, log, "e", needs_engine=True)
    assert queue.has_waiting(tenant)
    assert queue.needs_engine
    queue.leave(caller.place, 0.1)
    queue.leave(caller.place, 0.1)
    queue.serve(9.0)
    assert (log, len(queue), queue.has_waiting(tenant), queue.needs_engine) == ([], 0, False, False)


def test_the_end_of_a_request_costs_few_tries_however_many_wait() -> None:
    queue, log = AdmissionQueue(QueueSettings()), []
    tenants = [account(name=f"t{number}") for number in range(200)]
    engine = [
        Caller(queue, t, 0.0, log, "engine", needs_engine=True) for t in tenants[:100] for _ in range(5)
    ]
    limits = [Caller(queue, t, 0.0, log, "limit") for t in tenants[100:] for _ in range(5)]
    for ended in tenants[:3] + tenants[100:103]:
        queue.serve(0.1, ended)
    assert sum(caller.tries for caller in engine) <= 6 * 2
    assert sum(caller.tries for caller in limits) == 3
    engine[0].fits = engine[1].fits = limits[0].fits = True
    queue.serve(0.2, tenants[150])
    assert log == ["engine in", "engine in"]
    queue.serve(0.2, tenants[100])
    assert log[2:] == ["limit in"]


def test_the_next_in_line_is_tried_soon_after_one_has_left() -> None:
    queue, log = AdmissionQueue(QueueSettings(elastic_s=0.5)), []
    first, second = (Caller(queue, account(name="e"), 0.0, log, name) for name in ("first", "second"))
    second.fits = True
    queue.leave(first.place, 0.1)
    assert queue.looks_at() < 0.11
    queue.serve(queue.looks_at(), account(name="other"))
    assert log == ["second in"]


def test_a_request_that_lacks_tokens_is_tried_when_its_bucket_has_filled() -> None:
    queue, log = AdmissionQueue(QueueSettings()), []
    tenant = account(name="e")
    caller = Caller(queue, tenant, 0.0, log, "e", retry_in_s=0.3)
    assert queue.looks_at() == 0.3
    queue.serve(0.25, account(name="other"))
    assert caller.tries == 0
    caller.fits = True
    queue.serve(queue.looks_at(), account(name="other"))
    assert log == ["e in"]


def test_what_a_request_lacks_may_change_while_it_waits() -> None:
    queue, log = AdmissionQueue(QueueSettings()), []
    tenant = account(name="e")

    class Turns(Caller):
        def try_now(self, is_last: bool) -> bool:
            self.place.needs_engine = not self.place.needs_engine
            return super().try_now(is_last)

    caller = Turns(queue, tenant, 0.0, log, "e", needs_engine=True)
    other = account(name="other")
    queue.serve(0.1, other)
    assert (caller.tries, queue.needs_engine) == (1, False)
    queue.serve(0.1, other)
    assert caller.tries == 1  # the engine's room concerns it no more
    queue.serve(0.1, tenant)
    assert (caller.tries, queue.needs_engine) == (2, True)
    caller.fits = True
    queue.serve(0.1, other)
    assert (log, len(queue), queue.needs_engine) == (["e in"], 0, False)


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
    queue, log, now = AdmissionQueue(QueueSettings()), [], 0.0
    tiers = [Tier.GUARANTEED, Tier.ELASTIC, Tier.ELASTIC]
    tenants = [account(name=f"t{number}", tier=tier) for number, tier in enumerate(tiers)]
    callers: list[Caller] = []
    for number, (what, which, needs_engine, fits, wait) in enumerate(script):
        now += wait
        queue.serve(min(queue.looks_at(), now))
        tenant = tenants[which % 3]
        if what == "enter":
            callers.append(Caller(queue, tenant, now, log, str(number), needs_engine=needs_engine))
        elif callers:
            callers[which % len(callers)].fits = fits
            if what == "leave":
                gone = callers[which % len(callers)]
                if gone.place.is_waiting:
                    log.append(f"{gone.name} left")
                queue.leave(gone.place, now)
            else:
                queue.serve(now, tenant if what == "ended" else None)
        assert len(queue) == sum(caller.place.is_waiting for caller in callers)
        assert queue.needs_engine == any(c.place.is_waiting and c.place.needs_engine for c in callers)
    while queue.looks_at() < math.inf:
        now = max(now, queue.looks_at())
        queue.serve(now)
    assert sorted(line.split()[0] for line in log) == sorted(caller.name for caller in callers)
    assert len(queue) == 0


def test_what_waits_in_the_engine_is_ended_first() -> None:
    running = {"waits": Running(1.0, 1, 100, has_begun=False), "old": Running(5.0, 1, 100)}
    running["young"] = Running(9.0, 1, 100)
    assert [name for name, _ in victims(running.items(), 1, 0)] == ["waits"]
    assert [name for name, _ in victims(running.items(), 2, 0)] == ["waits", "young"]
