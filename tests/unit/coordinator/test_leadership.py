"""The leadership by each coordinator's clock: two never lead at once, whatever the store does."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.coordinator.pair import LEADERSHIP_S, TICK_S, Coordinator, Pair

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def leads(coordinator: Coordinator) -> bool:
    (said,) = coordinator.metrics("tokenpool_leader")
    assert said == bool(coordinator.leader.epoch)
    return bool(said)


async def test_a_lead_ends_with_its_lease_though_the_store_is_silent() -> None:
    pair = Pair()
    a, b = pair.all
    await a.leader.run_tick()
    await b.leader.run_tick()
    asked_at = pair.clock.now
    assert (leads(a), leads(b)) == (True, False)
    a.line.is_silent = True
    while pair.clock.now < asked_at + LEADERSHIP_S:
        assert leads(a)
        pair.clock.now += TICK_S
    assert not leads(a)
    await a.leader.run_tick()
    assert not leads(a)
    assert a.leader.rounds["store_down"] == 1


async def test_a_lead_ends_without_a_turn() -> None:
    """As in a process that was suspended: the page is requested before any other code runs."""
    pair = Pair()
    a, b = pair.all
    await a.leader.run_tick()
    pair.clock.now += LEADERSHIP_S
    await b.leader.run_tick()
    assert (leads(a), leads(b)) == (False, True)
    await a.leader.run_tick()
    assert (leads(a), leads(b)) == (False, True)


async def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    pair = Pair()
    a, _ = pair.all
    a.line.back_s = 0.4
    asked_at = pair.clock.now
    await a.leader.run_tick()
    pair.clock.now = asked_at + LEADERSHIP_S - 0.01
    assert leads(a)
    pair.clock.now = asked_at + LEADERSHIP_S
    assert not leads(a)


async def test_an_answer_that_takes_as_long_as_the_lease_gives_no_lead() -> None:
    pair = Pair()
    a, b = pair.all
    a.line.back_s = LEADERSHIP_S
    await a.leader.run_tick()
    assert not leads(a)
    await b.leader.run_tick()
    assert (leads(a), leads(b)) == (False, True)


async def test_nothing_is_published_once_the_lease_may_be_over() -> None:
    pair = Pair()
    a, _ = pair.all
    await pair.run(3.0, 2, a)
    a.line.calls.clear()
    await a.leader.run_tick()
    assert [call for call in a.line.calls if call.startswith("publish")] == ["publish", "publish_scale_hint"]
    a.line.calls.clear()
    a.line.back_s = LEADERSHIP_S / 3 + 0.01  # three calls: the lease, the hint, the lease store
    await a.leader.run_tick()
    assert a.line.calls == ["lead", "scale_hint", "read"]
    assert a.leader.rounds["fenced"] == 1
    assert not leads(a)


@pytest.mark.parametrize(
    ("back_s", "calls"),
    [
        (0.45, ["lead", "scale_hint", "read", "publish", "publish_scale_hint"]),
        (0.51, ["lead", "scale_hint", "read", "publish"]),
    ],
)
async def test_each_part_is_published_only_within_the_lease(back_s: float, calls: list[str]) -> None:
    pair = Pair()
    a, _ = pair.all
    await pair.run(3.0, 2, a)
    a.line.calls.clear()
    a.line.back_s = back_s
    await a.leader.run_tick()
    assert a.line.calls == calls


async def test_no_pool_file_is_published_after_the_lease() -> None:
    pair = Pair()
    a, _ = pair.all
    a.line.back_s = LEADERSHIP_S / 2
    await a.leader.run_tick()
    assert a.line.calls == ["lead", "scale_hint", "read"]
    assert await pair.shared.file() is None


async def test_a_lost_answer_to_the_lease_gives_no_lead() -> None:
    """The store has given the lease, and this coordinator does not know."""
    pair = Pair()
    a, b = pair.all
    a.line.loses_answers = True
    await a.leader.run_tick()
    await b.leader.run_tick()
    assert (leads(a), leads(b)) == (False, False)
    a.line.loses_answers = False
    await a.leader.run_tick()
    assert (leads(a), leads(b)) == (True, False)


async def test_a_lead_goes_on_where_the_store_answers_again_in_time() -> None:
    pair = Pair()
    a, _ = pair.all
    await a.leader.run_tick()
    epoch = a.leader.epoch
    a.line.is_silent = True
    await a.leader.run_tick()
    a.line.is_silent = False
    pair.clock.now += LEADERSHIP_S - 1.0
    await a.leader.run_tick()
    assert a.leader.epoch == epoch


async def test_a_lease_that_is_over_is_given_back_all_the_same() -> None:
    """The store's lease may last a little longer than it counts here."""
    pair = Pair()
    a, b = pair.all
    await a.leader.run_tick()
    pair.clock.now += LEADERSHIP_S - 0.1
    await a.leader.run_tick()
    await a.leader.resign()
    assert not leads(a)
    await b.leader.run_tick()
    assert leads(b)


steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.9, 2.0, 3.0]),  # time that passes
        st.integers(0, 1),  # who has a turn
        st.sampled_from(["well", "silent", "loses_answers"]),
        st.sampled_from([0.0, 0.3, 1.0, 2.5]),  # there
        st.sampled_from([0.0, 0.3, 1.0, 2.5]),  # and back
    ),
    max_size=30,
)


@given(steps)
def test_two_never_both_lead(script: list[tuple[float, int, str, float, float]]) -> None:
    async def play() -> None:
        logging.disable(logging.CRITICAL)
        pair = Pair()
        for wait, who, state, there_s, back_s in script:
            pair.clock.now += wait
            one = pair.all[who]
            one.line.is_silent, one.line.loses_answers = state == "silent", state == "loses_answers"
            one.line.there_s, one.line.back_s = there_s, back_s
            assert sum(map(leads, pair.all)) <= 1
            await one.leader.run_tick()
            assert sum(map(leads, pair.all)) <= 1
            assert one.leader.rounds["failed"] == 0

    try:
        asyncio.run(play())
    finally:
        logging.disable(logging.NOTSET)
