"""The keeper: changes of credentials, and lost records of the lease store or of a database."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.credentials.database import DatabaseFailed, SqlCredentials, StoredCredential
from coordinator.credentials.keeper import (
    OWN_S,
    PURGE_EVERY_S,
    RESTORE_AFTER_S,
    ChangeRefused,
    Keeper,
)
from coordinator.usage.database import database as database_of
from tokenpool.credentials import (
    KEEP_ENDED_S,
    PURGE_MARGIN_S,
    Change,
    CredentialRecord,
    CredentialState,
)
from tokenpool.leases.credential_feed import CredentialFeed, CredentialPut, CredentialRemoval
from tokenpool.leases.wire import encode_credential
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

NOW = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def sqlite(path: Path) -> SqlCredentials:
    return SqlCredentials(database_of(str(path)))


class Leader:
    """The leader of a pool with the entitlements a and b."""

    def __init__(self, store: MemoryStore, *, leads: bool = True) -> None:
        self.store = store
        self.epoch = int(leads)

    def has(self, entitlement: str) -> bool:
        return entitlement in ("a", "b")


class Pair:
    """Two coordinators with a database each, over one lease store. The first one leads."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = MemoryStore(1.5, self.clock)
        self.databases = [sqlite(folder / f"{number}.db") for number in range(2)]
        self.leaders = [Leader(self.store), Leader(self.store, leads=False)]
        self.first, self.second = (
            Keeper(lambda leader=leader: {"chat": leader}, database, self.clock, self.clock)  # type: ignore[misc]
            for leader, database in zip(self.leaders, self.databases, strict=True)
        )

    async def follow(self, *keepers: Keeper) -> None:
        for keeper in keepers or (self.first, self.second):
            await keeper.follow("chat")

    def states(self) -> dict[str, str]:
        """The state of each credential in the lease store."""
        from tokenpool.leases.wire import decode_credential  # noqa: PLC0415

        found = [decode_credential(each.content) for each in self.store.feed.page(0).entries]
        return {each.id: each.state(self.clock.now).value for each in found}

    def lose_everything(self) -> None:
        self.store.feed = CredentialFeed()


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    yield made
    for database in made.databases:
        await database.close()


def record(name: str, entitlement: str = "a", key: str = "", **fields: object) -> CredentialRecord:
    digest = hashlib.sha256((key or name).encode()).digest()
    given = {"created_at": NOW, "created_by": "me", "changed_at": NOW, "changed_by": "me"} | fields
    return CredentialRecord(id=name, entitlement=entitlement, digest=digest, **given)  # type: ignore[arg-type]


async def test_an_issued_credential_is_in_the_lease_store_and_in_both_databases(pair: Pair) -> None:
    stored, is_new = await pair.first.issue(record("k"))
    assert (stored.pool, stored.record, is_new) == ("chat", record("k"), True)
    assert pair.states() == {"k": "active"}

    await pair.follow()

    assert [await each.get("k") for each in pair.databases] == [stored, stored]
    [change] = await pair.databases[1].changes((0, ""), 10)
    assert change == ("k", stored.version, NOW, "me", "issued", "chat", "a")
    assert await pair.databases[0].changes((0, ""), 10) == [change]


async def test_the_same_request_twice_is_one_credential(pair: Pair) -> None:
    first, _ = await pair.first.issue(record("k"))
    pair.clock.now += 1

    again, is_new = await pair.first.issue(record("k", created_at=NOW + 1))

    assert (again, is_new) == (first, False)
    elsewhere, is_new = await pair.second.issue(record("k", created_at=NOW + 1))
    assert elsewhere == first


async def test_ids_and_keys_are_unique(pair: Pair) -> None:
    await pair.first.issue(record("k"))
    for wrong, words in (
        (record("k", key="other"), "another credential 'k'"),
        (record("k", entitlement="b"), "another credential 'k'"),
        (record("l", key="k"), "credential 'k' has the same key"),
        (record("m", entitlement="z"), "no entitlement 'z'"),
    ):
        with pytest.raises(ChangeRefused, match=words):
            await pair.first.issue(wrong)
    # The other coordinator has not copied it yet: the lease store knows.
    with pytest.raises(ChangeRefused, match="another credential 'k'"):
        await pair.second.issue(record("k", key="other"))


async def test_a_credential_is_revoked_at_any_coordinator_and_only_once(pair: Pair) -> None:
    await pair.first.issue(record("k"))
    pair.clock.now += 5

    revoked = await pair.second.revoke("k", "you")

    assert pair.states() == {"k": "revoked"}
    assert revoked.record.revoked_at == NOW + 5
    assert (revoked.record.changed_by, revoked.record.change) == ("you", Change.REVOKED)
    pair.clock.now += 5
    assert await pair.first.revoke("k", "me") == revoked
    assert (pair.first.changes["revoked"], pair.second.changes["revoked"]) == (0, 1)
    with pytest.raises(ChangeRefused, match="no credential 'x'"):
        await pair.first.revoke("x", "me")


async def test_a_rotated_credential_ends_after_the_overlap(pair: Pair) -> None:
    await pair.first.issue(record("old"))

    stored, is_new = await pair.first.rotate("old", record("new", replaces="old"), 60.0)

    assert (stored.record.id, is_new) == ("new", True)
    pair.clock.now += 59
    assert pair.states() == {"old": "active", "new": "active"}
    pair.clock.now += 1
    assert pair.states() == {"old": "expired", "new": "active"}
    again, is_new = await pair.first.rotate("old", record("new", replaces="old"), 60.0)
    assert (again, is_new) == (stored, False)
    with pytest.raises(ChangeRefused, match="'old' is expired"):
        await pair.first.rotate("old", record("newer", replaces="old"), 60.0)


async def test_a_rotation_that_failed_between_its_changes_is_completed_by_a_repetition(pair: Pair) -> None:
    await pair.first.issue(record("old"))
    put = pair.store.put_credentials

    async def fails_for_changes(puts: Sequence[CredentialPut]) -> list[int]:
        if puts[0].expected:
            raise StoreDown("it is away")
        return await put(puts)

    pair.store.put_credentials = fails_for_changes  # type: ignore[method-assign]
    with pytest.raises(StoreDown):
        await pair.first.rotate("old", record("new", replaces="old"), 60.0)
    pair.store.put_credentials = put  # type: ignore[method-assign]

    stored, is_new = await pair.first.rotate("old", record("new", replaces="old"), 60.0)

    assert (stored.record.id, is_new) == ("new", False)
    pair.clock.now += 60
    assert pair.states() == {"old": "expired", "new": "active"}


async def test_ended_credentials_are_removed_everywhere_after_their_time(pair: Pair) -> None:
    await pair.first.issue(record("revoked"))
    await pair.first.issue(record("expired", expires_at=NOW + 1))
    await pair.first.issue(record("active"))
    await pair.first.revoke("revoked", "me")
    await pair.follow()
    pair.clock.now += KEEP_ENDED_S - PURGE_MARGIN_S
    await pair.follow()
    assert len(pair.states()) == 3

    pair.clock.now += PURGE_MARGIN_S + 2
    await pair.follow(pair.first)
    await pair.follow()

    assert pair.states() == {"active": "active"}
    for database in pair.databases:
        assert [each.record.id for each in await database.page("", 10)] == ["active"]
    assert len(await pair.databases[0].changes((0, ""), 10)) == 4
    assert pair.first.problems() == pair.second.problems() == []
    assert pair.store.feed.state.records == 1


async def test_a_removal_by_another_coordinator_is_followed_and_not_undone(pair: Pair) -> None:
    """Its clock is ahead, and this one has looked a short time before."""
    await pair.first.issue(record("k"))
    await pair.first.issue(record("l"))
    await pair.first.revoke("k", "me")
    await pair.follow()
    pair.clock.now += KEEP_ENDED_S - PURGE_EVERY_S / 2
    await pair.follow(pair.second)  # too early
    [entry] = [each for each in pair.store.feed.page(0).entries if each.id == "k"]
    pair.store.feed.remove([CredentialRemoval("k", entry.version)])

    await pair.follow(pair.second)

    assert pair.states() == {"l": "active"}
    assert await pair.databases[1].get("k") is None
    assert pair.second.problems() == []


async def test_a_copy_that_was_away_for_too_long_is_replaced(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Its active key was revoked and forgotten meanwhile. It must not come back."""
    for name in ("k", "l"):
        await pair.first.issue(record(name))
    await pair.follow()
    await pair.first.revoke("k", "me")
    for _ in range(2):
        pair.clock.now += KEEP_ENDED_S / 2 + 1
        await pair.follow(pair.first)
    assert pair.states() == {"l": "active"}

    restarted = Keeper(lambda: {"chat": pair.leaders[1]}, pair.databases[1], pair.clock, pair.clock)
    for _ in range(3):
        await pair.follow(restarted)
        pair.clock.now += RESTORE_AFTER_S

    assert pair.states() == {"l": "active"}
    assert await pair.databases[1].get("k") is None
    assert "was not followed for too long" in caplog.text


async def test_an_old_copy_stays_if_the_lease_store_has_none(pair: Pair) -> None:
    await pair.first.issue(record("k"))
    await pair.follow(pair.first)
    pair.lose_everything()
    pair.clock.now += 2 * KEEP_ENDED_S

    await pair.follow(pair.first)

    assert pair.states() == {"k": "active"}


async def test_a_rotation_never_lengthens_the_life_of_a_key(pair: Pair) -> None:
    await pair.first.issue(record("old", expires_at=NOW + 10))

    await pair.first.rotate("old", record("new", replaces="old"), 60.0)

    assert (await pair.first.get("old")).record.expires_at == NOW + 10


async def test_a_change_is_repeated_if_another_coordinator_was_faster(pair: Pair) -> None:
    await pair.first.issue(record("k"))
    await pair.follow()
    await pair.first.rotate("k", record("new", replaces="k"), 60.0)

    revoked = await pair.second.revoke("k", "you")  # its database still has the first version

    assert revoked.record.expires_at == NOW + 60
    assert pair.states() == {"k": "revoked", "new": "active"}


async def test_a_lost_lease_store_is_filled_again_with_the_same_versions(pair: Pair) -> None:
    for name in ("k", "l"):
        await pair.first.issue(record(name))
    await pair.first.revoke("l", "me")
    await pair.follow()
    before = {each.id: each.version for each in pair.store.feed.page(0).entries}

    pair.lose_everything()
    await pair.follow(pair.second)  # does not lead: it waits
    assert pair.states() == {}
    assert pair.second.problems() != []
    await pair.follow(pair.first)
    assert pair.states() == {"k": "active", "l": "revoked"}
    assert {each.id: each.version for each in pair.store.feed.page(0).entries} == before

    await pair.follow()
    assert pair.first.problems() == pair.second.problems() == []


async def test_a_revocation_that_only_one_database_has_wins(pair: Pair) -> None:
    """The lease store lost it before the leader has copied it."""
    await pair.first.issue(record("k"))
    await pair.follow()
    await pair.second.revoke("k", "you")
    pair.lose_everything()

    await pair.follow(pair.first)
    assert pair.states() == {"k": "active"}  # restored by the leader
    await pair.follow(pair.second)  # at its next look: it has made the change itself

    assert pair.states() == {"k": "revoked"}
    await pair.follow()
    assert (await pair.first.get("k")).record.revoked_at == NOW
    assert pair.first.problems() == pair.second.problems() == []


async def test_a_record_that_only_a_follower_has_is_restored_after_a_while(pair: Pair) -> None:
    await pair.second.issue(record("k"))
    pair.clock.now += OWN_S
    pair.lose_everything()

    await pair.follow()
    assert pair.states() == {}
    pair.clock.now += RESTORE_AFTER_S
    await pair.follow()

    assert pair.states() == {"k": "active"}


async def test_a_lease_store_that_lost_its_last_writes_gets_them_again(pair: Pair) -> None:
    """A failover to a replica that was behind."""
    await pair.first.issue(record("k"))
    await pair.follow()
    old = pair.store.feed
    behind = CredentialFeed()
    behind.put(
        [CredentialPut("k", encode_credential(record("k")), version=old.page(0).entries[0].version)], NOW
    )
    await pair.first.revoke("k", "me")
    await pair.follow()

    pair.store.feed = behind
    await pair.follow(pair.first)

    assert pair.states() == {"k": "revoked"}


async def test_a_new_database_is_filled_from_the_lease_store(pair: Pair, tmp_path: Path) -> None:
    stored, _ = await pair.first.issue(record("k"))
    fresh = sqlite(tmp_path / "fresh.db")
    keeper = Keeper(lambda: {"chat": Leader(pair.store, leads=False)}, fresh, pair.clock, pair.clock)

    await pair.follow(keeper)

    assert await fresh.get("k") == stored
    assert keeper.problems() == []
    await fresh.close()


async def test_a_record_of_a_later_version_is_a_problem_and_stops_nothing(pair: Pair) -> None:
    later = record("k", schema=99)
    await pair.store.put_credentials([CredentialPut("k", encode_credential(later))])

    await pair.follow(pair.first)

    assert "schema 99" in pair.first.problems()[0]
    await pair.first.issue(record("l"))
    metrics = {metric.name: metric for metric in pair.first.metrics()}
    assert [s.value for s in metrics["tokenpool_credential_records_in_step"].samples] == [0.0]


async def test_a_database_that_fails_is_reported(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    broken = sqlite(tmp_path / "folder")
    keeper = Keeper(lambda: {"chat": Leader(pair.store)}, broken, pair.clock, pair.clock)

    with pytest.raises(DatabaseFailed, match="unable to open"):
        await keeper.issue(record("k"))

    assert pair.states() == {}
    await pair.first.issue(record("k"))
    await pair.follow(keeper)
    assert "unable to open" in keeper.problems()[0]
    await broken.close()


async def test_a_database_without_its_tables_gets_them_again(pair: Pair) -> None:
    await pair.first.issue(record("k"))
    await pair.databases[0]._run(lambda statements: statements.run("DROP TABLE credentials"))

    with pytest.raises(DatabaseFailed, match="no such table"):
        await pair.first.get("k")
    await pair.follow(pair.first)

    assert (await pair.first.get("k")).record == record("k")


async def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a database at all, but long enough to have a header" * 20)
    made = sqlite(tmp_path / "x")
    with pytest.raises(DatabaseFailed, match="not a database"):
        await made.get("k")
    await made.close()


async def test_an_earlier_record_does_not_replace_a_later_one(pair: Pair) -> None:
    [database, _] = pair.databases
    await database.write([StoredCredential("chat", 7, record("k", note="new"))])
    await database.write([StoredCredential("chat", 6, record("k", note="old"))])

    found = await database.get("k")

    assert found is not None
    assert (found.version, found.record.note) == (7, "new")
    assert await database.sums("chat") == (1, 7)
    assert [each.version for each in await database.changes((0, ""), 10)] == [6, 7]
    assert [each.version for each in await database.changes((6, "k"), 10)] == [7]


async def test_credentials_are_listed_in_pages(pair: Pair) -> None:
    [database, _] = pair.databases
    for number in range(5):
        await pair.first.issue(record(f"k{number}", entitlement="ab"[number % 2]))

    page = await database.page("k0", 2)
    of_b = await database.page("", 10, pool="chat", entitlement="b")

    assert [each.record.id for each in page] == ["k1", "k2"]
    assert [each.record.id for each in of_b] == ["k1", "k3"]
    assert await database.page("", 10, pool="other") == []


def test_a_record_expires_at_its_time() -> None:
    made = record("k", expires_at=NOW + 5)
    assert [made.state(NOW + after) for after in (4, 5)] == [CredentialState.ACTIVE, CredentialState.EXPIRED]
    assert made.revoked(NOW, "me").state(NOW) is CredentialState.REVOKED
