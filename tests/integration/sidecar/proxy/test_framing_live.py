"""A sample of the framing corpus, and all replies of engines, against a real sidecar on loopback.

Every case of the sample is sent in one write, byte by byte, and behind a request that the sidecar has
served: there it may use its cached heads. The strict reader reads what the engine received, from raw
bytes. A last request shows whether sidecar, client and engine still agree where messages begin.
``test_framing.py`` has all cases of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import cast

import pytest
import pytest_asyncio

from sidecar.app import Sidecar
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.framing import CASES, REPLIES
from tests.support.framing.cases import Broken, Case, Relayed, Reply, get
from tests.support.framing.judge import (
    FIRST,
    LAST,
    READ_FIRST,
    Outcome,
    as_engine_reads,
    check_answer,
    method_of,
    split,
    with_last,
)
from tests.support.framing.sizes import MOST_BODY, MOST_HEAD
from tests.support.harness import is_whole, sidecar_for, until
from tests.support.strict import answers, requests

REPLIED = b"/version?reply"
LONGEST_S = 30.0
EVERY = 14


def sample() -> list[Case]:
    """Every 14th case of each kind (the part of its id before the slash), from the first on."""
    kinds: dict[str, list[Case]] = {}
    for case in CASES:
        kinds.setdefault(case.id.partition("/")[0], []).append(case)
    return [case for kind in kinds.values() for case in kind[::EVERY]]


SAMPLE = sample()

Guarded = tuple[Sidecar, FakeEngine]


async def answer_ok(request: Received, writer: asyncio.StreamWriter) -> None:
    body = b"" if request.line.startswith(b"HEAD") else b"ok"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """One sidecar for all cases: whatever one of them does must not hurt the next."""
    engine = FakeEngine(answer=answer_ok)
    await engine.start()
    folder = tmp_path_factory.mktemp("framing")
    limits = {"max_head_bytes": MOST_HEAD, "poll_interval": 60.0}
    # A quarter of it may be sent where nothing is charged.
    limits |= {"max_body_bytes": 4 * MOST_BODY, "large_body_rate": 1 << 40, "unmetered_rate": 1e6}
    async with sidecar_for(engine.port, folder, **limits) as sidecar:
        yield sidecar, engine
    await engine.stop()


class Client(asyncio.Protocol):
    """One connection, and all that came back on it, even if a reset followed."""

    def __init__(self) -> None:
        self.received = b""
        self._has_changed = asyncio.Event()
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._has_changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._has_changed.set()

    async def send(self, pieces: Iterable[bytes]) -> None:
        """Send pieces, so that the sidecar reads each of them by itself, until it has closed."""
        for piece in pieces:
            if not self._transport.is_closing():
                self._transport.write(piece)
                await its_turn()

    async def receive(self, count: int, methods: list[bytes]) -> None:
        """Read on until so many answers have come, or there are no more."""
        while not self._is_lost and len(answers(self.received, methods, is_closed=False)[0]) < count:
            await self._change()

    async def end(self) -> bytes:
        """Read until the sidecar has closed; all that was received."""
        while not self._is_lost:
            await self._change()
        return self.received

    async def _change(self) -> None:
        await self._has_changed.wait()
        self._has_changed.clear()


async def connect(sidecar: Sidecar) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", sidecar.listens_on.port)
    return client


async def its_turn() -> None:
    """Let the other side read what was written, before anything else is."""
    for _ in range(2):  # written, read
        await asyncio.sleep(0)


# --- what clients send ---


def check(engine: FakeEngine, since: int, received: bytes, outcomes: list[Outcome]) -> None:
    """Whether the engine and the client got exactly what the outcomes say."""
    read = [request for _, wire in engine.said(since) for request in requests(wire)]
    assert read == [
        as_engine_reads(outcome, b"127.0.0.1:%d" % engine.port)
        for outcome in outcomes
        if isinstance(outcome, Relayed)
    ]
    whole, left = answers(received, [method_of(outcome) for outcome in outcomes])
    assert left == b""
    assert len(whole) == len(outcomes), whole
    for answer, outcome in zip(whole, outcomes, strict=True):
        check_answer(answer, outcome)


async def in_one_write(case: Case, client: Client) -> list[Outcome]:
    await client.send([case.raw + LAST])
    return with_last(case.outcomes)


async def byte_by_byte(case: Case, client: Client) -> list[Outcome]:
    await client.send(split(case.raw))
    await client.send([LAST])
    return with_last(case.outcomes)


async def when_known(case: Case, client: Client) -> list[Outcome]:
    """Alone in a read, behind another request, and once more where the connection lives on."""
    outcomes: tuple[Outcome, ...] = (READ_FIRST,)
    raws = [FIRST, case.raw] if case.outcomes[-1].closes else [FIRST, case.raw, case.raw]
    for raw in raws[:-1]:
        await client.send([raw])
        outcomes += () if raw is FIRST else case.outcomes
        await client.receive(len(outcomes), [method_of(outcome) for outcome in outcomes])
    await client.send([raws[-1]])
    await client.send([LAST])
    return with_last(outcomes + case.outcomes)


def test_the_sample_has_some_of_every_kind() -> None:
    kinds = {case.id.partition("/")[0] for case in CASES}
    assert {case.id.partition("/")[0] for case in SAMPLE} == kinds
    assert 50 <= len(SAMPLE) <= 100


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", SAMPLE, ids=[case.id for case in SAMPLE])
async def test_a_request_is_read_in_one_way_or_refused(case: Case, guarded: Guarded) -> None:
    sidecar, engine = guarded
    for sending in (in_one_write, byte_by_byte, when_known):
        since = len(engine.heard)
        async with asyncio.timeout(LONGEST_S):
            client = await connect(sidecar)
            outcomes = await sending(case, client)
            received = await client.end()
        try:
            check(engine, since, received, outcomes)
        except AssertionError as error:
            error.add_note(
                f"{case.id}, {sending.__name__}: {case.why} (RFC {case.rfc}); sent {case.raw[:300]!r}"
            )
            raise
    assert is_whole(sidecar)


# --- what the engine says ---


class Script:
    """Answers the request of a case with its bytes, piece by piece, and any other with 200."""

    def __init__(self, reply: Reply, pieces: Iterable[bytes]) -> None:
        self.reply, self.pieces = reply, pieces
        self.is_done = False

    async def __call__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if REPLIED not in request.line:
            await answer_ok(request, writer)
            return
        try:
            for piece in self.pieces:
                writer.write(piece)
                await writer.drain()
                await its_turn()
            if self.reply.ends:
                writer.close()
        finally:
            self.is_done = True


def ways_to_send(reply: Reply) -> list[list[bytes]]:
    """In one write, line by line and byte by byte; or in the reads that the case is about."""
    if reply.reads:
        return [list(reply.reads)]
    return [[reply.raw], reply.raw.splitlines(keepends=True)[:500], split(reply.raw)]


def check_reply(reply: Reply, received: bytes) -> None:
    whole, left = answers(received, [reply.method])
    outcome = reply.outcome
    if isinstance(outcome, Broken):
        if whole or not outcome.may_have_begun:
            [answer] = whole
            assert (answer.status, answer.get(b"x-tokenpool-reason")) == (502, b"upstream_error")
            assert left == b""
        return
    [answer] = whole
    assert left == b""
    assert (answer.status, answer.body, answer.interims) == (outcome.status, outcome.body, 0)
    framing = (b"content-length", b"transfer-encoding", b"connection", b"x-request-id")
    assert tuple(field for field in answer.headers if field[0] not in framing) == outcome.headers
    if reply.method == b"HEAD" or outcome.status == 304:
        assert answer.get(b"content-length") == outcome.length


async def ask_for(sidecar: Sidecar, raw: bytes) -> bytes:
    client = await connect(sidecar)
    await client.send([raw])
    return await client.end()


def check_connections(reply: Reply, engine: FakeEngine, since: int) -> None:
    """Whether the engine was asked as it should be, and its connection used again only where it may be."""
    asked = [(number, request.target) for number, wire in engine.said(since) for request in requests(wire)]
    *replied, (last_on, last) = asked
    assert last == b"/version?last"
    # A connection that closes without a word may have closed before: the request is sent once more.
    assert [target for _, target in replied] in ([REPLIED], [REPLIED] * 2 if reply.raw == b"" else [REPLIED])
    assert reply.reuses is None or (replied[-1][0] == last_on) == reply.reuses


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("reply", REPLIES, ids=[reply.id for reply in REPLIES])
async def test_a_response_is_read_in_one_way_or_not_at_all(reply: Reply, guarded: Guarded) -> None:
    sidecar, engine = guarded
    raw = get(REPLIED, b"Connection: close\r\n").replace(b"GET", reply.method, 1)
    try:
        for way, pieces in enumerate(ways_to_send(reply)):
            for _ in range(1 if way else 2):  # the second time its head is known, if the connection lives on
                engine.answer = script = Script(reply, pieces)
                since = len(engine.heard)
                async with asyncio.timeout(LONGEST_S):
                    received = await ask_for(sidecar, raw)
                    await until(lambda: script.is_done)  # noqa: B023
                    last = await ask_for(sidecar, LAST)
                check_reply(reply, received)
                [ok], _ = answers(last)
                assert (ok.status, ok.body) == (200, b"ok")
                check_connections(reply, engine, since)
    except AssertionError as error:
        error.add_note(f"{reply.id}: {reply.why} (RFC {reply.rfc}); received {received[:300]!r}")
        raise
    finally:
        engine.answer = answer_ok
    assert is_whole(sidecar)
