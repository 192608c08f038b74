"""The room of one engine that several workers share: what each sees, and who comes next."""

from __future__ import annotations

from array import array

import pytest

from tokenpool.capacity.room import EngineRoom
from tokenpool.capacity.shared_room import (
    FRESH_S,
    NOTIFY_AGAIN_S,
    STRIDE,
    SharedRoom,
    Waiting,
    cleared,
)

ROOM = EngineRoom(8.0, 1000.0, proven_slots=8.0, queue=1.0, preemptible_queue=1.0, reserved_slots=1.0)
NOW = 100.0


def workers(count: int) -> list[SharedRoom]:
    cells = array("d", [0.0] * (count * STRIDE))
    return [SharedRoom(cells, index, count) for index in range(count)]


def waits(worker: int, deadline: float = NOW + 1, *, rank: int = 1, kv_tokens: float = 10.0) -> Waiting:
    return Waiting(rank, deadline, worker, 1.0, kv_tokens)


def test_the_load_of_the_others_is_foreign() -> None:
    one, two, three = workers(3)
    one.use(2, 200, 0, 0)
    two.use(1, 50, 3, 30)

    seen = three.seen_here(EngineRoom(8.0, 1000.0, 1.0, 5.0, 1.0, 7.0, 1.0, 0.5, True), NOW)

    assert seen == EngineRoom(8.0, 1000.0, 1.0 + 3, 5.0 + 250, 1.0, 7.0, 1.0, 0.5, True)
    assert one.seen_here(ROOM, NOW).foreign_sequences == 1
    assert three.load() == (2 + 1 + 3, 200 + 50 + 30)


def test_the_row_of_a_lost_worker_is_cleared() -> None:
    cells = array("d", [0.0] * (2 * STRIDE))
    one, two = SharedRoom(cells, 0, 2), SharedRoom(cells, 1, 2)
    one.use(2, 200, 1, 1)
    one.wait(waits(0), NOW)
    two.use(1, 1, 0, 0)

    cleared(cells, 0)

    assert two.load() == (1, 1)
    assert list(two.others(NOW)) == []
    assert two.next_to_try(ROOM, NOW) is None


def test_each_worker_knows_which_others_run() -> None:
    one, two, three = workers(3)
    one.wait(None, NOW)
    two.wait(None, NOW)

    assert list(one.others(NOW)) == [1]
    assert list(three.others(NOW)) == [0, 1]
    two.wait(None, NOW + FRESH_S)
    assert list(three.others(NOW + FRESH_S)) == [1]


def test_a_request_that_comes_first_claims_free_room() -> None:
    one, two, three = workers(3)
    two.wait(waits(1, NOW + 1), NOW)
    three.wait(waits(2, NOW + 2), NOW)

    assert one.seen_here(ROOM, NOW).foreign_sequences == 2  # nothing waits here
    assert two.seen_here(ROOM, NOW).foreign_sequences == 0
    assert three.seen_here(ROOM, NOW).foreign_sequences == 1
    three.wait(waits(2, NOW + 2, rank=0), NOW)
    assert three.seen_here(ROOM, NOW).foreign_sequences == 0  # a higher tier comes first
    assert two.seen_here(ROOM, NOW).foreign_sequences == 1
    three.wait(None, NOW)
    assert two.seen_here(ROOM, NOW).foreign_sequences == 0


def test_a_request_that_does_not_fit_claims_nothing() -> None:
    one, two = workers(2)
    two.wait(waits(1, kv_tokens=900.0), NOW)
    two.use(1, 200, 0, 0)

    seen = one.seen_here(ROOM, NOW)

    assert (seen.foreign_sequences, seen.foreign_kv_tokens) == (1, 200)


def test_a_paused_worker_claims_nothing_but_keeps_its_load() -> None:
    one, two = workers(2)
    two.use(1, 10, 0, 0)
    two.wait(waits(1), NOW)

    assert one.seen_here(ROOM, NOW + FRESH_S / 2).foreign_sequences == 2
    assert one.seen_here(ROOM, NOW + FRESH_S).foreign_sequences == 1


def test_the_worker_of_the_first_request_that_fits_is_next() -> None:
    one, two, three = workers(3)
    one.wait(waits(0, NOW + 3, kv_tokens=10.0), NOW)
    two.wait(waits(1, NOW + 1, kv_tokens=2000.0), NOW)
    three.wait(waits(2, NOW + 2), NOW)

    assert one.next_to_try(ROOM, NOW) == 2
    assert one.next_to_try(ROOM, NOW) == 0  # the other one knows
    assert one.next_to_try(ROOM, NOW) is None
    assert one.next_to_try(ROOM, NOW + 2 * NOTIFY_AGAIN_S) == 2  # it may be lost


def test_no_worker_is_rung_for_the_room_of_the_request_before() -> None:
    one, two, three = workers(3)
    three.use(6, 0, 0, 0)  # one of eight slots is reserved
    one.wait(waits(0, NOW + 1), NOW)
    two.wait(waits(1, NOW + 2), NOW)

    assert three.next_to_try(ROOM, NOW) == 0
    assert three.next_to_try(ROOM, NOW) is None
    three.use(5, 0, 0, 0)
    assert three.next_to_try(ROOM, NOW) == 0  # more is free than when it was notified
    assert three.next_to_try(ROOM, NOW) == 1


@pytest.mark.parametrize(
    "room", [EngineRoom(8.0, 1000.0, is_down=True), EngineRoom(0.0, 1000.0), EngineRoom(8.0, 0.0)]
)
def test_without_room_no_worker_is_notified(room: EngineRoom) -> None:
    one, two = workers(2)
    two.wait(waits(1), NOW)

    assert one.next_to_try(room, NOW) is None
