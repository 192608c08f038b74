"""The states of a client connection: every row of the tables is reached, and nothing else is possible."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.connection_state import LIFE, PHASES, SERVING, IllegalTransition, Life, Phase, Serving
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import request, sidecar_for
from tests.support.memory import connect

UNKNOWN = request("/nothing", method="GET", key=None)
COMPLETION = request(key="e-key")
CHUNKED = request(body=b"", headers={"transfer-encoding": "chunked"}).replace(b"content-length: 0\r\n", b"")
SLOTS = 8
"""Of the pool's replica."""


class Walk:
    """Steps of one connection, and the transitions that were seen between them."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager
        self.connection, self.transport = connect(manager)
        self.seen: set[tuple[enum.Enum, enum.Enum]] = set()
        self.before = self.states()

    def states(self) -> tuple[Phase, Serving, Life]:
        connection = self.connection
        return connection._parser.phase, connection._serving, connection._life

    def step(self, do: Callable[[ClientConnection], object]) -> None:
        """One step; a state that is another behind it has changed."""
        do(self.connection)
        after = self.states()
        self.seen |= {pair for pair in zip(self.before, after, strict=True) if pair[0] is not pair[1]}
        self.before = after

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.step(lambda connection, piece=piece: connection.data_received(piece))  # type: ignore[misc]

    def lose(self) -> None:
        self.step(lambda connection: connection.connection_lost(None))


def expected(table: Mapping[enum.Enum, tuple[enum.Enum, ...]]) -> set[tuple[enum.Enum, enum.Enum]]:
    return {(state, after) for state, row in table.items() for after in row}


def served(manager: ConnectionManager) -> Walk:
    """A request is read in parts, relayed, and its client is gone."""
    walk = Walk(manager)
    head, end = COMPLETION.partition(b"\r\n\r\n")[::2]
    walk.send(b"P", head[1:] + b"\r\n\r\n", end)
    walk.lose()
    return walk


def waits(manager: ConnectionManager) -> Walk:
    """A request finds every slot taken, waits, and its client is gone."""
    walk = Walk(manager)
    others = [connect(manager)[0] for _ in range(SLOTS)]
    for other in others:
        other.data_received(COMPLETION)
    walk.send(COMPLETION)
    walk.lose()
    for other in others:
        other.connection_lost(None)
    return walk


def delayed(manager: ConnectionManager) -> Walk:
    """A second unmetered answer is delayed, and given when the sidecar stops."""
    walk = Walk(manager)
    walk.send(UNKNOWN, UNKNOWN)
    walk.step(ClientConnection.drain)
    return walk


def closed_when_idle(manager: ConnectionManager) -> Walk:
    walk = Walk(manager)
    walk.step(ClientConnection.close_if_idle)
    walk.lose()
    return walk


def refused_at_its_head(manager: ConnectionManager) -> Walk:
    walk = Walk(manager)
    walk.send(b"G", b"\x00")
    walk.lose()
    return walk


def refused_in_its_body(manager: ConnectionManager) -> Walk:
    """The connection lingers after a bad chunk, and is closed when the sidecar stops."""
    walk = Walk(manager)
    walk.send(CHUNKED[:9], CHUNKED[9:], b"x\r\n")
    walk.step(ClientConnection.drain)
    return walk


def lost(manager: ConnectionManager) -> Walk:
    walk = Walk(manager)
    walk.lose()
    return walk


WALKS = [served, waits, delayed, closed_when_idle, refused_at_its_head, refused_in_its_body, lost]


async def silent(request: Received, writer: asyncio.StreamWriter) -> None:
    """An engine that accepts requests and does not answer them."""


async def test_every_row_is_reached(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = silent
    async with sidecar_for(engine.port, tmp_path, unmetered_rate=0.1) as sidecar:
        seen = {pair for walk in WALKS for pair in walk(sidecar.manager).seen}
    for table in (PHASES, SERVING, LIFE):
        assert expected(table) <= seen
    # A step may lead through several states: nothing else is seen but rows, and ways along rows.
    assert seen <= along(PHASES) | along(SERVING) | along(LIFE)


def along(table: Mapping[enum.Enum, tuple[enum.Enum, ...]]) -> set[tuple[enum.Enum, enum.Enum]]:
    """All pairs of states with a way between them."""
    pairs = expected(table)
    while more := {(a, d) for a, b in pairs for c, d in pairs if b is c} - pairs:
        pairs |= more
    return pairs


@pytest.mark.parametrize("table", [PHASES, SERVING, LIFE])
def test_every_state_has_a_row_and_knows_it(table: Mapping[Phase, tuple[Phase, ...]]) -> None:
    [kind] = {type(state) for state in table}
    assert set(table) == set(kind)
    assert all(state.following == row for state, row in table.items())


async def test_any_other_transition_is_an_error(engine: FakeEngine, tmp_path: Path) -> None:
    """The connection cannot leave the tables: each change of a state is checked where it is made."""
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        connection, _ = connect(sidecar.manager)
        parser = connection._parser
        for parser.phase in Phase:
            for phase in set(Phase) - set(PHASES[parser.phase]):
                with pytest.raises(IllegalTransition):
                    parser._enter(phase)
        for connection._serving in Serving:
            for serving in set(Serving) - set(SERVING[connection._serving]):
                with pytest.raises(IllegalTransition):
                    connection._serve_by(serving, None)
        for connection._life in Life:
            for life in set(Life) - set(LIFE[connection._life]):
                with pytest.raises(IllegalTransition):
                    connection._become(life)
        sidecar.manager.remove(connection)


def test_states_change_only_where_they_are_checked() -> None:
    """No other line of the shipped code assigns a state."""
    found = {}
    for name in ("connection", "receiving", "request_parser", "tls"):
        source = (Path(__file__).parents[4] / "sidecar" / "proxy" / f"{name}.py").read_text()
        for attribute in ("self.phase = ", "self._serving = ", "self._exchange = ", "self._life = "):
            found[name, attribute.split()[0]] = source.count(attribute)
    assert {place: count for place, count in found.items() if count} == {
        ("request_parser", "self.phase"): 2,
        ("receiving", "self._serving"): 1,
        ("connection", "self._serving"): 1,
        ("connection", "self._exchange"): 1,
        ("receiving", "self._life"): 2,
    }
