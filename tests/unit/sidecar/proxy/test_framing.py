"""The framing corpus through the parser alone: no sockets, no event loop, no clock.

Every case is parsed whole, byte by byte, and with trailing bytes: another request in the same read. Then
it is sent behind a request whose head is cached: the cache must not take what the parser reads otherwise.
The parser, the decisions about heads and the framing towards the engine are the shipped ones.
``test_framing_live.py`` sends a sample to a running sidecar.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.options import Addresses, Origin
from sidecar.app import Sidecar
from sidecar.decisions import Refusal
from sidecar.dialects.bodies import Malformed
from sidecar.proxy.answers import refusal_bytes
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.events import (
    BadRequest,
    BodyOutgrew,
    ContinueExpected,
    HeadReceived,
    NeedData,
    Paused,
    RequestReceived,
)
from sidecar.proxy.head_cache import CachedHead
from sidecar.proxy.head_policy import Request, decide_head, extend_body
from sidecar.proxy.request_parser import RequestParser
from sidecar.settings import Settings
from tests.support.framing import CASES, REPLIES
from tests.support.framing.cases import Case, Relayed
from tests.support.framing.judge import FIRST, LAST, Outcome, as_engine_reads, check_answer, split, with_last
from tests.support.framing.sizes import MOST_BODY, MOST_HEAD
from tests.support.harness import POOL
from tests.support.strict import answers, requests
from tokenpool.outcomes import Reason

HOST = b"h:1"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ConnectionManager:
    """What a sidecar decides with, of a sidecar that does not run."""
    file = tmp_path_factory.mktemp("framing") / "pool.yaml"
    file.write_text(POOL)
    return Sidecar(settings(file)).manager


def settings(file: Path) -> Settings:
    nowhere = Addresses.of("127.0.0.1", 0)
    return Settings(
        config=file,
        upstream=Origin("h", 1),
        listen=nowhere,
        admin=nowhere,
        max_head_bytes=MOST_HEAD,
        max_body_bytes=4 * MOST_BODY,  # a quarter of it may be sent where nothing is charged
        large_body_rate=1 << 40,
        unmetered_rate=1e6,
    )


class Reader:
    """Plays the connection's part towards one parser, and collects the requests in their order."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager
        self.parser = RequestParser(manager.parser_limits)
        self.holds = SimpleNamespace(caller=manager.bounds.unidentified, buffered=0)
        self.holds.caller.add_connection()
        self.requests: list[tuple[Request, int]] = []
        """Each with the number of times that its client was to be told to continue."""
        self.request: Request | None = None
        self.continue_count = 0

    def read(self, pieces: Iterable[bytes]) -> None:
        """Receive pieces, and act on all events after each."""
        parser = self.parser
        for piece in pieces:
            parser.receive(piece, 0.0)
            while not isinstance(event := parser.next_event(), NeedData):
                if isinstance(event, Paused):
                    parser.begin_turn(0.0)
                else:
                    self.act(event)
            assert not parser.unread
            assert not parser.has_events

    def act(self, event: object) -> None:
        """Act on an event as a connection that answers at once."""
        if isinstance(event, HeadReceived):
            self.request = request = Request(event.head)
            self.go_on(decide_head(event, request, self.holds, self.manager))
        elif isinstance(event, BodyOutgrew):
            assert self.request is not None
            if event.size > self.request.body_bytes:
                self.go_on(extend_body(event.size, self.request, self.holds, self.manager))
        elif isinstance(event, ContinueExpected):
            assert self.request is not None
            self.continue_count += 1
            self.go_on(self.request.refusal)
        elif isinstance(event, RequestReceived):
            assert self.request is not None
            self.request.body, self.request.closes = event.body, event.closes
            self.complete(self.request)
        elif isinstance(event, BadRequest):
            request = self.request or Request(event.head)
            request.refusal, request.closes = Refusal(event.reason, event.message), True
            self.complete(request)

    def go_on(self, refusal: Refusal | None) -> None:
        """Read the body, or refuse the request and read nothing more."""
        request = self.request
        assert request is not None
        if refusal is None:
            self.parser.allow_body(request.body_bytes)
            return
        self.parser.end()
        request.refusal, request.closes = refusal, True
        self.continue_count = 0
        self.complete(request)

    def complete(self, request: Request) -> None:
        self.holds.caller.release_bytes(request.reserved_bytes)
        self.requests.append((request, self.continue_count))
        self.request, self.continue_count = None, 0

    def leave(self) -> None:
        """End the connection: nothing is held any more."""
        self.parser.close()
        self.holds.caller.remove_connection()


def refusal_of(request: Request) -> Refusal | None:
    """Why a request is not relayed: its head, its framing, or a body that means nothing."""
    if request.refusal is None and request.route is not None and request.route.parse is not None:
        try:
            request.route.parse(request.body)
        except Malformed as error:
            return Refusal(Reason.MALFORMED, str(error), error.param, account=request.account)
    return request.refusal


def check(reader: Reader, outcomes: list[Outcome]) -> None:
    """Whether the requests that were read are exactly those of the outcomes."""
    assert len(reader.requests) == len(outcomes), [r.head.target for r, _ in reader.requests]
    for (request, continues), outcome in zip(reader.requests, outcomes, strict=True):
        refusal = refusal_of(request)
        closes = request.closes or not request.head.keeps_alive
        if isinstance(outcome, Relayed):
            assert refusal is None
            request.head.identify(reader.manager.request_ids)
            wire = reader.manager.framer.frame(request.head, len(request.body), None) + request.body
            assert requests(wire) == [as_engine_reads(outcome, HOST, is_identified=False)]
            assert outcome.continues is None or continues == outcome.continues
            assert closes == outcome.closes
        else:
            assert refusal is not None
            raw = refusal_bytes(refusal, request.head, reader.manager.controller.engine.cors, closes=closes)
            [answer], left = answers(raw, [b"HEAD" if outcome.is_head else b"GET"])
            assert left == b""
            check_answer(answer, outcome)


WAYS = {
    "whole": lambda raw: [raw, LAST],
    "byte by byte": lambda raw: [*split(raw), LAST],
    "with trailing bytes": lambda raw: [raw + LAST],
}


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_request_is_read_in_one_way_or_refused(case: Case, manager: ConnectionManager) -> None:
    for way, pieces in WAYS.items():
        reader = Reader(manager)
        reader.read(pieces(case.raw))
        try:
            check(reader, with_last(case.outcomes))
        except AssertionError as error:
            error.add_note(f"{case.id}, {way}: {case.why} (RFC {case.rfc}); sent {case.raw[:300]!r}")
            raise
        reader.leave()
    assert manager.bounds.buffered == manager.bounds.connections == 0


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_cached_head_is_read_as_the_parser_reads_it(case: Case, manager: ConnectionManager) -> None:
    """The cache may take a message only for what the parser takes it for, itself included."""
    reader = Reader(manager)
    reader.read([FIRST, case.raw])
    (first, _), *read = reader.requests
    reader.leave()
    for message, head in ((FIRST, first.head), (case.raw, read[0][0].head if read else None)):
        cached = CachedHead.of(message)
        body = cached.body_of(case.raw) if cached is not None else None
        if body is not None and head is not None and read[0][0].refusal is None:
            [(request, _)] = read
            assert request.body == body
            assert [h for h in request.head.headers if h[0] != b"content-length"] == [
                h for h in head.headers if h[0] != b"content-length"
            ]


def test_the_corpus_is_large_and_each_case_is_another() -> None:
    assert len(CASES) >= 300
    assert len({case.id for case in CASES}) == len({case.raw for case in CASES}) == len(CASES)
    assert len({reply.id for reply in REPLIES}) == len(REPLIES)
    inputs = {(reply.method, reply.ends, reply.reads or reply.raw) for reply in REPLIES}
    assert len(inputs) == len(REPLIES)
