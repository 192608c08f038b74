"""Brings the schema of a usage store up to date."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from importlib import resources

from coordinator.usage.statements import Statements


def files() -> list[tuple[int, str]]:
    """The number and the text of each file of this release, in order."""
    found = []
    for each in resources.files(__package__).iterdir():
        match = re.fullmatch(r"(\d{4})_\w+\.sql", each.name)
        if match is not None:
            found.append((int(match[1]), each.read_text()))
    return sorted(found)


def migrate(statements: Statements, begin: Sequence[str]) -> None:
    """Run the files that have not run yet, all or none of them.

    ``begin`` begins a transaction that keeps other processes from migrating. A database that a later release
    has migrated is used as it is, because a migration only adds.
    """
    for each in begin:
        statements.run(each)
    statements.run("CREATE TABLE IF NOT EXISTS usage_migrations (number BIGINT PRIMARY KEY)")
    done = {number for (number,) in statements.run("SELECT number FROM usage_migrations")}
    for number, text in files():
        if number not in done:
            for statement in _statements(text):
                statements.run(statement)
            statements.run("INSERT INTO usage_migrations (number) VALUES (?)", [number])
    if not statements.run("SELECT identity FROM usage_store"):
        statements.run("INSERT INTO usage_store (identity) VALUES (?)", [secrets.token_hex(8)])
    statements.run("COMMIT")


def _statements(text: str) -> list[str]:
    """The statements of a file. No text in it has a semicolon."""
    code = re.sub(r"--[^\n]*", "", text)
    return [each.strip() for each in code.split(";") if each.strip()]
