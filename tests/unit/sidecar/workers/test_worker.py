"""The place of a worker: what its supervisor tells it, and the memory that they share."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from runtime.options import Address, Addresses, SettingsError
from sidecar.memory_bounds import MOST_BUFFERED, MOST_CONNECTIONS, MemoryBounds, derive
from sidecar.worker import (
    VARIABLE,
    Place,
    Worker,
    encoded,
    keep_descriptors,
    mapped,
    new_notifier,
    new_table,
    pages_path,
    peers_at,
    read,
    store_path,
)
from sidecar.workers.release import release
from tests.support.harness import settings_of
from tokenpool.leases.messages import LeaseRequest, Limit, Message
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.planning.idle import IdleTerms

MIB = 1 << 20


def test_a_process_without_a_place_is_no_worker() -> None:
    assert read({}) is None
    assert read({VARIABLE: ""}) is None


def test_two_workers_share_one_table() -> None:
    table, notifiers = new_table(2), (new_notifier(), new_notifier())
    place = Place(
        index=0,
        workers=2,
        pod="host-1-ab",
        folder="/run/x",
        table=table,
        notifiers=notifiers,
        listen=(("::", 8080), ("127.0.0.1", 9)),
        living=0,
    )
    one = read({VARIABLE: encoded(place)})
    assert one is not None
    assert one.listen == Addresses((Address("::", 8080), Address("127.0.0.1", 9)))
    assert one.holder == "host-1-ab/0-0"
    assert one.holder.startswith(one.holder_prefix)
    assert one.notifier == notifiers[0]
    assert not one.is_again
    assert keep_descriptors(place) == (table, 0, *notifiers)

    one.room.use(3, 48, 0, 0)
    one.room.wait(None, 10.0)

    assert list(mapped(table, 2))[:2] == [3.0, 48.0]
    assert one.living(10.0) == 1
    for descriptor in (table, *notifiers):
        os.close(descriptor)


def test_each_start_of_a_worker_is_another_holder_even_with_the_same_process_id() -> None:
    """The release of the first one has the last message number, so its id is of no use any more."""
    table = new_table(1)
    first = Place(
        index=0, workers=1, pod="p", folder="/none", table=table, notifiers=(), listen=(), living=0, start=0
    )
    one, again = (Worker(msgspec.structs.replace(first, start=start)) for start in (0, 1))
    store = ReferenceLeaseStore(0.0, 1.5, is_first=True)
    store.publish({"a": Limit(100, 1000, 4, depth=100)}, IdleTerms(), 1, 0.0)
    wants = {"a": LeaseRequest(kv_wanted=100, concurrency_wanted=4, concurrency_in_use=4, tokens_wanted=10)}
    assert store.exchange(Message(one.holder, 1, wants), 0.1).answer.leases["a"].concurrency == 4
    store.exchange(release(one.holder), 0.2)

    answer = store.exchange(Message(again.holder, 1, wants), 0.3).answer

    assert answer.leases["a"].concurrency == 4
    assert (one.is_again, again.is_again) == (False, True)
    os.close(table)


def test_each_worker_has_sockets_of_its_own() -> None:
    folder = Path("/run/x")

    assert str(store_path(folder)) == "/run/x/store"
    assert str(pages_path(folder, 3)) == "/run/x/pages-3"
    assert f"{peers_at(folder)}3" == "unix:/run/x/peer-3"


@pytest.mark.parametrize("text", ["0", "-1", "65", "2.5", "many", ""])
def test_a_number_of_workers_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--workers: .* is not a number of processes from 1 to 64"):
        settings_of(f"--upstream http://engine --workers={text}")


def test_the_workers_share_memory_and_connections() -> None:
    four = settings_of("--upstream http://engine --workers 4")

    assert derive(four, 0, None, 4) == MemoryBounds(MOST_CONNECTIONS // 4, MOST_BUFFERED // 4)
    one = settings_of("--upstream http://engine")
    assert derive(four, 0, 4 * 180 * MIB, 4) == derive(one, 0, 180 * MIB)
    explicit = settings_of("--upstream http://engine --max-connections 9 --max-buffered-bytes 400000000")
    assert derive(explicit, 0, None, 4) == MemoryBounds(3, 100_000_000)


def test_a_memory_limit_without_room_for_all_workers_names_the_needed_one() -> None:
    with pytest.raises(
        SettingsError, match=r"limit of 512 MiB .* for each of 8 workers; raise it to \d+ MiB"
    ):
        derive(settings_of("--upstream http://engine"), 0, 512 * MIB, 8)


def test_the_share_of_each_worker_must_have_room_for_a_body() -> None:
    with pytest.raises(SettingsError, match=r"of 10000000 bytes \(of each of 4 workers\)"):
        settings_of("--upstream http://engine --workers 4 --max-buffered-bytes 40000000")
