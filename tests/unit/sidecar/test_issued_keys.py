"""Issued credentials at a sidecar: changes, pages, a lost lease store, and memory."""

from __future__ import annotations

import hashlib
import logging
import math

import pytest

from sidecar.issued_keys import IssuedKeys
from tokenpool.credentials import KEEP_ENDED_S, CredentialRecord
from tokenpool.leases.credential_feed import (
    PAGE,
    CredentialFeed,
    CredentialPage,
    CredentialPut,
    CredentialRemoval,
)
from tokenpool.leases.wire import encode_credential
from tokenpool.store.memory import MemoryStore

NOW = 1_700_000_000.0


class Counting(MemoryStore):
    """It counts the credentials that were read."""

    def __init__(self) -> None:
        super().__init__(1.5, lambda: NOW)
        self.read_rows = self.read_pages = 0

    async def credentials(self, after: int) -> CredentialPage:
        page = await super().credentials(after)
        self.read_rows += len(page.entries)
        self.read_pages += 1
        return page


class Case:
    def __init__(self) -> None:
        self.store = Counting()
        self.now = NOW
        self.keys = IssuedKeys(self.store, lambda: self.now)
        self._versions: dict[str, int] = {}

    async def put(self, *records: CredentialRecord) -> None:
        """Write records, and have the sidecar read them."""
        puts = [
            CredentialPut(each.id, encode_credential(each), expected=self._versions.get(each.id, 0))
            for each in records
        ]
        for put, version in zip(puts, await self.store.put_credentials(puts), strict=True):
            assert version
            self._versions[put.id] = version
        await self.read()

    async def read(self) -> None:
        self.keys.announced(str(self.store.feed.state))
        if self.keys.news.is_set():
            self.keys.news.clear()
            await self.keys.read()

    def found(self, key: str) -> tuple[str, str, float, int] | None:
        found = self.keys.find(key.encode())
        return None if found is None else (found.entitlement, found.id, found.ends_at, found.concurrency)


def record(name: str, **fields: object) -> CredentialRecord:
    digest = hashlib.sha256(f"{name}-key".encode()).digest()
    given = {"id": name, "entitlement": "a", "digest": digest, "created_at": NOW} | fields
    return CredentialRecord(**given)  # type: ignore[arg-type]


async def test_an_issued_key_is_found_with_its_limits() -> None:
    case = Case()
    assert case.found("k-key") is None

    await case.put(record("k", expires_at=NOW + 5, concurrency=3), record("l"))

    assert case.found("k-key") == ("a", "k", NOW + 5, 3)
    assert case.found("l-key") == ("a", "l", math.inf, 0)
    assert len(case.keys) == 2


async def test_only_changes_are_read() -> None:
    case = Case()
    await case.put(*(record(f"k{number}") for number in range(2 * PAGE)))
    assert case.store.read_rows == 2 * PAGE

    await case.put(record("more"))
    await case.read()

    assert case.store.read_rows == 2 * PAGE + 1
    assert len(case.keys) == 2 * PAGE + 1


async def test_a_changed_credential_stays_the_same_object() -> None:
    """The heads of open connections refer to it."""
    case = Case()
    await case.put(record("k"))
    credential = case.keys.find(b"k-key")
    assert credential is not None

    await case.put(record("k", expires_at=NOW + 60, concurrency=1))
    assert (credential.ends_at, credential.concurrency) == (NOW + 60, 1)
    await case.put(record("k", revoked_at=NOW))

    assert credential.ends_at == -math.inf
    assert case.keys.find(b"k-key") is None
    assert len(case.keys) == 0


async def test_a_lost_lease_store_changes_nothing() -> None:
    case = Case()
    await case.put(record("k"), record("l"))
    await case.put(record("l", revoked_at=NOW))

    case.store.feed = CredentialFeed()
    await case.read()
    await case.keys.read()

    assert case.found("k-key") is not None
    assert case.found("l-key") is None


async def test_a_new_generation_is_read_from_the_beginning() -> None:
    case = Case()
    await case.put(record("k"))
    case.store.feed = CredentialFeed()
    restored = [
        CredentialPut(each.id, encode_credential(each), version=1)
        for each in (record("k", revoked_at=NOW), record("l"))
    ]
    case.store.feed.put(restored, NOW - 3600)  # its clock is behind

    await case.read()

    assert (case.found("k-key"), case.found("l-key")) == (None, ("a", "l", math.inf, 0))


async def test_a_revoked_key_stays_revoked_if_an_older_record_is_restored() -> None:
    """The lease store was lost, and the leader has not copied the revocation yet."""
    case = Case()
    await case.put(record("k"))
    await case.put(record("k", revoked_at=NOW))
    case.store.feed = CredentialFeed()
    case.store.feed.put([CredentialPut("k", encode_credential(record("k")), version=1)], NOW + 5)

    await case.read()

    assert case.found("k-key") is None


async def test_credentials_that_ended_long_ago_are_forgotten() -> None:
    case = Case()
    await case.put(record("expired", expires_at=NOW + 1), record("revoked"), record("active"))
    await case.put(record("revoked", revoked_at=NOW))
    case.now = NOW + KEEP_ENDED_S
    ended = [each for each in case.store.feed.page(0).entries if each.id != "active"]

    await case.store.remove_credentials([CredentialRemoval(each.id, each.version) for each in ended])
    await case.read()

    assert case.found("expired-key") is None
    assert case.found("active-key") is not None
    assert len(case.keys) == 1
    assert not case.keys._revoked
    assert case.keys.problems() == []


async def test_two_credentials_with_one_key_do_not_mix(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    await case.put(record("k"))

    await case.put(record("other", entitlement="b", digest=record("k").digest, revoked_at=NOW))

    assert case.found("k-key") == ("a", "k", math.inf, 0)
    assert "two issued credentials have the same key" in caplog.text


async def test_a_record_that_cannot_be_read_is_refused_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    case = Case()
    await case.put(record("later", schema=99), record("k"))
    await case.put(record("later", schema=99, note="again"))

    assert (case.found("later-key"), case.found("k-key")) == (None, ("a", "k", math.inf, 0))
    assert caplog.text.count("'later' has schema 99") == 1


async def test_a_sidecar_is_ready_once_it_has_read_all_credentials() -> None:
    case = Case()
    assert case.keys.problems() == []
    await case.store.put_credentials([CredentialPut("k", encode_credential(record("k")))])

    case.keys.announced(str(case.store.feed.state))
    assert case.keys.problems() == ["the issued credentials are being read: 0 of about 1"]
    await case.keys.read()

    assert case.keys.problems() == []
    values = {metric.name: metric.samples[0].value for metric in case.keys.metrics()}
    assert values == {"tokenpool_issued_credentials": 1, "tokenpool_issued_credentials_current": 1}
