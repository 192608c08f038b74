"""A connection to another sidecar, whose frames and time a test chooses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

import pytest

from sidecar.handover.asking import LATE_S, MOST_IDLE, PeerLink, PeerLinks, Result
from sidecar.handover.frames import (
    KEEP,
    NONCE_BYTES,
    PEER,
    REFUSED,
    VERSION,
    Frame,
    FrameReader,
    Kind,
    decode_ask,
    frame,
    numbered,
    proof,
)
from sidecar.proxy.upstream import NO_ROOM, Connection, Connections
from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.ticket import Place, SentAsk, Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk

KEY = b"k" * 32
ADDRESS = "peer:1"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Socket:
    """A socket that takes every option."""

    family = socket.AF_INET

    def setsockopt(self, *option: int) -> None:
        """Set an option."""


class Transport(asyncio.Transport):
    """Keeps what is written, and whether its reading is paused."""

    def __init__(self) -> None:
        super().__init__(extra={"socket": Socket()})
        self.is_paused = self.is_aborted = False
        self._frames = FrameReader(1 << 20)
        self._written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written += bytes(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._written += b"".join(list_of_data)

    def written(self) -> list[Frame]:
        """The frames that were written since the last call."""
        data, self._written = self._written, b""
        return list(self._frames.receive(data))

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Asker:
    """A driver whose answer to an offer is a function of the test."""

    def __init__(self) -> None:
        self.offered: Callable[[PeerAsk], bool] = lambda ask: True
        self.refused: list[bool] = []
        """Asks that ended without room: whether the peer failed."""
        self.answers: list[tuple[int, bool]] = []
        """The answers to requests that were sent together with their asks, by number of the ask."""

    def peer_offered(self, ask: PeerAsk) -> bool:
        """See ``asking.Asker``."""
        return self.offered(ask)

    def peer_refused(self, ask: PeerAsk, *, has_failed: bool = False) -> None:
        """See ``asking.Asker``."""
        self.refused.append(has_failed)

    def place_answered(self, place: Place, *, has_room: bool) -> None:
        """See ``asking.Asker``."""
        self.answers.append((place.number, has_room))


class Exchange:
    """An exchange that stops reading when the response begins, as for a client that reads slowly."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link
        self.body = b""

    def on_head(self, head: object) -> None:
        self._link.pause()

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        self.body += body

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        raise AssertionError("the connection is lost")

    def on_refused(self, error: OSError) -> None:
        raise error

    def preempt(self) -> None:
        raise AssertionError("the request is preempted")


class Pair:
    """The links of a sidecar, and one link that has proved the key and is unused."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asker = Asker()
        self.links = PeerLinks(lambda: self.now)
        self.links.key = KEY
        self.links.connect_to(self.asker)
        self.transport = Transport()
        self.link = PeerLink(self.links, ADDRESS)
        self.link.connection_made(self.transport)
        nonce = b"p" * NONCE_BYTES
        self.receive(frame(Kind.HELLO, bytes([VERSION]) + nonce))
        (proved,) = self.transport.written()
        theirs = proved.payload[:NONCE_BYTES]
        self.receive(frame(Kind.WELCOME, proof(KEY, PEER, nonce, theirs)))
        assert self.link.ready.done()
        self.links.release(self.link)

    def receive(self, data: bytes) -> None:
        """The other sidecar sends bytes."""
        self.link.data_received(data)

    def ask(self, number: int, wait_s: float = 5.0) -> PeerAsk:
        """Ask for room on the link."""
        pending = PendingRequest(account(), ASK, cost(), self.now, longest_wait_s=wait_s)
        made = PeerAsk(number, "peer", ADDRESS, pending, wait_s, self.now)
        self.links.ask(made)
        assert [each.kind for each in self.transport.written()] == [Kind.ASK]
        return made

    def offer(self, number: int) -> None:
        """The other sidecar offers room."""
        self.receive(frame(Kind.OFFER, number.to_bytes(4)))


def ticket_at(place: Place) -> Ticket:
    """A ticket whose request runs at this place."""
    return Ticket(account(), ASK, cost(), 0.0, place)


def connections(pair: Pair, ask: PeerAsk) -> Connections:
    """The connections of a request that takes the offer of an ask."""
    return pair.links.connection_of(ticket_at(ask.place), ask.place)


async def test_a_link_that_is_released_while_it_is_paused_reads_on() -> None:
    pair = Pair()

    def starts(ask: PeerAsk) -> bool:
        connection = connections(pair, ask).take()
        assert connection is not None
        connection.send(exchange, b"POST / HTTP/1.1\r\n\r\n", b"")
        return True

    exchange = Exchange(pair.link)
    pair.asker.offered = starts
    pair.ask(1)
    pair.offer(1)
    assert [each.kind for each in pair.transport.written()] == [Kind.DATA]
    # One read has two frames: the first one pauses the link, and the second one completes the response.
    pair.receive(frame(Kind.DATA, HEAD) + frame(Kind.DATA, b"{}"))
    assert exchange.body == b"{}"
    assert pair.transport.written() == [(Kind.END, KEEP)]
    assert not pair.transport.is_paused
    pair.ask(2)  # on the same connection


class Relayed:
    """An exchange that notes its events, and the frames that were written at the end of the response."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.events: list[object] = []

    def on_head(self, head: object) -> None:
        self.events.append("head")

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        self.events.append((body, is_complete, self._pair.transport.written()))

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        self.events.append(("lost", before_response, was_reused))

    def on_refused(self, error: OSError) -> None:
        raise error

    def preempt(self) -> None:
        raise AssertionError("the request is preempted")

    def send(self, number: int) -> Connection:
        """Ask for room, and send the request when it is offered. Returns its connection."""
        used: list[Connection] = []

        def starts(ask: PeerAsk) -> bool:
            connection = connections(self._pair, ask).take()
            assert connection is not None
            connection.send(self, b"POST / HTTP/1.1\r\n\r\n", b"{}")
            used.append(connection)
            return True

        self._pair.asker.offered = starts
        self._pair.ask(number)
        self._pair.offer(number)
        ((kind, payload),) = self._pair.transport.written()
        assert (kind, payload) == (Kind.DATA, b"POST / HTTP/1.1\r\n\r\n{}")
        return used[0]


async def test_the_client_gets_the_response_before_the_peer_gets_the_end() -> None:
    pair = Pair()
    exchange = Relayed(pair)
    exchange.send(1)
    pair.receive(frame(Kind.DATA, HEAD + b"{}"))
    assert exchange.events == ["head", (b"{}", True, [])]
    assert pair.transport.written() == [(Kind.END, KEEP)]


async def test_a_link_keeps_its_parser_while_the_engine_keeps_its_connection() -> None:
    pair = Pair()
    exchange = Relayed(pair)
    first = exchange.send(1)
    pair.receive(frame(Kind.DATA, HEAD + b"{}"))
    pair.transport.written()
    assert exchange.send(2) is first
    pair.receive(frame(Kind.DATA, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"))
    assert pair.transport.written() == [(Kind.END, b"")]
    assert exchange.send(3) is not first
    pair.receive(frame(Kind.DATA, HEAD + b"{}"))
    assert exchange.events == ["head", (b"{}", True, [])] * 3


async def test_a_request_that_is_lost_on_a_used_link_is_not_sent_again() -> None:
    """Its engine may have begun with it."""
    pair = Pair()
    exchange = Relayed(pair)
    exchange.send(1)
    pair.receive(frame(Kind.DATA, HEAD + b"{}"))
    pair.transport.written()
    exchange.send(2)
    pair.link.connection_lost(None)
    assert exchange.events[2:] == [("lost", True, False)]


@pytest.mark.parametrize("takes", [True, False])
async def test_the_room_of_a_request_that_does_not_start_is_returned_at_once(takes: bool) -> None:
    pair = Pair()
    pair.asker.offered = lambda ask: takes  # its delivery fails, or it has found room elsewhere
    pair.ask(1)
    pair.offer(1)
    assert pair.transport.written() == [(Kind.CANCEL, (1).to_bytes(4))]
    pair.ask(2)  # on the same connection


async def test_an_ask_that_follows_a_cancelled_one_at_once_is_not_cancelled() -> None:
    pair = Pair()

    def asks_again(ask: PeerAsk) -> bool:
        pair.links.cancel(ask)
        assert [each.kind for each in pair.transport.written()] == [Kind.CANCEL]
        pair.ask(2)
        return False

    pair.asker.offered = asks_again
    pair.ask(1)
    pair.offer(1)
    assert pair.transport.written() == []
    pair.asker.offered = lambda ask: False
    pair.offer(2)
    assert pair.transport.written() == [(Kind.CANCEL, (2).to_bytes(4))]


async def test_an_ask_is_timed_by_the_clock_of_the_sidecar() -> None:
    pair = Pair()
    pair.ask(1)
    pair.now += 0.02
    pair.offer(1)
    assert pair.links.results == {Result.TAKEN: 1}
    assert pair.links.waited_s == pytest.approx(0.02)
    pair.transport.written()
    pair.ask(2, wait_s=5.0)
    pair.now += 5.0
    pair.links.close_idle()
    assert pair.asker.refused == []
    pair.now += LATE_S + 0.1
    pair.links.close_idle()  # its peer is silent
    assert pair.asker.refused == [True]
    assert pair.transport.is_aborted


# --- requests that are sent together with their asks ---


class Sent:
    """An exchange whose request is sent together with its ask."""

    def __init__(self, pair: Pair, number: int = 7) -> None:
        self.pair = pair
        self.place = Place("peer", ADDRESS, number, 0.0, SentAsk("assured", ((1, 2, 3),)))
        self.connections = pair.links.connection_of(ticket_at(self.place), self.place)
        self.events: list[object] = []

    def start(self) -> None:
        """Send the request, as the exchange does."""
        connection = self.connections.take()
        if connection is None:
            self.connections.connect(self)
        else:
            self.on_connected(connection)

    def on_connected(self, connection: Connection) -> None:
        connection.send(self, b"POST / HTTP/1.1\r\n\r\n", b"{}")

    def on_head(self, head: object) -> None:
        self.events.append("head")

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        self.events.append((body, is_complete))

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        self.events.append(("lost", before_response, was_reused))

    def on_refused(self, error: OSError) -> None:
        self.events.append(("refused", error.errno == NO_ROOM))

    def preempt(self) -> None:
        self.events.append("preempted")


def sent_on(pair: Pair, number: int = 7) -> Sent:
    """A request that was sent together with its ask."""
    made = Sent(pair, number)
    made.start()
    (asked, data) = pair.transport.written()
    assert asked.kind is Kind.ASK
    fields = decode_ask(asked.payload)
    assert (fields.number, fields.brings_request, fields.longest_wait_ms) == (number, True, 0)
    assert (fields.sequences, fields.kv_tokens) == (cost().sequences, cost().kv_tokens)
    assert (fields.standing, fields.prompt) == ("assured", ((1, 2, 3),))
    assert data == (Kind.DATA, b"POST / HTTP/1.1\r\n\r\n{}")
    return made


async def test_an_ask_and_its_request_are_sent_together() -> None:
    pair = Pair()
    for number in (1, 2):
        exchange = sent_on(pair, number)
        assert pair.links.running == 1
        pair.receive(frame(Kind.DATA, HEAD + b"{}"))
        assert exchange.events == ["head", (b"{}", True)]
        assert pair.transport.written() == [(Kind.END, KEEP)]
    assert pair.asker.answers == [(1, True), (2, True)]
    assert pair.links.results == {Result.TAKEN: 2}
    assert sum(pair.links.late) == 0  # they waited for no offer


async def test_a_peer_without_room_refuses_both_and_the_link_is_free_again() -> None:
    pair = Pair()
    exchange = sent_on(pair)
    pair.receive(numbered(Kind.REFUSE, 7))
    assert exchange.events == [("refused", True)]
    assert pair.asker.answers == [(7, False)]
    assert pair.links.results == {Result.REFUSED: 1}
    pair.ask(8)  # on the same connection


async def test_a_late_offer_shows_that_the_peer_has_begun() -> None:
    pair = Pair()
    exchange = sent_on(pair)
    pair.receive(numbered(Kind.OFFER, 7))
    assert pair.asker.answers == [(7, True)]
    pair.receive(frame(Kind.DATA, HEAD + b"{}"))
    assert exchange.events == ["head", (b"{}", True)]
    assert pair.asker.answers == [(7, True)]


@pytest.mark.parametrize("late", [Kind.OFFER, Kind.REFUSE])
@pytest.mark.parametrize("has_room", [True, False])
async def test_an_answer_that_crossed_its_cancellation_is_not_the_answer_to_a_request(
    late: Kind, has_room: bool
) -> None:
    pair = Pair()
    cancelled = pair.ask(6)
    pair.links.cancel(cancelled)
    pair.transport.written()
    exchange = sent_on(pair, 7)
    pair.receive(numbered(late, 6))
    assert exchange.events == []
    assert pair.asker.answers == []
    if has_room:
        pair.receive(frame(Kind.DATA, HEAD + b"{}"))
        assert exchange.events == ["head", (b"{}", True)]
    else:
        pair.receive(numbered(Kind.REFUSE, 7))
        assert exchange.events == [("refused", True)]
    assert pair.asker.answers == [(7, has_room)]


@pytest.mark.parametrize("end", ["closed", "lost", "other number"])
async def test_a_request_is_not_sent_again_if_the_peer_may_have_begun(end: str) -> None:
    pair = Pair()
    exchange = sent_on(pair)
    if end == "closed":
        pair.link.connection_lost(None)
    elif end == "lost":
        pair.receive(frame(Kind.LOST))
    else:
        pair.receive(numbered(Kind.REFUSE, 8))
    assert exchange.events == [("lost", True, False)]
    assert pair.links.running == 0


async def test_a_peer_whose_engine_is_down_has_not_begun() -> None:
    pair = Pair()
    exchange = sent_on(pair)
    pair.receive(frame(Kind.LOST, REFUSED))
    assert exchange.events == [("refused", False)]


async def test_a_client_that_leaves_before_the_answer_ends_the_request_there() -> None:
    pair = Pair()
    exchange = Sent(pair)
    connection = exchange.connections.take()
    assert connection is not None
    exchange.on_connected(connection)
    connection.abort()
    assert pair.transport.is_aborted
    assert pair.links.results == {Result.CANCELLED: 1}
    assert exchange.events == []


async def test_without_an_unused_connection_the_request_asks_first() -> None:
    pair = Pair()
    first, second = sent_on(pair, 1), Sent(pair, 2)
    second.start()
    assert second.events == []
    await asyncio.sleep(0)
    assert second.events == [("refused", True)]
    assert pair.transport.written() == []
    assert first.events == []


async def test_a_refusal_while_there_are_enough_unused_connections_closes_the_link() -> None:
    pair = Pair()
    exchange = sent_on(pair)
    spare = [PeerLink(pair.links, ADDRESS) for _ in range(MOST_IDLE)]
    for each in spare:
        pair.links.release(each)
    pair.receive(numbered(Kind.REFUSE, 7))
    assert exchange.events == [("refused", True)]
    assert pair.transport.is_aborted
