"""Workers tell each other the owners of stored responses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.controller.stored_responses import LONGEST_NAME, StoredResponses
from sidecar.stored_rings import RING_BYTES, SLOT_BYTES, SLOTS, StoredRings
from sidecar.worker import Place, Worker, new_table


def rings(workers: int) -> list[memoryview]:
    return [memoryview(bytearray(RING_BYTES)) for _ in range(workers)]


def test_a_response_of_one_worker_belongs_to_its_owner_at_all() -> None:
    memory = rings(2)
    one, two = (StoredResponses(StoredRings(memory, index)) for index in range(2))

    one.record("resp_1", "alice", 40)

    assert two.tokens("resp_1", "alice") == 40
    assert two.tokens("resp_1", "bob") is None
    assert two.belongs_to_another("resp_1", "bob")
    two.record("resp_1", "alice", 50)
    assert one.tokens("resp_1", "alice") == 50


def test_a_worker_that_is_started_again_knows_what_all_have_recorded() -> None:
    memory = rings(2)
    one, two = (StoredResponses(StoredRings(memory, index)) for index in range(2))
    one.record("resp_1", "alice", 1)
    two.record("resp_2", "bob", 2)

    again = StoredResponses(StoredRings(memory, 0))
    again.record("resp_3", "alice", 3)

    assert (again.tokens("resp_1", "alice"), again.tokens("resp_2", "bob")) == (1, 2)
    assert two.tokens("resp_3", "alice") == 3


def test_two_processes_share_the_rings_by_their_table() -> None:
    table = new_table(2)
    places = [
        Place(index=i, workers=2, pod="p", folder="/none", table=table, notifiers=(), listen=(), living=0)
        for i in range(2)
    ]
    one, two = (Worker(place) for place in places)

    one.stored.write(("resp_1", "alice", 7))
    one.room.use(3, 48, 0, 0)

    assert list(two.stored.news()) == [("resp_1", "alice", 7)]
    assert list(two.stored.news()) == []
    assert two.room.load() == (3, 48)


def test_a_ring_that_was_overrun_has_the_newest_records() -> None:
    memory = rings(2)
    one, two = (StoredRings(memory, index) for index in range(2))
    for number in range(SLOTS + 10):
        one.write((f"resp_{number}", "alice", number))

    found = [tokens for _, _, tokens in two.news()]

    assert found == list(range(11, SLOTS + 10))


def test_a_record_that_is_not_whole_yet_is_read_later() -> None:
    memory = rings(2)
    one, two = (StoredRings(memory, index) for index in range(2))
    one.write(("resp_1", "alice", 7))
    byte = SLOT_BYTES + 8
    memory[0][byte] ^= 0xFF

    assert list(two.news()) == []
    memory[0][byte] ^= 0xFF
    assert list(two.news()) == [("resp_1", "alice", 7)]


def test_the_longest_name_fits_and_a_longer_record_is_left_out() -> None:
    one, two = (StoredRings(memory, index) for memory in [rings(2)] for index in range(2))
    longest = ("\U0001f600" * LONGEST_NAME, "o" * 300, 2**40)

    one.write(longest)
    one.write(("n", "o" * SLOT_BYTES, 1))

    assert list(two.news()) == [longest]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_each_worker_reads_each_record_of_the_others_once(steps: list[tuple[int, bool]]) -> None:
    memory = rings(3)
    workers = [StoredRings(memory, index) for index in range(3)]
    read: list[list[int]] = [[], [], []]
    written: list[tuple[int, int]] = []
    for number, (worker, writes) in enumerate(steps):
        read[worker] += [tokens for _, _, tokens in workers[worker].news()]
        if writes:
            workers[worker].write(("r", "o", number))
            written.append((worker, number))
    for index, each in enumerate(workers):
        read[index] += [tokens for _, _, tokens in each.news()]
        assert sorted(read[index]) == [number for worker, number in written if worker != index]
