"""The options that name a usage store."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.usage.database import DatabaseInvalid, database, shown
from coordinator.usage.opened import DEFAULT, open_usage_store


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("usage.db", "sqlite:usage.db"),
        ("/var/lib/usage.db", "sqlite:/var/lib/usage.db"),
        ("sqlite:usage.db", "sqlite:usage.db"),
        ("sqlite:///var/lib/usage.db", "sqlite:/var/lib/usage.db"),
        ("sqlite:////var/lib/usage.db", "sqlite:/var/lib/usage.db"),
        (
            "postgresql://me:secret@db.example:5432/usage?sslmode=require",
            "postgresql://db.example:5432/usage",
        ),
        ("postgres://db/usage", "postgres://db/usage"),
    ],
)
def test_a_database_is_a_path_or_a_url(text: str, name: str) -> None:
    made = database(text)

    assert made.name == name
    assert made.is_shared is name.startswith("postgres")


@pytest.mark.parametrize("text", ["", "mysql://me:secret@db/usage", "sqlite:"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(DatabaseInvalid) as raised:
        database(text)
    assert "secret" not in str(raised.value)


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("postgresql://me:p%40ss@db/usage?password=x") == "postgresql://db/usage"


def test_without_an_option_it_is_a_file() -> None:
    assert open_usage_store().database.name == f"sqlite:{DEFAULT}"


async def test_a_file_names_it_and_is_read_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{tmp_path}/one.db\n")
    store = open_usage_store(file=file)
    file.write_text(f"{tmp_path}/two.db\n")
    await store.identity()
    await store.close()

    assert (tmp_path / "two.db").exists()
    assert not (tmp_path / "one.db").exists()


@pytest.mark.parametrize("content", [None, b"", b"one\ntwo\n", b"\xff"])
def test_a_file_without_one_line_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(DatabaseInvalid, match=str(file)):
        open_usage_store(file=file)
