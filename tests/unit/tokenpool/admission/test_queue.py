"""The admission queue: the order of the requests that wait, their deadlines, and the cost of a try."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest, WaitsFor
from tokenpool.admission.queue import MOST_SMALLER, MOST_WAITING, AdmissionQueue, QueueSettings
from tokenpool.amounts import Amount, Dimension
from tokenpool.entitlements import Slo, Tier

ENGINE, LIMIT = WaitsFor.ENGINE, WaitsFor.LIMIT


class Caller:
    """A request in the queue. A try succeeds once ``fits`` is set."""

    def __init__(self, name: str, pending: PendingRequest) -> None:
        self.name = name
        self.pending = pending
        self.fits = False
        self.alternates = False
        """Whether the reason of the wait changes at each try."""
        self.tries = 0


class Tries:
    """An admission queue, with the caller that tries its requests."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self.queue = AdmissionQueue(settings or QueueSettings())
        self.log: list[str] = []
        self._callers: dict[PendingRequest, Caller] = {}

    def enter(
        self,
        tenant: Account,
        now: float,
        name: str,
        waits_for: WaitsFor = LIMIT,
        retry_in_s: float = math.inf,
        arrived_at: float | None = None,
    ) -> Caller:
        arrived_at = now if arrived_at is None else arrived_at
        pending = self.pending(tenant, arrived_at)
        self.queue.enter(pending, now, waits_for, retry_in_s)
        made = self._callers[pending] = Caller(name, pending)
        return made

    def pending(self, tenant: Account, arrived_at: float) -> PendingRequest:
        """A request that has not entered the queue yet."""
        longest_wait_s = self.queue.settings.longest_wait_s(tenant)
        return PendingRequest(tenant, ASK, cost(), arrived_at, longest_wait_s=longest_wait_s)

    def may_wait(self, tenant: Account, expected_s: float, *, needs_engine: bool = False) -> bool:
        """Whether a request that arrives at time 0 may wait."""
        return self.queue.may_wait(self.pending(tenant, 0.0), expected_s, 0.0, needs_engine=needs_engine)

    def serve(self, now: float, ended: Account | None = None) -> None:
        """Try the requests that are due."""
        for pending in self.queue.due(now, ended):
            caller = self._callers[pending]
            caller.tries += 1
            if caller.fits or pending.deadline <= now:
                self.log.append(f"{caller.name} {'in' if caller.fits else 'shed'}")
                self.queue.leave(pending, now)
            else:
                was = pending.waits_for
                turned = LIMIT if was is ENGINE else ENGINE
                self.queue.change(pending, turned if caller.alternates else was, pending.retry_in_s)


def test_tiers_come_first_then_deadlines() -> None:
    made = Tries(QueueSettings(elastic_s=0.5, spot_s=3.0))
    elastic, gold, spot = account(name="e"), account(name="g", tier=Tier.GUARANTEED), account(name="s")
    spot.entitlement = replace(spot.entitlement, tier=Tier.SPOT)
    callers = [
        made.enter(spot, 0.0, "s1"),
        made.enter(elastic, 0.0, "e1"),
        made.enter(elastic, 0.1, "e2"),
        made.enter(account(name="f"), 0.05, "f1"),
        made.enter(gold, 0.2, "g1"),
    ]
    for caller in callers:
        caller.fits = True
    made.serve(0.3)
    assert made.log == ["g1 in", "e1 in", "f1 in", "e2 in", "s1 in"]
    assert len(made.queue) == 0
    counts = [(each.count, each.under_way, round(each.seconds, 6)) for each in made.queue.room_waits.values()]
    assert counts == [(1, 0, 0.1), (3, 0, 0.75), (1, 0, 0.3)]


def test_waits_are_counted_by_tier_and_peer_requests_by_themselves() -> None:
    made = Tries()
    queue, tenant = made.queue, account(name="e", tier=Tier.ELASTIC)
    own = PendingRequest(tenant, ASK, cost(), 0.0, longest_wait_s=1.0)
    peer_request = PendingRequest(account(name="x"), ASK, cost(), 0.0, longest_wait_s=1.0, is_of_peer=True)
    for pending in (own, peer_request):
        queue.enter(pending, 0.0, ENGINE)
    assert [each.under_way for each in queue.room_waits.values()] == [0, 1, 0]
    assert [each.under_way for each in queue.peer_waits.values()] == [0, 1, 0]
    queue.leave(own, 0.25)
    queue.enter_for_lease(own, 0.25, 1.0)
    queue.leave(peer_request, 0.5)
    assert [each.under_way for each in queue.lease_waits.values()] == [0, 1, 0]
    queue.leave(own, 0.75)
    queue.leave(own, 0.9)  # nothing is counted twice
    for waits, seconds in ((queue.room_waits, 0.25), (queue.lease_waits, 0.5), (queue.peer_waits, 0.5)):
        assert (waits[Tier.ELASTIC].count, waits[Tier.ELASTIC].under_way, waits[Tier.ELASTIC].seconds) == (
            1,
            0,
            seconds,
        )
    assert len(queue) == 0


def in_queue(
    queue: AdmissionQueue, tenant: Account, longest_wait_s: float, sequences: int = 1, kv_tokens: int = 112
) -> PendingRequest:
    """A peer request that waits for the engine."""
    size = cost(sequences=sequences, kv_tokens=kv_tokens)
    made = PendingRequest(tenant, ASK, size, 0.0, longest_wait_s=longest_wait_s, is_of_peer=True)
    queue.enter(made, 0.0, ENGINE)
    return made


def tried(queue: AdmissionQueue, now: float, free: Amount) -> list[PendingRequest]:
    """The requests that are tried at the end of another one, while the engine has this room."""
    found = []
    for pending in queue.due(now, account(name="ended")):
        found.append(pending)
        if pending.cost.sequences > free.concurrency:
            queue.change(pending, ENGINE, math.inf, Dimension.CONCURRENCY)
        elif pending.cost.kv_tokens > free.kv_tokens:
            queue.change(pending, ENGINE, math.inf, Dimension.KV_TOKENS)
        else:
            free -= Amount(0.0, pending.cost.kv_tokens, pending.cost.sequences)
            queue.leave(pending, now)
    return found


def test_peer_requests_are_tried_by_deadline_whatever_their_order_of_arrival() -> None:
    queue, tenant = AdmissionQueue(QueueSettings()), account(name="peers")
    late, soon = in_queue(queue, tenant, 9.0), in_queue(queue, tenant, 3.0)
    assert tried(queue, 0.1, Amount(0.0, 1e6, 2)) == [soon, late]
    assert (len(queue), queue.waiting_for_engine) == (0, 0)


def test_a_request_that_does_not_fit_delays_no_smaller_ones_of_others() -> None:
    queue, tenant = AdmissionQueue(QueueSettings()), account(name="peers")
    large = in_queue(queue, tenant, 1.0, sequences=4)
    too_large = in_queue(queue, tenant, 2.0, sequences=4)
    small, last = in_queue(queue, tenant, 3.0), in_queue(queue, tenant, 4.0)
    # Each of them is tried at most once, and one of the same size is not tried in vain.
    assert tried(queue, 0.1, Amount(0.0, 1e6, 1)) == [large, small, last]
    assert tried(queue, 0.2, Amount(0.0, 1e6, 8)) == [large, too_large, last]
    assert len(queue) == 1


def test_a_request_with_too_many_kv_tokens_delays_no_smaller_ones_of_others() -> None:
    queue, tenant = AdmissionQueue(QueueSettings()), account(name="peers")
    large, as_large = (in_queue(queue, tenant, wait_s, kv_tokens=1000) for wait_s in (1.0, 2.0))
    small = in_queue(queue, tenant, 3.0, sequences=2, kv_tokens=500)
    assert tried(queue, 0.1, Amount(0.0, 600.0, 8)) == [large, small]
    assert tried(queue, 0.2, Amount(0.0, 2000.0, 8)) == [large, as_large]


def test_the_search_for_a_smaller_request_is_bounded() -> None:
    queue = AdmissionQueue(QueueSettings())
    for number in range(2 * MOST_SMALLER):
        in_queue(queue, account(name=f"t{number}"), 1.0 + number, kv_tokens=10_000 - number)
    assert len(tried(queue, 0.1, Amount(0.0, 100.0, 8))) == MOST_SMALLER
    assert queue.waiting_for_engine == 2 * MOST_SMALLER
    assert len(tried(queue, 0.2, Amount(0.0, 1e9, 1000))) == 2 * MOST_SMALLER


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(0, 1)), min_size=1, max_size=12),
    st.integers(0, 6),
    st.integers(0, 30),
)
def test_no_request_that_fits_keeps_waiting(sizes: list[tuple[int, int, int]], slots: int, kv: int) -> None:
    """The room that is left after all tries is too small for each request that still waits."""
    queue, free = AdmissionQueue(QueueSettings()), Amount(0.0, kv, slots)
    tiers = (Tier.GUARANTEED, Tier.ELASTIC)
    made = [
        in_queue(queue, account(name="x", tier=tiers[tier]), float(size), sequences=size, kv_tokens=kv_tokens)
        for size, kv_tokens, tier in sizes
    ]
    tried(queue, 0.1, free)
    ran = [pending for pending in made if pending.has_left]
    left = free - Amount(0.0, sum(p.cost.kv_tokens for p in ran), sum(p.cost.sequences for p in ran))
    for pending in made:
        size = pending.cost
        assert pending.has_left or size.sequences > left.concurrency or size.kv_tokens > left.kv_tokens


def test_the_peer_requests_of_one_account_are_bounded_and_take_no_place_of_an_entitlement() -> None:
    queue, tenant = AdmissionQueue(QueueSettings()), account(name="peers")
    waiting = [in_queue(queue, tenant, 9.0) for _ in range(MOST_WAITING)]
    another = PendingRequest(tenant, ASK, cost(), 0.0, longest_wait_s=9.0, is_of_peer=True)
    assert not queue.may_wait(another, 0.0, 0.0, needs_engine=True)
    own = PendingRequest(account(name="own"), ASK, cost(), 0.0, longest_wait_s=9.0)
    queue.enter(own, 0.0, ENGINE)
    assert queue.waiting_first(1) == [own]
    queue.leave(waiting[0], 0.1)
    assert queue.may_wait(another, 0.0, 0.1, needs_engine=True)


def test_requests_of_one_entitlement_keep_their_order_and_time_is_bounded() -> None:
    made = Tries(QueueSettings(elastic_s=0.5))
    first, second = (made.enter(account(name="e"), at, f"e{at:g}") for at in (0.0, 0.1))
    second.fits = True
    made.serve(0.2)
    assert made.log == []
    assert made.queue.wakes_at() == 0.5
    made.serve(0.5)
    assert made.log == ["e0 shed", "e0.1 in"]
    assert made.queue.wakes_at() == math.inf
    assert first.pending.deadline == 0.5


def test_a_promised_ttft_shortens_the_wait() -> None:
    settings = QueueSettings()
    gold, elastic, spot = (account(name=t.value, tier=t) for t in Tier)
    assert [settings.longest_wait_s(each) for each in (gold, elastic, spot)] == [2.0, 1.0, 0.0]
    for promised_ms, longest in ((300.0, [0.3, 0.3, 0.0]), (1500.0, [1.5, 1.0, 0.0])):
        for each in (gold, elastic, spot):
            each.entitlement = replace(each.entitlement, slo=Slo(ttft_ms=promised_ms))
        assert [settings.longest_wait_s(each) for each in (gold, elastic, spot)] == longest


def test_a_wait_for_a_lease_counts_against_the_deadline() -> None:
    made = Tries(QueueSettings(elastic_s=0.5))
    assert made.enter(account(name="e"), 0.2, "e", arrived_at=0.0).pending.deadline == 0.5


def test_a_request_that_cannot_fit_in_time_or_exceeds_the_queue_is_not_queued() -> None:
    made = Tries(QueueSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic = account(name="e")
    assert made.may_wait(elastic, 0.5)
    assert not made.may_wait(elastic, 0.6)
    assert not made.may_wait(account(name="s", tier=Tier.SPOT), 0.0)
    assert not Tries(QueueSettings(elastic_s=0.0)).may_wait(elastic, 0.0)
    for number in range(MOST_WAITING):
        made.enter(elastic, 0.0, str(number))
    assert not made.may_wait(elastic, 0.0)
    assert made.may_wait(account(name="other"), 0.0)


def test_only_the_time_that_is_left_of_its_longest_wait_counts() -> None:
    made, elastic = Tries(QueueSettings(elastic_s=0.5)), account(name="e")
    pending = made.pending(elastic, 1.0)
    assert made.queue.may_wait(pending, 0.2, 1.25)
    assert not made.queue.may_wait(pending, 0.3, 1.25)
    assert not made.queue.may_wait(pending, 0.0, 1.5)
    pending.leaves_by = 1.75  # another replica may have room until then
    assert made.queue.may_wait(pending, 0.25, 1.5)


def test_the_expected_wait_grows_with_the_requests_ahead() -> None:
    made = Tries(QueueSettings(guaranteed_s=1.0, elastic_s=0.5))
    elastic, gold = account(name="e"), account(name="g", tier=Tier.GUARANTEED)
    for number in range(4):
        assert made.may_wait(elastic, 0.1, needs_engine=True)
        made.enter(elastic, 0.0, str(number), ENGINE)
    assert made.may_wait(elastic, 0.1, needs_engine=True)
    assert not made.may_wait(elastic, 0.11, needs_engine=True)
    # Another tenant waits for the same slots, but not for the same limit.
    assert not made.may_wait(account(name="f"), 0.11, needs_engine=True)
    assert made.may_wait(account(name="f"), 0.11)
    assert made.may_wait(gold, 0.5, needs_engine=True)  # tried first


def test_the_requests_that_wait_for_the_engine_are_counted_whichever_is_tried() -> None:
    """The request that is tried now does not need the engine before itself, but it still waits for it."""
    made = Tries()
    queue, first = made.queue, made.enter(account(name="e"), 0.0, "e", ENGINE)
    second = made.enter(account(name="f"), 0.0, "f", ENGINE)
    assert queue.first(first.pending.account) is first.pending
    tried = next(queue.due(0.1))
    assert tried is first.pending
    assert (queue.waiting_for_engine, queue.needs_engine) == (2, True)
    queue.leave(second.pending, 0.1)
    assert (queue.waiting_for_engine, queue.needs_engine) == (1, False)
    queue.leave(tried, 0.1)
    assert (queue.waiting_for_engine, queue.first(first.pending.account)) == (0, None)


def test_a_request_that_left_is_not_tried() -> None:
    made, tenant = Tries(QueueSettings(elastic_s=0.5)), account(name="e")
    queue, caller = made.queue, made.enter(tenant, 0.0, "e", ENGINE)
    assert queue.has_waiting(tenant)
    assert queue.needs_engine
    queue.leave(caller.pending, 0.1)
    queue.leave(caller.pending, 0.1)
    made.serve(9.0)
    assert (made.log, len(queue), queue.has_waiting(tenant), queue.needs_engine) == ([], 0, False, False)
    assert caller.tries == 0


def test_the_end_of_a_request_costs_few_tries_for_any_number_of_waiting_requests() -> None:
    made = Tries()
    tenants = [account(name=f"t{number}") for number in range(200)]
    engine = [made.enter(tenant, 0.0, "engine", ENGINE) for tenant in tenants[:100] for _ in range(5)]
    limits = [made.enter(tenant, 0.0, "limit") for tenant in tenants[100:] for _ in range(5)]
    for ended in tenants[:3] + tenants[100:103]:
        made.serve(0.1, ended)
    assert sum(caller.tries for caller in engine) <= 6 * 2
    assert sum(caller.tries for caller in limits) == 3
    engine[0].fits = engine[1].fits = limits[0].fits = True
    made.serve(0.2, tenants[150])
    assert made.log == ["engine in", "engine in"]
    made.serve(0.2, tenants[100])
    assert made.log[2:] == ["limit in"]


def test_the_next_request_is_tried_soon_after_one_has_left() -> None:
    made = Tries(QueueSettings(elastic_s=0.5))
    first, second = (made.enter(account(name="e"), 0.0, name) for name in ("first", "second"))
    second.fits = True
    made.queue.leave(first.pending, 0.1)
    assert made.queue.wakes_at() < 0.11
    made.serve(made.queue.wakes_at(), account(name="other"))
    assert made.log == ["second in"]


def test_a_request_that_lacks_tokens_is_tried_when_its_bucket_has_filled() -> None:
    made = Tries()
    caller = made.enter(account(name="e"), 0.0, "e", retry_in_s=0.3)
    assert made.queue.wakes_at() == 0.3
    made.serve(0.25, account(name="other"))
    assert caller.tries == 0
    caller.fits = True
    made.serve(made.queue.wakes_at(), account(name="other"))
    assert made.log == ["e in"]


def test_the_reason_of_a_wait_may_change() -> None:
    made, tenant, other = Tries(), account(name="e"), account(name="other")
    caller = made.enter(tenant, 0.0, "e", ENGINE)
    caller.alternates = True
    made.serve(0.1, other)
    assert (caller.tries, made.queue.needs_engine) == (1, False)
    made.serve(0.1, other)
    assert caller.tries == 1  # it no longer waits for the engine's room
    made.serve(0.1, tenant)
    assert (caller.tries, made.queue.needs_engine) == (2, True)
    caller.fits = True
    made.serve(0.1, other)
    assert (made.log, len(made.queue), made.queue.needs_engine) == (["e in"], 0, False)


def test_a_lease_wait_has_no_alarm_of_the_earlier_wait_for_room() -> None:
    """A stale alarm would be due in a loop, without a request to try."""
    made = Tries(QueueSettings(elastic_s=0.5))
    queue, pending = made.queue, made.enter(account(name="e"), 0.0, "e", ENGINE, retry_in_s=0.1).pending
    queue.leave(pending, 0.2)
    queue.enter_for_lease(pending, 0.2, 1.2)
    assert queue.wakes_at() == math.inf
    assert (queue.waiting_for_room, len(queue), queue.needs_engine) == (0, 1, False)
    made.serve(0.6)
    assert made.log == []
    queue.leave(pending, 0.7)
    waits = queue.lease_waits[Tier.ELASTIC]
    assert (len(queue), waits.count, round(waits.seconds, 6)) == (0, 1, 0.5)


def test_a_request_that_waits_for_the_engine_again_is_tried_in_order() -> None:
    made = Tries()
    queue, tenant = made.queue, account(name="e")
    caller = made.enter(tenant, 0.0, "e", ENGINE)
    queue.leave(caller.pending, 0.1)
    queue.enter_for_lease(caller.pending, 0.1, 1.1)
    queue.leave(caller.pending, 0.2)
    queue.enter(caller.pending, 0.2, ENGINE)
    for _ in range(3):
        made.serve(0.3)
    assert len(queue) == 1
    assert queue.needs_engine
    caller.fits = True
    made.serve(0.4)
    assert (made.log, len(queue), queue.needs_engine) == (["e in"], 0, False)
    assert queue.wakes_at() == math.inf


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
    made, now = Tries(), 0.0
    queue, log = made.queue, made.log
    tiers = [Tier.GUARANTEED, Tier.ELASTIC, Tier.ELASTIC]
    tenants = [account(name=f"t{number}", tier=tier) for number, tier in enumerate(tiers)]
    callers: list[Caller] = []
    for number, (what, which, needs_engine, fits, wait) in enumerate(script):
        now += wait
        made.serve(min(queue.wakes_at(), now))
        tenant = tenants[which % 3]
        if what == "enter":
            callers.append(made.enter(tenant, now, str(number), ENGINE if needs_engine else LIMIT))
        elif callers:
            callers[which % len(callers)].fits = fits
            if what == "leave":
                gone = callers[which % len(callers)]
                if not gone.pending.has_left:
                    log.append(f"{gone.name} left")
                queue.leave(gone.pending, now)
            else:
                made.serve(now, tenant if what == "ended" else None)
        waiting = [caller.pending for caller in callers if not caller.pending.has_left]
        assert len(queue) == len(waiting)
        assert queue.needs_engine == any(pending.waits_for is ENGINE for pending in waiting)
    while queue.wakes_at() < math.inf:
        now = max(now, queue.wakes_at())
        made.serve(now)
    assert sorted(line.split()[0] for line in log) == sorted(caller.name for caller in callers)
    assert len(queue) == 0
