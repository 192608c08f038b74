"""Keys are read at intervals, earlier if a caller has a new key id, and never more often than the bound."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sidecar.jwt.schedule import (
    ASKED_EVERY_S,
    FIRST_RETRY_S,
    KEPT_FOR_S,
    LONGEST_RETRY_S,
    READ_EVERY_S,
    ReadSchedule,
)


def test_the_first_read_is_due_at_once_and_the_next_ones_at_intervals() -> None:
    schedule = ReadSchedule(50.0, 0.0)
    assert schedule.due_at == 50.0

    schedule.succeeded(51.0)

    assert schedule.due_at == 51.0 + READ_EVERY_S


def test_many_sidecars_read_at_different_times() -> None:
    due = []
    for spread in (0.0, 0.5, 1.0):
        schedule = ReadSchedule(0.0, spread)
        schedule.succeeded(0.0)
        due.append(schedule.due_at)

    assert due == [READ_EVERY_S, 0.95 * READ_EVERY_S, 0.9 * READ_EVERY_S]


def test_failed_reads_are_repeated_at_doubled_intervals() -> None:
    schedule, waits = ReadSchedule(0.0, 0.0), []
    for _ in range(9):
        schedule.failed(0.0)
        waits.append(schedule.due_at)

    assert waits == [FIRST_RETRY_S * 2**n for n in range(6)] + [LONGEST_RETRY_S] * 3
    schedule.succeeded(0.0)
    schedule.failed(0.0)
    assert schedule.due_at == FIRST_RETRY_S


def test_an_unknown_key_id_leads_to_one_earlier_read() -> None:
    schedule = ReadSchedule(0.0, 0.0)
    schedule.succeeded(0.0)

    assert schedule.ask(3.0)
    assert schedule.due_at == ASKED_EVERY_S
    assert not schedule.ask(4.0)
    schedule.succeeded(ASKED_EVERY_S)
    assert schedule.ask(100.0)
    assert schedule.due_at == 100.0


def test_an_unknown_key_id_does_not_delay_a_read() -> None:
    schedule = ReadSchedule(0.0, 0.0)
    schedule.failed(0.0)

    assert not schedule.ask(0.5)
    assert schedule.due_at == FIRST_RETRY_S


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans()), max_size=60))
def test_however_often_callers_ask_reads_have_their_distance(steps: list[tuple[float, bool]]) -> None:
    schedule, now, reads = ReadSchedule(0.0, 0.0), 0.0, []
    for wait, asks in steps:
        now += wait
        if schedule.due_at <= now:
            reads.append(now)
            schedule.succeeded(now)
        if asks:
            schedule.ask(now)

    assert all(after - before >= ASKED_EVERY_S for before, after in itertools.pairwise(reads))


def test_keys_lapse_a_day_after_their_last_read() -> None:
    schedule = ReadSchedule(0.0, 0.0)
    assert not schedule.has_lapsed(KEPT_FOR_S * 2)  # there are none

    schedule.succeeded(10.0)
    schedule.failed(KEPT_FOR_S)

    assert not schedule.has_lapsed(10.0 + KEPT_FOR_S)
    assert schedule.has_lapsed(10.1 + KEPT_FOR_S)
