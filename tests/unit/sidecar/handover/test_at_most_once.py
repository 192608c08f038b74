"""A request that comes with its ask runs at most once, wherever its connection breaks.

Both ends are the shipped ones. A test delivers their bytes in pieces, and closes the connection after some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engine.address import EngineAddress
from sidecar.handover.asking import PeerLink, PeerLinks
from sidecar.handover.peer_port import EngineLink, PeerPort
from sidecar.proxy.upstream import NO_ROOM
from tests.support.domain_builders import ASK, account, cost
from tests.unit.sidecar.handover.test_asking import ADDRESS, HEAD, KEY, Asker, Socket
from tests.unit.tokenpool.control.test_driver_effects import Recorded
from tokenpool.accounting.ticket import Place, SentAsk, Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\n", b'{"a": 1}'


class Wire(asyncio.Transport):
    """Keeps the bytes that one end has written and that the other one has not read."""

    def __init__(self) -> None:
        super().__init__(extra={"socket": Socket()})
        self.waiting = b""
        self.written = 0
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.waiting += bytes(data)
        self.written += len(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def take(self, most: int) -> bytes:
        """The next bytes for the other end."""
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        """No effect."""

    def resume_reading(self) -> None:
        """No effect."""

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_aborted = True


class Exchange:
    """The owner of one request."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def on_head(self, head: object) -> None:
        """The response begins."""

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        if is_complete:
            self.ends.append("served")

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        assert not was_reused  # the exchange would send it again
        self.ends.append("lost")

    def on_refused(self, error: OSError) -> None:
        assert error.errno == NO_ROOM
        self.ends.append("refused")

    def preempt(self) -> None:
        raise AssertionError("no guarantee needs its room")


class Both:
    """A link of one sidecar, and the session at the peer port of another one that has so many slots."""

    def __init__(self, slots: int) -> None:
        ports = Recorded()
        control = AdmissionControl(ports.at, AdmissionQueue(QueueSettings()))
        control.engine_changed(EngineRoom(float(slots), 1e6), ports.at)
        control.is_serving = True
        self.control = control
        self.port = PeerPort(
            Driver(control, ports),
            cast(EngineAddress, None),
            ports.now,
            connection_refused=lambda: None,
            longest_request=1 << 20,
            connect_timeout=1.0,
            upstream_timeout=60.0,
        )
        self.port.keys = [KEY]
        self.links = PeerLinks(ports.now)
        self.links.key = KEY
        self.links.connect_to(Asker())
        self.to_peer, self.to_asker, self.to_engine = Wire(), Wire(), Wire()
        self.engine = EngineLink(self.port.engine)
        self.engine.connection_made(self.to_engine)
        self.port.engine.release(self.engine)
        self.session = self.port.session()
        self.session.connection_made(self.to_asker)
        self.link = PeerLink(self.links, ADDRESS)
        self.link.connection_made(self.to_peer)
        while self.to_peer.waiting or self.to_asker.waiting:
            self.link.data_received(self.to_asker.take(1 << 20))
            if self.to_peer.waiting:
                self.session.data_received(self.to_peer.take(1 << 20))
        self.links.release(self.link)

    def ask_and_cancel(self, number: int) -> None:
        """Ask for room on an unused link, and take it elsewhere before the answer is read."""
        idle = self.links.idle_link(ADDRESS)
        if idle is None:
            return
        self.links.release(idle)
        pending = PendingRequest(account(), ASK, cost(), 0.0, longest_wait_s=5.0)
        asked = PeerAsk(number, "peer", ADDRESS, pending, 5.0, 0.0)
        self.links.ask(asked)
        self.session.data_received(self.to_peer.take(1 << 20))  # its answer is on the way
        self.links.cancel(asked)

    def send(self, number: int) -> Exchange | None:
        """Send a request together with its ask; ``None`` if the connection is in use or closed."""
        place = Place("peer", ADDRESS, number, 0.0, SentAsk("within", ()))
        ticket = Ticket(account(), ASK, cost(), 0.0, place)
        connection = self.links.connection_of(ticket, place).take()
        if connection is None:
            return None
        made = Exchange()
        connection.send(made, *REQUEST)
        return made

    def close(self) -> None:
        """The connection breaks. Bytes on the way are lost."""
        self.session.connection_lost(None)
        self.link.connection_lost(None)


steps = st.lists(
    st.tuples(st.sampled_from(("to peer", "to asker", "engine")), st.integers(1, 120)), max_size=30
)


@pytest.mark.parametrize("slots", [0, 1])
@given(steps=steps, requests=st.integers(1, 3), cancels=st.booleans())
def test_a_request_with_its_ask_runs_at_most_once(
    slots: int, steps: list[tuple[str, int]], requests: int, cancels: bool
) -> None:
    asyncio.run(_check(slots, steps, requests, cancels))


async def _check(slots: int, steps: list[tuple[str, int]], requests: int, cancels: bool) -> None:
    both = Both(slots)
    whole = len(REQUEST[0]) + len(REQUEST[1])
    for number in range(2, 2 * requests + 1, 2):
        if cancels:
            both.ask_and_cancel(number - 1)
        before, has_answered = both.to_engine.written, False
        exchange = both.send(number)
        if exchange is None:
            break  # the connection broke during the request before
        for where, size in steps:
            if where == "to peer" and both.to_peer.waiting:
                both.session.data_received(both.to_peer.take(size))
            elif where == "to asker" and both.to_asker.waiting:
                both.link.data_received(both.to_asker.take(size))
            elif where == "engine" and both.to_engine.written - before == whole and not has_answered:
                has_answered = True
                both.engine.data_received(HEAD + b"{}")
        if not exchange.ends and not both.to_engine.written - before:
            # Nothing is lost: once all bytes arrive, the peer has begun or the request goes elsewhere.
            both.session.data_received(both.to_peer.take(1 << 20))
            both.link.data_received(both.to_asker.take(1 << 20))
            assert exchange.ends == (["refused"] if not both.to_engine.written - before else [])
        if not exchange.ends:
            both.close()
        begun = both.to_engine.written - before
        assert len(exchange.ends) == 1
        assert begun <= whole  # never twice
        if exchange.ends == ["refused"]:
            assert begun == 0  # so it may run elsewhere
        elif exchange.ends == ["served"]:
            assert begun == whole
    both.close()
    assert both.control.peer_accounts.sequences == 0
