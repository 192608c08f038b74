"""Fuzzing the engine's side: mutated answers reach the client whole, cut, or as the sidecar's error.

Whatever one answer was, the next request gets its own. The bases are well-formed answers of every framing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

from tests.fakes.scripted_engine import (
    DONE,
    FINISH_EVENT,
    STREAM_HEAD,
    FakeEngine,
    Received,
    chunk,
    token_event,
    unary,
    usage_event,
)
from tests.integration.sidecar.proxy.test_fuzz import ROOMY
from tests.support.fuzzing import BATCH, LIMITS, Arena, fuzz, mutated, pieces, send
from tests.support.harness import is_whole, request, sidecar_for, until
from tests.support.strict import Answer, answers

OPTIONS = LIMITS | {"head_timeout": 3.0, "upstream_timeout": 3.0}
"""Long enough for a machine that is busy: good requests must not be given up."""
CLOSES = {"connection": "close"}
UNARY = unary()
STREAM = b"".join(
    [
        STREAM_HEAD,
        *map(chunk, (token_event(), token_event(), FINISH_EVENT, usage_event(), DONE)),
        b"0\r\n\r\n",
    ]
)
CRLF = [each.replace(b"\n", b"\r\n") for each in (token_event(), FINISH_EVENT, usage_event(), DONE)]
FAILED = [token_event(), b'data: {"error":{"code":504}}\n\n', DONE]
BASES = [
    UNARY,
    STREAM,
    STREAM_HEAD + b"".join(map(chunk, CRLF)) + b"0\r\n\r\n",
    STREAM_HEAD + b"".join(map(chunk, FAILED)) + b"0\r\n\r\n",
    UNARY.replace(b"content-type", b"content-encoding: gzip\r\ncontent-type"),
    unary({"error": {"code": 504}}),
    STREAM.replace(b"transfer-encoding: chunked\r\n", b"connection: close\r\n"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(b'{"usage":')
    + chunk(b"{}}")
    + b"0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + UNARY,
    unary({"error": {}}, status="400 Bad Request"),
    UNARY.replace(b"content-length", b"connection: x-a\r\nx-a: 1\r\nContent-Length"),
]
TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"0", b"-1", b"\xff", b"\r\n\r\n", b";x=y", b"+"),
    *(b"Content-Length: 5\r\n", b"content-length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n folded"),
    *(b"Transfer-Encoding: gzip, chunked\r\n", b"Connection: close\r\n", b"Connection: content-length\r\n"),
    *(b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.0", b"HTTP/2"),
    *(
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"99999999999999999999",
    ),
    *(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n"),
    *(b'data: "finish_reason":"\n\n', b'"usage":{', b"data: ", b"\n\n", b"\r\r", b"event: error\n"),
    *(b"Content-Encoding: br\r\n", b'"error":1,', b'"us\\u0061ge":', b"\xef\xbb\xbf"),
]


class Play(NamedTuple):
    """How the engine answers one request, and what the client does."""

    parts: list[bytes]
    closes: bool
    """Whether the engine closes afterwards; else it waits."""
    streams: bool
    pipelines: bool
    """Whether another request follows at once on the client's connection."""


@st.composite
def plays(draw: st.DrawFn, pipelines: bool) -> Play:
    data = mutated(draw, draw(st.sampled_from(BASES)), TOKENS)
    cuts = [] if pipelines else draw(st.lists(st.integers(0, len(data)), max_size=2))
    return Play(pieces(data, cuts), draw(st.booleans()), draw(st.booleans()), pipelines)


@st.composite
def batches(draw: st.DrawFn) -> list[Play]:
    """Plays with cuts, or with more requests at once.

    Not both: what an engine says when the next request was sent already is its answer, whoever reads it.
    """
    return draw(st.lists(plays(draw(st.booleans())), min_size=BATCH, max_size=BATCH))


def prompted(prompt: str, *, streams: bool = False, closes: bool = True) -> bytes:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 5, "stream": streams}
    return request(body=body, headers=CLOSES if closes else None)


def is_echo(answer: Answer, prompt: str) -> bool:
    return answer.status == 200 and json.loads(answer.body)["echo"] == prompt


class Script:
    """An engine that plays a batch, request by request as their prompts say, and echoes all others."""

    def __init__(self, batch: list[Play]) -> None:
        self.batch = batch
        self.writing = 0

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        said = re.search(rb'"bad (\d+)"', received.body)
        if said is None:
            writer.write(unary({"echo": received.json()["prompt"], "usage": {"prompt_tokens": 1}}))
            return
        self.writing += 1
        try:
            play = self.batch[int(said[1])]
            *parts, last = play.parts
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(last)  # and no waiting: what comes meanwhile is the next request
            if play.closes:
                writer.close()
        finally:
            self.writing -= 1


def judge(play: Play, received: bytes, echo: str) -> None:
    """Whether that is what a client may receive."""
    whole, left = answers(received)
    first = next(iter(whole), None)
    if first is None:
        return  # cut
    if first.get(b"x-tokenpool-reason") is not None:
        assert first.status in (502, 504)
    else:
        assert b" %d" % first.status in b"".join(play.parts)
    assert left == b"" or len(whole) == 1
    for second in whole[1:]:
        assert play.pipelines
        assert is_echo(second, echo)


async def play_answers(arena: Arena, batch: list[Play]) -> None:
    """Have the engine answer so; then every connection that is left must serve well."""
    script = Script(batch)
    engine = FakeEngine(answer=script)
    await engine.start()
    async with sidecar_for(engine.port, arena.folder, pool=ROOMY, **OPTIONS) as sidecar:
        port = sidecar.listens_on.port
        sent = []
        for number, play in enumerate(batch):
            data = prompted(f"bad {number}", streams=play.streams, closes=not play.pipelines)
            sent.append(data + prompted(f"after {number}") if play.pipelines else data)
        all_received = await asyncio.gather(*(send(port, [data]) for data in sent))
        await until(lambda: is_whole(sidecar) and not script.writing)
        prompts = [f"good {number}" for number in range(len(batch))]
        goods = await asyncio.gather(*(send(port, [prompted(prompt)]) for prompt in prompts))
    await engine.stop()
    for number, (play, received) in enumerate(zip(batch, all_received, strict=True)):
        try:
            judge(play, received, f"after {number}")
        except AssertionError as error:
            error.add_note(f"the engine said {play!r}, the client received {received!r}")
            raise
    for prompt, good in zip(prompts, goods, strict=True):
        whole, left = answers(good)
        assert (len(whole), left) == (1, b""), (prompt, good)
        assert is_echo(whole[0], prompt), good


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    made = Arena(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.loop.close()


FOUND: list[bytes] = [
    # An end of a choice that is no JSON, where the engine's fingerprint is known.
    STREAM_HEAD
    + chunk(FINISH_EVENT)
    + chunk(usage_event())
    + chunk(b'data: "finish_reason":"\n\n')
    + b"0\r\n\r\n",
]


@pytest.mark.parametrize("raw", FOUND, ids=[f"{i:02}" for i in range(len(FOUND))])
def test_answers_that_fuzzing_found_stay_fixed(raw: bytes, arena: Arena) -> None:
    ways = itertools.product([False, True], repeat=3)
    arena.run(play_answers(arena, [Play([raw], *way) for way in ways]))


def test_mutated_answers_do_no_harm(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz("answers", 0.2, batches(), lambda batch: arena.run(play_answers(arena, batch)), capsys, size=BATCH)
