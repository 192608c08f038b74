"""Fuzzing a live sidecar: mutated requests get an answer of their own kind, and the engine reads no riddles.

It begins with well-formed requests and with the framing corpus; the strict reader is the judge. What it finds
becomes a case, there or here. How long it goes on, ``fuzzing`` says.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from tests.fakes.scripted_engine import FakeEngine
from tests.support.framing import CASES
from tests.support.fuzzing import BATCH, LIMITS, LONGEST_S, Arena, fuzz, mutated, pieces, send
from tests.support.harness import CHAT, POOL, STREAM, is_whole, request, sidecar_for, until
from tests.support.strict import Request, answers, requests

FOUND: list[bytes] = [
    # Leading line ends before a request, twice on one connection: the second is a head that is known.
    b"\r\n" + request() + b"\r\n" + request(),
    # A message that is known, with the start of another in its body.
    request() + request(body=b'{"model":"tiny","prompt":"POST / HTTP/1.1\\r\\n\\r\\n"}'),
    # Not UTF-8, in a name that the decoder skips.
    request("/v1/chat/completions", json.dumps(CHAT).encode().replace(b'"max', b'"\xedax')),
]

TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b",", b"0", b"-1", b"\xff", b"\r\n\r\n", b"{", b'"'),
    *(b"Content-Length: 5\r\n", b"content-length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n"),
    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"HTTP/1.0", b"GET / HTTP/1.1\r\n", b"\\u0000"),
]
BODY = b'{"model":"tiny","prompt":"hello","max_tokens":5}'
BASES = [
    request(),
    request("/v1/chat/completions", CHAT),
    request("/v1/chat/completions", STREAM),
    request("/tokenize", {"prompt": "x"}),
    request("/v1/models", method="GET"),
    request(body=BODY)
    .replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked")
    .replace(BODY, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
]
# A HEAD's answer cannot be read without knowing that it is one; mutations do not say so.
SEEDS = [case.raw for case in CASES if len(case.raw) < 600 and b"HEAD" not in case.raw]
ROOMY = POOL.replace("concurrency: 8", "concurrency: 800").replace("concurrency: 4", "concurrency: 400")
"""No request is shed here, so that two runs are comparable."""


@st.composite
def wires(draw: st.DrawFn) -> list[bytes]:
    """Bytes for one connection, in the pieces in which they are sent."""
    some = st.sampled_from(BASES) | st.sampled_from(SEEDS)
    data = mutated(draw, b"".join(draw(st.lists(some, min_size=1, max_size=2))), TOKENS)
    return pieces(data, draw(st.lists(st.integers(0, len(data)), max_size=1)))


@st.composite
def repeats(draw: st.DrawFn) -> bytes:
    """A request much like the one that is known on its connection."""
    return mutated(draw, request(body=BODY), TOKENS, most=2)


def statuses(received: bytes) -> list[int]:
    """The statuses of all answers in what a client received, all of them whole."""
    whole, left = answers(received)
    assert left == b""
    return [answer.status for answer in whole]


def asked(engine: FakeEngine, since: int = 0) -> list[Request]:
    """Every request that the engine was sent, each connection read strictly and to its end."""
    wires: dict[int, bytes] = {}
    for number, wire in engine.said(since):
        wires[number] = wires.get(number, b"") + wire
    return [request for wire in wires.values() for request in requests(wire)]


def is_priced_as_read(request: Request) -> bool:
    """Whether the body of a priced request is a JSON object to the engine, too."""
    if b"/completions" not in request.target or request.method != b"POST":
        return True
    try:
        return isinstance(json.loads(request.body), dict)
    except ValueError:
        return False


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    made = Arena(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.loop.close()


async def play_requests(arena: Arena, batch: list[list[bytes]]) -> None:
    """Send each item of the batch on a connection of its own; assert that all is well."""
    engine = FakeEngine()
    await engine.start()
    async with sidecar_for(engine.port, arena.folder, **LIMITS) as sidecar:
        port = sidecar.listens_on.port
        all_received = await asyncio.gather(*(send(port, parts) for parts in batch))
        await until(lambda: is_whole(sidecar))
        good = await send(port, [request(headers={"connection": "close"})])
    await engine.stop()
    for parts, received in zip(batch, all_received, strict=True):
        try:
            assert all(status < 500 for status in statuses(received))
        except AssertionError as error:
            error.add_note(f"sent {parts!r}, received {received!r}")
            raise
    for request_read in asked(engine):
        assert is_priced_as_read(request_read), request_read
    assert statuses(good) == [200]
    assert 2 * sum(map(bool, all_received)) > len(batch), "a cut is no answer"


async def send_after(port: int, known: bytes, data: bytes) -> bytes:
    """What comes back for ``data`` on a connection on which ``known`` was answered before."""
    async with asyncio.timeout(LONGEST_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(known)
            first = b""
            while len(answers(first, is_closed=False)[0]) < 1:
                first += await reader.read(1 << 16)
            writer.write(data)
            return await reader.read(-1)
        finally:
            writer.close()


async def play_repeats(arena: Arena, batch: list[bytes]) -> None:
    """Send each item on a fresh connection, then on one where its head may be known: both are read alike."""
    engine, known = FakeEngine(), request(body=BODY)
    await engine.start()
    async with sidecar_for(engine.port, arena.folder, pool=ROOMY, **LIMITS) as sidecar:
        port = sidecar.listens_on.port
        await send(port, [known])
        (cached_read,) = asked(engine)
        start = len(engine.heard)
        fresh = await asyncio.gather(*(send(port, [data]) for data in batch))
        await until(lambda: is_whole(sidecar))
        once, middle = Counter(asked(engine, start)), len(engine.heard)
        after = await asyncio.gather(*(send_after(port, known, data) for data in batch))
        await until(lambda: is_whole(sidecar))
        twice = Counter(asked(engine, middle))
    await engine.stop()
    given_up = 0
    for data, one, other in zip(batch, fresh, after, strict=True):
        told = statuses(one), statuses(other)
        if told[0] != told[1] and 408 in told[0] + told[1]:
            given_up += 1  # in one of the two: the machine is busy
        else:
            assert told[0] == told[1], data
    more = twice - once
    assert more.pop(cached_read) == len(batch)
    assert more.total() <= given_up


@pytest.mark.parametrize("raw", FOUND, ids=[f"{i:02}" for i in range(len(FOUND))])
def test_requests_that_fuzzing_found_stay_fixed(raw: bytes, arena: Arena) -> None:
    arena.run(play_requests(arena, [[raw], [raw[:1], raw[1:]]]))


def test_mutated_requests_do_no_harm(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    batches = st.lists(wires(), min_size=BATCH, max_size=BATCH)
    fuzz(
        "connections", 0.4, batches, lambda batch: arena.run(play_requests(arena, batch)), capsys, size=BATCH
    )


def test_a_cached_head_is_answered_as_a_new_one(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    batches = st.lists(repeats(), min_size=BATCH, max_size=BATCH)
    fuzz(
        "cached heads", 0.1, batches, lambda batch: arena.run(play_repeats(arena, batch)), capsys, size=BATCH
    )
