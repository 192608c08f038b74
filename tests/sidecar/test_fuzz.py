"""Fuzzing a live sidecar: mutated requests get an answer of their own kind, and the engine reads no riddles.

``FUZZ_SECONDS`` says for how long (``make fuzz``: minutes, or an hour). It begins with well-formed requests
and with the framing corpus; the strict reader is the judge. What it finds becomes a case, there or here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fakes.engine import FakeEngine
from tests.sidecar.framing import CASES
from tests.sidecar.harness import CHAT, STREAM, is_whole, request, sidecar_for, until
from tests.sidecar.strict import Request, answers, requests

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))
LIMITS = {"head_timeout": 0.2, "body_timeout": 0.2, "idle_timeout": 0.2, "max_body_bytes": 1 << 20}
LONGEST_S = 10.0

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


@st.composite
def wires(draw: st.DrawFn) -> list[bytes]:
    """Bytes for one connection, in the pieces in which they are sent."""
    some = st.sampled_from(BASES) | st.sampled_from(SEEDS)
    data = b"".join(draw(st.lists(some, min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "insert", "delete", "flip", "double"]))
        size = draw(st.integers(1, 12))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + size :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "double":
            data = data[: at + size] + data[at:]
    cut = draw(st.integers(0, len(data)))
    return [data[:cut], data[cut:]] if draw(st.booleans()) else [data]


async def send(port: int, pieces: list[bytes]) -> bytes:
    """Everything that comes back until the sidecar closes. Raises ``TimeoutError`` if it never does."""
    async with asyncio.timeout(LONGEST_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            writer.close()


def statuses(received: bytes) -> list[int]:
    """The statuses of all answers in what a client received, all of them whole."""
    whole, left = answers(received)
    assert left == b""
    return [answer.status for answer in whole]


def asked(engine: FakeEngine) -> list[Request]:
    """Every request that the engine was sent, each connection read strictly and to its end."""
    wires: dict[int, bytes] = {}
    for number, wire in engine.said():
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


class Arena:
    """A sidecar that lives as long as all examples, on a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = folder

    async def _run(self, batch: list[list[bytes]]) -> None:
        engine = FakeEngine()
        await engine.start()
        async with sidecar_for(engine.port, self.folder, **LIMITS) as sidecar:
            sent = (send(sidecar.listens_on.port, pieces) for pieces in batch)
            all_received = await asyncio.gather(*sent)
            await until(lambda: is_whole(sidecar))
            good = await send(sidecar.listens_on.port, [request(headers={"connection": "close"})])
        await engine.stop()
        for pieces, received in zip(batch, all_received, strict=True):
            try:
                assert all(status < 500 for status in statuses(received))
            except AssertionError as error:
                error.add_note(f"sent {pieces!r}, received {received!r}")
                raise
        for request_read in asked(engine):
            assert is_priced_as_read(request_read), request_read
        assert statuses(good) == [200]

    def play(self, batch: list[list[bytes]]) -> None:
        """Send each item of the batch on a connection of its own; assert that all is well."""
        self.loop.run_until_complete(self._run(batch))

    def close(self) -> None:
        self.loop.close()


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    made = Arena(tmp_path_factory.mktemp("fuzz"))
    yield made  # type: ignore[misc]
    made.close()


@pytest.mark.parametrize("raw", FOUND, ids=[f"{i:02}" for i in range(len(FOUND))])
def test_what_was_found_before_stays_mended(raw: bytes, arena: Arena) -> None:
    arena.play([[raw], [raw[:1], raw[1:]]])


BATCH = 60
"""Connections at once: an example that the sidecar waits for costs its timeouts, so they wait together."""


def test_mutated_requests_do_no_harm(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    @settings(
        max_examples=5,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # the message names the one connection of a batch
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(wires(), min_size=BATCH, max_size=BATCH))
    def play(batch: list[list[bytes]]) -> None:
        next(played)
        arena.play(batch)

    played = itertools.count()
    ends_at = time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        play()
    with capsys.disabled():
        print(f"\nfuzzed {next(played) * BATCH} connections in {SECONDS:g} s")
