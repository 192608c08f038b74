"""Transactions of a SQL database, beside the event loop.

One thread has the connection and runs the calls in turn, because the drivers block. A call that fails closes
the connection, and the next call opens another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from coordinator.usage.database import Connection, Database
from coordinator.usage.statements import Statements
from coordinator.usage.worker import Busy, Worker

CLOSE_S = 5.0
"""The longest wait for the end of a call at a close, in seconds."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Failures:
    """The exceptions that callers get, each with a text."""

    down: type[Exception]
    """The database cannot be reached, or gives no answer in time."""
    refused: type[Exception]
    """The database does not accept the values."""


class Transactions:
    """Runs each call as one transaction. ``prepare`` brings the schema up to date on a new connection.

    ``answer_s`` is the longest wait for the result of a call, in seconds.
    """

    def __init__(
        self, database: Database, prepare: Callable[[Statements], None], answer_s: float, failures: Failures
    ) -> None:
        self.database = database
        self._prepare = prepare
        self._answer_s = answer_s
        self._failures = failures
        self._worker = Worker()
        self._connection: Connection | None = None

    async def run(self, call: Callable[[Statements], _T]) -> _T:
        """The result of a call. Raises one of the failures."""
        name, down = self.database.name, self._failures.down
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._worker.run(lambda: self._call(call))
        except TimeoutError as error:
            raise down(f"{name}: no answer within {self._answer_s:g} s") from error
        except Busy as error:
            raise down(f"{name}: an earlier call has no answer yet") from error

    async def close(self) -> None:
        """Close the connection, and end the thread."""
        await self._worker.stop(self._disconnect, CLOSE_S)

    # --- the thread ---

    def _call(self, call: Callable[[Statements], _T]) -> _T:
        database = self.database
        try:
            statements = self._connected()
            statements.run("BEGIN")
            result = call(statements)
            statements.run("COMMIT")
            return result
        except database.data_failures as error:
            self._disconnect()
            raise self._failures.refused(f"{database.name}: {_first_line(error)}") from error
        except database.failures as error:
            self._disconnect()
            raise self._failures.down(f"{database.name}: {_first_line(error)}") from error
        except BaseException:
            self._disconnect()
            raise

    def _connected(self) -> Statements:
        connection = self._connection
        if connection is not None:
            return Statements(connection, self.database.placeholder)
        connection = self._connection = self.database.connect()
        statements = Statements(connection, self.database.placeholder)
        self._prepare(statements)
        return statements

    def _disconnect(self) -> None:
        """Close the connection. An open transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*self.database.failures):
                connection.close()


def _first_line(error: BaseException) -> str:
    """The first line of a driver's message. The further ones have statements and values."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
