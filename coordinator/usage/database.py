"""The databases that a usage store can use: SQLite, and PostgreSQL where a URL is given.

Both are used through DB-API 2.0, with the same SQL. Only this module knows their differences.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

_RETRY_S = 0.01
CONNECT_S = 5
"""The longest wait for a connection, and for the lock of a SQLite file, in seconds."""
STATEMENT_S = 60
"""The longest time of one statement in PostgreSQL, in seconds."""
MIGRATION_LOCK = 0x746F6B65
"""The number of the advisory lock that a migration of a PostgreSQL database holds."""
POSTGRES_SCHEMES = ("postgresql", "postgres")


class DatabaseInvalid(ValueError):
    """The text names no usage store. The error gives the reason, without the password."""


class Cursor(Protocol):
    """The part of a DB-API cursor that is used."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows of its result."""

    @property
    def rowcount(self) -> int:
        """The number of changed rows."""

    @property
    def description(self) -> object:
        """The columns of the result; ``None`` for a statement without one."""

    def close(self) -> None:
        """End the use of the cursor."""


class Connection(Protocol):
    """The part of a DB-API connection that is used. A statement outside BEGIN is a transaction."""

    def cursor(self) -> Cursor:
        """A new cursor."""

    def close(self) -> None:
        """Close the connection. An open transaction is rolled back."""


@dataclass(frozen=True, slots=True)
class Database:
    """One database: how to reach it, and its dialect of SQL."""

    name: str
    """Its URL or path without a password, for messages."""
    connect: Callable[[], Connection]
    """Open a connection."""
    begin_migration: tuple[str, ...]
    """The statements that begin a transaction in which no other process migrates."""
    failures: tuple[type[Exception], ...]
    """The errors of the driver."""
    data_failures: tuple[type[Exception], ...]
    """Those of them that a value of a record causes."""
    placeholder: str
    """What stands for a value in a statement."""
    is_shared: bool
    """Whether coordinators on several machines can use it."""


def database(text: str) -> Database:
    """The database that an option names. Raises ``DatabaseInvalid``; does not connect.

    ``postgresql://`` or ``postgres://`` is a URL of PostgreSQL. ``sqlite:PATH``, ``sqlite:///PATH`` or a path
    alone is a file of SQLite.
    """
    scheme, colon, rest = text.partition(":")
    if scheme in POSTGRES_SCHEMES and rest.startswith("//"):
        return _postgres(text)
    if scheme == "sqlite" and colon:
        # sqlite:////PATH is the absolute path of SQLAlchemy, sqlite:///PATH that of RFC 8089.
        path = rest.removeprefix("//") if rest.startswith("//") else rest
        return _sqlite(Path("/" + path.lstrip("/") if rest.startswith("//") else path))
    if "://" in text:
        raise DatabaseInvalid(
            f"{scheme}:// is not a usage store; give postgresql://USER:PASSWORD@HOST/NAME or a path"
        )
    return _sqlite(Path(text))


def _sqlite(path: Path) -> Database:
    if not path.name:
        raise DatabaseInvalid("a usage store of SQLite needs the path of a file")

    def connect() -> Connection:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # The worker's thread opens and uses it; the thread that closes may be another.
        connection = sqlite3.connect(path, timeout=CONNECT_S, isolation_level=None, check_same_thread=False)
        # Readers do not wait for the writer. A stored record survives the loss of power: the sidecar has
        # removed its own copy.
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    return Database(
        f"sqlite:{path}",
        connect,
        ("BEGIN IMMEDIATE",),
        (sqlite3.Error, OSError),
        (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, OverflowError, UnicodeError),
        "?",
        is_shared=False,
    )


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Change the mode of the file. SQLite does not wait by itself if another coordinator does the same."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _postgres(url: str) -> Database:
    try:
        import psycopg  # noqa: PLC0415
    except ImportError as error:
        raise DatabaseInvalid(
            f"a usage store of PostgreSQL needs psycopg ({error}): pip install 'tokenpool[postgres]'"
        ) from error

    def connect() -> Connection:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="tokenpool",
            # A server that vanished is noticed; a statement that hangs ends.
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
            options=f"-c statement_timeout={STATEMENT_S * 1000}",
            prepare_threshold=None,  # a pooler such as PgBouncer may change the connection
        )

    return Database(
        shown(url),
        connect,
        ("BEGIN", f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"),
        (psycopg.Error, OSError),
        (psycopg.DataError, psycopg.IntegrityError, UnicodeError, ValueError, OverflowError),
        "%s",
        is_shared=True,
    )


def shown(url: str) -> str:
    """A URL without its user, password and options, for messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
