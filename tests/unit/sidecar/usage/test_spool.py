"""The spool of usage records: files, bounds, and what a killed process leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.usage.open_requests import SLOT_BYTES, SLOTS, OpenRequests, abandoned
from sidecar.usage.spool import BATCH_BYTES, MEMORY_BYTES, Spool
from tokenpool.usage.batch import split

MOST = 4 * BATCH_BYTES
OWN, OTHER = "0" * 16, "1" * 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "chat"


def opened(folder: Path, process: str = OWN, most: int = MOST) -> tuple[Spool, OpenRequests]:
    spool = Spool(folder, most, process)
    requests = spool.open()
    assert requests is not None
    assert spool.error == ""
    return spool, requests


def records_of(spool: Spool, most: int = 100) -> list[bytes]:
    """The records of all batches that wait. The batches are taken."""
    return [record for _, content in spool.take(most) for record in split(content)]


def killed(requests: OpenRequests) -> None:
    """The process of this file is gone: its lock is, too."""
    requests._slots.close()
    os.close(requests._file)


def test_records_come_out_in_order(folder: Path) -> None:
    spool, _ = opened(folder)

    assert spool.append([b"a", b"b"]) == ()
    assert spool.append([b"c"]) == ()
    assert records_of(spool) == [b"a", b"b", b"c"]
    assert records_of(spool) == []


def test_a_batch_is_a_file_until_it_is_removed(folder: Path) -> None:
    spool, _ = opened(folder)
    spool.append([b"record"])
    [(batch, _)] = spool.take(1)

    assert [path.name for path in folder.glob("*.batch")] == [f"{OWN}-1.batch"]
    assert spool.size == 10
    spool.remove(batch)
    assert list(folder.glob("*.batch")) == []
    assert spool.size == 0


def test_a_full_batch_is_followed_by_another(folder: Path) -> None:
    spool, _ = opened(folder)
    assert not spool.is_full
    for _ in range(3):
        spool.append([bytes([1]) * (BATCH_BYTES // 2)])

    assert spool.is_full
    assert [batch.size >= BATCH_BYTES for batch, _ in spool.take(9)] == [True, False]


def test_a_taken_batch_takes_no_further_records(folder: Path) -> None:
    spool, _ = opened(folder)
    spool.append([b"a"])
    [(first, _)] = spool.take(1)
    spool.append([b"b"])
    spool.put_back([first])

    assert records_of(spool) == [b"a", b"b"]


def test_batches_that_were_lost_come_first_again_in_order(folder: Path) -> None:
    spool, _ = opened(folder)
    for name in (b"a", b"b", b"c", b"d"):
        spool.append([name])
        taken = spool.take(1)
        spool.put_back([taken[0][0]])
    batches = [batch for batch, _ in spool.take(3)]
    spool.put_back(batches[::-1])

    assert records_of(spool) == [b"a", b"b", b"c", b"d"]


def test_records_beyond_the_bound_are_refused(folder: Path) -> None:
    spool, _ = opened(folder, most=1000)

    assert spool.append([b"x" * 600]) == ()
    assert spool.append([b"y" * 600, b"z"]) == [b"y" * 600, b"z"]
    assert spool.append([b"z"]) == ()
    assert spool.size <= 1000


def test_a_removed_batch_makes_room(folder: Path) -> None:
    spool, _ = opened(folder, most=1000)
    spool.append([b"x" * 900])
    [(batch, _)] = spool.take(1)
    assert spool.append([b"y" * 900]) != ()
    spool.remove(batch)

    assert spool.append([b"y" * 900]) == ()


def test_the_next_process_takes_over_batches_and_running_requests(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"written"])
    requests.take(b"running")
    settled = requests.take(b"was running")
    requests.replace(settled, b"settled")
    requests.free(requests.take(b"ended"))
    killed(requests)

    other, _ = opened(folder, OTHER)
    assert other.adopt() == 2
    assert records_of(other) == [b"written", b"running", b"settled"]
    assert not (folder / f"{OWN}.open").exists()


def test_a_living_process_keeps_its_records(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"written"])
    requests.take(b"running")

    other, _ = opened(folder, OTHER)
    assert other.adopt() == 0
    assert records_of(other) == []
    assert records_of(spool) == [b"written"]


def test_batches_of_a_process_that_stopped_are_taken_over(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"written"])
    requests.close()
    assert not (folder / f"{OWN}.open").exists()

    other, _ = opened(folder, OTHER)
    assert other.adopt() == 0
    assert records_of(other) == [b"written"]


def test_records_are_taken_over_once(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"written"])
    killed(requests)

    other, _ = opened(folder, OTHER)
    other.adopt()
    [(batch, _)] = other.take(1)
    other.adopt()  # the folder did not work for a while
    assert records_of(other) == []
    other.remove(batch)
    assert other.size == 0


def test_batches_that_were_taken_over_are_left_to_that_process(folder: Path) -> None:
    """Several sidecars may share a folder, and the usage store may be away for long."""
    spool, requests = opened(folder)
    spool.append([b"written"])
    killed(requests)
    second, _ = opened(folder, OTHER)
    second.adopt()

    third, _ = opened(folder, "2" * 16)
    third.adopt()

    assert records_of(third) == []
    assert records_of(second) == [b"written"]
    assert (third.unreadable, third.error, third.size) == (0, "", 0)


def test_a_batch_that_another_process_takes_first_is_left_out(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"written"])
    killed(requests)

    other, _ = opened(folder, OTHER)
    (folder / f"{OWN}-1.batch").rename(folder / f"{'2' * 16}-1.batch")
    other._adopt(folder / f"{OWN}-1.batch")

    assert (records_of(other), other.error, other.size) == ([], "", 0)


def test_running_requests_that_find_no_room_wait_for_the_next_process(folder: Path) -> None:
    _, requests = opened(folder)
    requests.take(b"running")
    killed(requests)

    full, full_requests = opened(folder, OTHER, most=5)
    assert full.adopt() == 0
    killed(full_requests)
    later, _ = opened(folder, "2" * 16)
    assert later.adopt() == 1
    assert records_of(later) == [b"running"]


def test_an_incomplete_record_of_a_killed_process_is_left_out(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"whole"])
    killed(requests)
    with (folder / f"{OWN}-1.batch").open("ab") as file:
        file.write(b"\0\0\0\x09half")

    other, _ = opened(folder, OTHER)
    other.adopt()
    assert records_of(other) == [b"whole"]


def test_other_files_in_the_folder_are_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("keep")
    (folder / "x-1.batch").write_text("keep")

    spool, _ = opened(folder)
    assert spool.adopt() == 0
    assert records_of(spool) == []
    assert (folder / "notes.txt").exists()


def test_without_a_folder_records_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", MOST, OWN)

    assert spool.open() is None
    assert "file/spool" in spool.error
    assert spool.append([b"a"]) == ()
    assert records_of(spool) == [b"a"]


def test_memory_has_a_bound_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", 1 << 40, OWN)
    spool.open()

    record = b"x" * (MEMORY_BYTES // 4)
    assert [len(spool.append([record])) for _ in range(5)] == [0, 0, 0, 1, 1]


def test_a_disk_that_fails_under_a_backlog_leaves_room_in_memory(folder: Path) -> None:
    spool, requests = opened(folder, most=3 * MEMORY_BYTES)
    while spool.size <= MEMORY_BYTES:
        spool.append([b"x" * BATCH_BYTES])
    backlog = spool.size
    requests.path.unlink()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    assert spool.append([b"y"]) == ()
    assert spool.error != ""
    assert spool.size == backlog + 5


def test_a_folder_that_vanishes_leaves_new_records_in_memory(folder: Path) -> None:
    spool, requests = opened(folder)
    spool.append([b"a"])
    requests.path.unlink()
    (folder / f"{OWN}-1.batch").unlink()
    folder.rmdir()

    spool.append([b"b"])
    spool.take(1)
    assert spool.append([b"c"]) == ()
    assert spool.error != ""
    assert records_of(spool) == [b"c"]
    assert spool.unreadable == 1


def test_a_folder_that_works_again_is_used_again(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    spool = Spool(blocker / "spool", MOST, OWN)
    spool.open()
    spool.append([b"a"])
    blocker.unlink()

    assert spool.open() is not None
    spool.append([b"b"])
    assert spool.error == ""
    assert len(list((blocker / "spool").glob("*.batch"))) == 1
    assert records_of(spool) == [b"a", b"b"]


def test_a_sync_leaves_no_file_behind(folder: Path) -> None:
    spool, _ = opened(folder)
    spool.append([b"a"])
    spool.sync()
    [(batch, _)] = spool.take(1)
    spool.append([b"b"])
    spool.remove(batch)
    spool.sync()

    assert spool.error == ""


def test_the_folder_is_for_its_user_only(folder: Path) -> None:
    opened(folder)

    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*.open"))


def test_a_slot_is_for_a_record_of_its_size(folder: Path) -> None:
    _, requests = opened(folder)
    longest = b"x" * (SLOT_BYTES - 2)
    slot = requests.take(longest)

    assert slot >= 0
    assert requests.take(longest + b"x") == -1
    requests.replace(slot, longest + b"x")
    killed(requests)
    found = abandoned(requests.path)
    assert found is not None
    assert found.records() == [longest]


def test_the_file_of_running_requests_can_be_full(folder: Path) -> None:
    _, requests = opened(folder)
    slots = [requests.take(b"running") for _ in range(SLOTS)]

    assert requests.used == SLOTS
    assert requests.take(b"one more") == -1
    requests.free(slots[7])
    assert requests.take(b"one more") == slots[7]
