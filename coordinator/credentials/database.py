"""The durable copy of all issued credentials, and the table of their changes, in SQLite.

Every coordinator has a copy. A record of a later version replaces an earlier one, so copies can be written in
any order. A change is a row of its own with the version of the record that it made, so a change that arrives
twice is one row. Two coordinators may share one file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from tokenpool.credentials import CredentialRecord
from tokenpool.leases.credential_feed import CHECK_MODULUS
from tokenpool.leases.wire import decode_credential, encode_credential

_T = TypeVar("_T")
BUSY_S = 5.0
"""The longest wait for another process that writes to the same file."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS credential (
    id TEXT PRIMARY KEY,
    pool TEXT NOT NULL,
    entitlement TEXT NOT NULL,
    digest BLOB NOT NULL,
    version INTEGER NOT NULL,
    content BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS credential_by_pool ON credential (pool, version);
CREATE INDEX IF NOT EXISTS credential_by_entitlement ON credential (entitlement, id);
CREATE INDEX IF NOT EXISTS credential_by_digest ON credential (digest);
CREATE TABLE IF NOT EXISTS credential_change (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    credential TEXT NOT NULL,
    version INTEGER NOT NULL,
    at REAL NOT NULL,
    administrator TEXT NOT NULL,
    change TEXT NOT NULL,
    pool TEXT NOT NULL,
    entitlement TEXT NOT NULL,
    UNIQUE (credential, version)
);
"""
_WRITE = """
INSERT INTO credential (id, pool, entitlement, digest, version, content) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET version = excluded.version, content = excluded.content
WHERE excluded.version > version AND excluded.pool = pool
"""
_WRITE_CHANGE = """
INSERT OR IGNORE INTO credential_change
(credential, version, at, administrator, change, pool, entitlement) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


class DatabaseFailed(Exception):
    """The database did not read or write. The text gives the reason."""


class StoredCredential(NamedTuple):
    """One credential of the durable copy."""

    pool: str
    version: int
    record: CredentialRecord


class ChangeRow(NamedTuple):
    """One row of the table of changes."""

    number: int
    """Rises with each row of this database."""
    credential: str
    version: int
    at: float
    """Seconds of Unix time."""
    administrator: str
    change: str
    pool: str
    entitlement: str


class Sums(NamedTuple):
    """The sums over the credentials of a pool, as ``FeedState`` has them."""

    records: int = 0
    check: int = 0


class CredentialStore(Protocol):
    """The durable copy. Every call may raise ``DatabaseFailed``."""

    async def write(self, stored: Sequence[StoredCredential]) -> None:
        """Store records and their changes, durably. A record of an earlier version changes nothing."""

    async def get(self, name: str) -> StoredCredential | None:
        """The credential with this id."""

    async def of_digest(self, digest: bytes) -> StoredCredential | None:
        """A credential with this digest."""

    async def page(
        self, after: str, count: int, *, pool: str | None = None, entitlement: str | None = None
    ) -> list[StoredCredential]:
        """At most ``count`` credentials with ids after this one, in the order of their ids."""

    async def sums(self, pool: str) -> Sums:
        """The sums over all credentials of a pool."""

    async def changes(self, after: int, count: int) -> list[ChangeRow]:
        """At most ``count`` changes with numbers after this one, in their order."""

    async def close(self) -> None:
        """Close the database."""


class SqliteCredentials:
    """The durable copy in one SQLite file. One thread reads and writes, so the event loop never waits."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises ``DatabaseFailed``."""
        self._path = path
        self._thread = ThreadPoolExecutor(1, "credentials")
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
            # A commit returns after the data is on disk.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise DatabaseFailed(f"the database {path}: {error}") from error

    async def write(self, stored: Sequence[StoredCredential]) -> None:
        """See ``CredentialStore``."""
        await self._run(lambda: self._write(stored))

    def _write(self, stored: Sequence[StoredCredential]) -> None:
        with self._connection as connection:
            connection.executemany(
                _WRITE,
                [
                    (r.id, pool, r.entitlement, r.digest, version, encode_credential(r))
                    for pool, version, r in stored
                ],
            )
            connection.executemany(
                _WRITE_CHANGE,
                [
                    (r.id, version, r.changed_at, r.changed_by, r.change.value, pool, r.entitlement)
                    for pool, version, r in stored
                ],
            )

    async def get(self, name: str) -> StoredCredential | None:
        """See ``CredentialStore``."""
        return await self._one("id = ?", name)

    async def of_digest(self, digest: bytes) -> StoredCredential | None:
        """See ``CredentialStore``."""
        return await self._one("digest = ?", digest)

    async def _one(self, condition: str, value: str | bytes) -> StoredCredential | None:
        query = f"SELECT pool, version, content FROM credential WHERE {condition} LIMIT 1"
        rows = await self._rows(query, value)
        return _stored(rows[0]) if rows else None

    async def page(
        self, after: str, count: int, *, pool: str | None = None, entitlement: str | None = None
    ) -> list[StoredCredential]:
        """See ``CredentialStore``."""
        conditions, values = ["id > ?"], [after]
        for column, value in (("pool", pool), ("entitlement", entitlement)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        query = (
            f"SELECT pool, version, content FROM credential WHERE {' AND '.join(conditions)}"
            " ORDER BY id LIMIT ?"
        )
        return [_stored(row) for row in await self._rows(query, *values, count)]

    async def sums(self, pool: str) -> Sums:
        """See ``CredentialStore``."""
        query = "SELECT COUNT(*), COALESCE(SUM(version), 0) FROM credential WHERE pool = ?"
        [(count, total)] = await self._rows(query, pool)
        return Sums(count, total % CHECK_MODULUS)

    async def changes(self, after: int, count: int) -> list[ChangeRow]:
        """See ``CredentialStore``."""
        query = (
            "SELECT number, credential, version, at, administrator, change, pool, entitlement"
            " FROM credential_change WHERE number > ? ORDER BY number LIMIT ?"
        )
        return [ChangeRow(*row) for row in await self._rows(query, after, count)]

    async def close(self) -> None:
        """See ``CredentialStore``."""
        await self._run(self._connection.close)
        self._thread.shutdown()

    async def _rows(self, query: str, *values: str | int | bytes) -> list[Any]:
        return await self._run(lambda: self._connection.execute(query, values).fetchall())

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise DatabaseFailed(f"the database {self._path}: {error}") from error


def _stored(row: tuple[str, int, bytes]) -> StoredCredential:
    pool, version, content = row
    return StoredCredential(pool, version, decode_credential(content))
