"""Databases for tests of the usage store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from coordinator.usage.database import Database, database
from toolbox.postgres import PostgresProcess

Databases = Callable[[], Database]
"""Makes a further connection's worth of settings for the same empty database."""


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresProcess]:
    """One PostgreSQL server for all tests of a run."""
    server = PostgresProcess(tmp_path_factory.mktemp("postgres"))
    with server:
        yield server
    server.remove()


_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return database(str(tmp_path / "usage.db"))
    server: PostgresProcess = request.getfixturevalue("postgres")
    name = f"usage_{next(_numbers)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    return database(server.url.replace("/postgres", f"/{name}"))
