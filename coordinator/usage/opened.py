"""Opens the usage store that the options name. Reports and the command line use it, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coordinator.usage.database import Connection, Database, DatabaseInvalid, database
from coordinator.usage.sql import SqlUsageStore

DEFAULT = "/var/lib/tokenpool/usage.db"
"""The SQLite file that is used where no option names a usage store."""


def open_usage_store(text: str | None = None, file: Path | None = None) -> SqlUsageStore:
    """The usage store at a URL or path, or at the one in a file.

    Does not connect. Raises ``DatabaseInvalid``.
    The file is read again for each connection, so that a new password needs no restart.
    """
    if file is not None:
        return SqlUsageStore(_of_file(file))
    return SqlUsageStore(database(text if text is not None else DEFAULT))


def _of_file(file: Path) -> Database:
    made = database(_line(file))

    def connect() -> Connection:
        return database(_line(file)).connect()

    return replace(made, connect=connect)


def _line(file: Path) -> str:
    """The content of a file of one line. Raises ``DatabaseInvalid``."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatabaseInvalid(f"{file}: {error}") from error
    if not text or "\n" in text:
        raise DatabaseInvalid(f"{file} has {'several lines' if text else 'no content'}; write one line")
    return text
