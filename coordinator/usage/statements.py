"""Statements of SQL on one connection, written once for all databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.usage.database import Connection


class Statements:
    """Runs statements in which ``?`` stands for a value. No statement has another ``?``."""

    def __init__(self, connection: Connection, placeholder: str) -> None:
        self._connection = connection
        self._placeholder = placeholder

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement. Returns the rows of its result, or none."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(self._written(statement), values)
            return cursor.fetchall() if cursor.description is not None else []
        finally:
            cursor.close()

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run one statement. Returns the number of rows that it changed."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(self._written(statement), values)
            return cursor.rowcount
        finally:
            cursor.close()

    def _written(self, statement: str) -> str:
        return statement.replace("?", self._placeholder)


def places(rows: Sequence[Sequence[Any]]) -> str:
    """The places for the values of rows of equal length, one row or more, as they stand after ``VALUES``."""
    one = f"({', '.join('?' * len(rows[0]))})"
    return ", ".join([one] * len(rows))
