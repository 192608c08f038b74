"""The scale hint: the leader computes and stores it, every coordinator answers what is stored."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.coordinator.pair import LEADERSHIP_S, TICK_S, UP, Pair
from tokenpool.leases.wire import SidecarReport
from tokenpool.store.memory import MemoryStore


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def test_a_coordinator_that_starts_late_answers_as_the_leader_does() -> None:
    pair = Pair()
    a, b = pair.all
    await pair.run(5, 3, a)
    await pair.run(5, 1, a)  # held at 3 for the down window
    assert await a.desired() == 3
    await b.leader.run_tick()
    assert await b.desired() == 3
    await pair.run(301, 1)
    assert [await each.desired() for each in pair.all] == [1, 1]


async def test_all_of_the_answer_is_the_same_but_its_age() -> None:
    pair = Pair()
    await pair.run(5, 3)
    answers = [(await each.scale())[1] for each in pair.all]
    ages = [answer.pop("age_s") for answer in answers]
    assert answers[0] == answers[1]
    assert answers[0] == {
        "pool": "chat",
        "desired_replicas": 3,
        "reason": "concurrency needs 3",
        "dimension": "concurrency",
        "needed_replicas": 3,
        "guarantees_need": 0,
        "min_replicas": 1,
        "max_replicas": 8,
        "computed_at": pair.clock.now,
    }
    assert all(0 <= age <= TICK_S for age in ages)
    pair.clock.now += 0.5
    assert (await pair.all[0].scale())[1]["age_s"] == pytest.approx(ages[0] + 0.5)
    assert pair.all[0].metrics("tokenpool_scale_hint_age_seconds") == [pytest.approx(ages[0] + 0.5)]


async def test_a_spike_shorter_than_the_up_window_changes_no_answer() -> None:
    pair = Pair()
    await pair.run(5, 2)
    for _ in range(3):  # 0.6 s, seen by the leader or by a coordinator that looks on
        await pair.run(0.2, 5)
        assert [await each.desired() for each in pair.all] == [2, 2]
    await pair.run(10, 2)
    assert [await each.desired() for each in pair.all] == [2, 2]


async def test_a_failover_does_not_begin_the_down_window_again() -> None:
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 4)
    await pair.run(200, 1)
    await pair.run(LEADERSHIP_S + 1, 1, b)  # a is gone
    assert b.leader.epoch
    assert await b.desired() == 4
    await pair.run(90, 1, b)
    assert await b.desired() == 4
    await pair.run(10, 1, b)
    assert await b.desired() == 1


async def test_a_failover_does_not_end_the_down_window() -> None:
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 4)
    await pair.run(10, 1)
    await pair.run(280, 1, b)
    assert await b.desired() == 4


async def test_a_spike_during_a_failover_is_no_reason_to_grow() -> None:
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 2)
    while not b.leader.epoch:
        await pair.run(TICK_S, 2, b)
    pair.all[1] = c = pair.made("c")  # ... and its successor's, which has seen nothing
    pair.clock.now += LEADERSHIP_S
    await pair.run(0.5, 6, c)
    assert c.leader.epoch
    assert await c.desired() == 2


async def test_alternating_leaders_compute_the_hints_of_one() -> None:
    pair, lone = Pair(), Pair()
    (single, _) = lone.all
    for turn, replicas in enumerate([2, 5, 5, 5, 1, 3, 1, 1, 6, 6, 1, 1] * 3):
        leading = pair.all[turn % 2]
        await pair.run(0.5, replicas, leading)
        await lone.run(0.5, replicas, single)
        assert await leading.desired() == await single.desired()
        await leading.leader.resign()


async def test_a_hint_without_a_leader_is_503_after_the_leadership_timeout_and_four_ticks() -> None:
    pair = Pair()
    a, b = pair.all
    await pair.run(5, 3)
    b.line.calls.clear()
    for _ in range(11):  # a's lease is over before: make b unable to lead
        pair.clock.now += TICK_S
        b.leader.hints.follow(await pair.shared.scale_hint(), pair.clock.now)
    assert await b.desired() == 3
    pair.clock.now += 2 * TICK_S
    b.leader.hints.follow(await pair.shared.scale_hint(), pair.clock.now)
    status, body = await b.scale()
    assert status == 503
    assert body["error"] == (
        "pool 'chat' has no scale hint: the last hint is 3.2 s old, and one older than 3 s is not served: no"
        " coordinator leads, or the capacity of no engine is known"
    )
    assert b.metrics("tokenpool_desired_replicas") == b.metrics("tokenpool_desired_replicas_reason") == []
    assert await a.desired() is None
    assert b.admin.snapshot().pools[0].replicas.desired is None


async def test_a_failover_is_not_seen_in_the_answers() -> None:
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 3)
    for _ in range(20):
        await pair.run(TICK_S, 3, b)
        assert await b.desired() == 3


async def test_a_coordinator_that_does_not_reach_the_store_says_so_within_a_second() -> None:
    pair = Pair()
    a, b = pair.all
    await pair.run(5, 3)
    b.line.is_silent = True
    silent_since = pair.clock.now
    await pair.run(0.2, 3)
    assert await b.desired() == 3
    while pair.clock.now < silent_since + 1:
        await pair.run(TICK_S, 5)
    status, body = await b.scale()
    assert status == 503
    assert "has not answered this coordinator for" in body["error"]
    assert "no answer" in body["error"]
    assert await a.desired() is not None


async def test_a_store_that_lost_everything_changes_no_answer() -> None:
    """The next leader continues from its last read, although the former leader is lost as well."""
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 4)
    await pair.run(5, 1)
    pair.shared = MemoryStore(1.5, pair.clock)
    b.line.shared = pair.shared
    for _ in range(20):
        await pair.run(TICK_S, 1, b)
        assert await b.desired() == 4
    await pair.run(297, 1, b)
    assert await b.desired() == 1


async def test_without_a_hint_a_pool_that_has_just_begun_keeps_what_runs() -> None:
    pair = Pair()
    a, b = pair.all
    await a.leader.run_tick()
    status, body = await a.scale()
    assert (status, body["error"]) == (
        503,
        "pool 'chat' has no scale hint: the capacity of no engine is known yet",
    )
    status, body = await b.scale()
    assert (status, body["error"]) == (
        503,
        "pool 'chat' has no scale hint: the lease store has not been read yet",
    )


async def test_engines_that_show_nothing_leave_no_number() -> None:
    """Rather than one that shrinks a pool that is loading."""
    text_pool = Pair()
    a, _ = text_pool.all
    a.leader.pool = a.leader.pool.__class__("chat", models=("tiny",), max_replicas=8)
    await text_pool.run(5, 3, a)
    assert await a.desired() == 3
    await text_pool.run(LEADERSHIP_S + 1.5, 3, a, report=SidecarReport())
    assert await a.desired() is None
    await text_pool.run(0.5, 3, a)
    assert await a.desired() == 3


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"hint"])
async def test_a_hint_of_another_version_is_no_answer(content: bytes) -> None:
    pair = Pair()
    a, b = pair.all
    await pair.run(5, 3, a)
    await pair.shared.publish_scale_hint(content, a.leader.epoch)
    await b.leader.run_tick()
    status, body = await b.scale()
    assert status == 503
    assert "the stored scale hint:" in body["error"]
    await pair.run(0.5, 3)
    assert await b.desired() == 3


@pytest.mark.parametrize("step_s", [-3600.0, -10.0, 10.0, 3600.0])
async def test_a_store_whose_clock_steps_makes_no_old_hint_young(step_s: float) -> None:
    pair = Pair()
    _, b = pair.all
    await pair.run(5, 3)
    stored = pair.shared.rules._scale_hint
    assert stored is not None
    pair.shared.rules._scale_hint = (stored[0], stored[1] - step_s)
    for _ in range(16):
        pair.clock.now += TICK_S
        b.leader.hints.follow(await pair.shared.scale_hint(), pair.clock.now)
    assert await b.desired() is None


async def test_the_live_page_shows_the_hint_and_its_age() -> None:
    pair = Pair()
    await pair.run(5, 3)
    for each in pair.all:
        shown = each.admin.snapshot().pools[0].replicas
        assert (shown.desired, shown.reason) == (3, "concurrency needs 3; computed 0 s ago")


async def test_an_unknown_pool_is_404() -> None:
    request = make_mocked_request("GET", "/scale/x", match_info={"pool": "x"})
    response = await Pair().all[0].admin.scale(request)
    assert response.status == 404


steps = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.sets(st.integers(0, 1)),  # whose line is silent
        st.sets(st.integers(0, 1)),  # who stands still
        st.integers(1, 12),  # for how many ticks
    ),
    max_size=15,
)


@settings(max_examples=30)
@given(steps)
def test_two_never_differ_for_longer_than_a_second(
    script: list[tuple[int, set[int], set[int], int]],
) -> None:
    """For any failures and any leader; and no hint exceeds the needed number."""

    async def play() -> None:
        pair = Pair(scale_down_window=3.0)
        await pair.run(3, 2)
        differs_since: float | None = None
        most = 2
        for replicas, silent, still, ticks in script:
            most = max(most, replicas)
            for number, each in enumerate(pair.all):
                each.line.is_silent = number in silent
            for _ in range(ticks):
                pair.clock.now += TICK_S
                await pair.ask(replicas, UP)
                for number, each in enumerate(pair.all):
                    if number not in still:
                        await each.leader.run_tick()
                said = {await each.desired() for each in pair.all} - {None}
                assert max(said, default=0) <= most
                if len(said) < 2:
                    differs_since = None
                elif differs_since is None:
                    differs_since = pair.clock.now
                else:
                    assert pair.clock.now - differs_since <= 1.0

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(play())
    finally:
        logging.disable(logging.NOTSET)
