"""The cache of request heads takes only what the parser would have read the same way."""

from __future__ import annotations

from pathlib import Path

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.proxy.head_cache import CachedHead, only_chunk, only_chunks
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import POOL, connected, is_whole, read_response, request, sidecar_for

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\n\r\n"
MESSAGE = HEAD + b"hello"


def known() -> CachedHead:
    head = CachedHead.of(MESSAGE)
    assert head is not None
    return head


def test_the_same_head_is_known_whatever_the_length_of_its_body() -> None:
    assert known().body_of(MESSAGE) == b"hello"
    longer = MESSAGE.replace(b": 5", b": 11") + b" world"
    assert known().body_of(longer) == b"hello world"


@pytest.mark.parametrize(
    "data",
    [
        MESSAGE[:-1],  # not all of the body
        MESSAGE + b"x",  # more than the body
        MESSAGE + MESSAGE,
        HEAD,
        b"",
        MESSAGE.replace(b"X: y", b"X: z"),
        MESSAGE.replace(b"Host: a", b"Host: b"),
        MESSAGE.replace(b": 5", b": -5"),
        MESSAGE.replace(b": 5", b": 5 "),
        MESSAGE.replace(b": 5", b": 5,5"),
        MESSAGE.replace(b": 5", b": 0x5"),
        MESSAGE.replace(b": 5", b": "),
        MESSAGE.replace(b": 5\r\n", b": 5\r\nTransfer-Encoding: chunked\r\n"),
        MESSAGE.replace(b": 5", b": 00000000005"),
        MESSAGE.replace(b"\r\n", b"\n"),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert known().body_of(data) is None


@pytest.mark.parametrize(
    "message",
    [
        b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        MESSAGE[:-1],
        MESSAGE + b"x",
        b"POST /x HTTP/1.1\r\nContent-Length: 5\r\nX: " + b"y" * 5000 + b"\r\n\r\nhello",
        b"no head at all",
        b"",
    ],
)
def test_what_is_not_one_whole_message_is_not_remembered(message: bytes) -> None:
    assert CachedHead.of(message) is None


@given(st.binary(max_size=60), st.integers(0, len(MESSAGE)), st.integers(0, 6))
def test_a_damaged_message_is_known_only_if_its_damage_is_in_the_body_or_its_length(
    junk: bytes, at: int, cut: int
) -> None:
    data = MESSAGE[:at] + junk + MESSAGE[at + cut :]
    body = known().body_of(data)
    if body is not None:
        head, _, rest = data.partition(b"\r\n\r\n")
        assert rest == body
        assert head == HEAD[:-4].replace(b": 5", b": " + head.split(b"Content-Length: ")[1].split(b"\r")[0])
        assert int(head.split(b"Content-Length: ")[1].split(b"\r")[0]) == len(body)


@given(st.binary(min_size=1, max_size=5000))
def test_one_plain_chunk_is_taken(inside: bytes) -> None:
    assert only_chunk(b"%x\r\n%b\r\n" % (len(inside), inside)) == inside


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6))
def test_several_plain_chunks_are_taken(insides: list[bytes]) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(inside), inside) for inside in insides)
    assert only_chunks(data) == b"".join(insides)
    assert only_chunks(data[:-1]) is None
    assert only_chunks(data + b"0\r\n\r\n") is None


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.binary(max_size=4),
    st.integers(0, 200),
    st.integers(0, 4),
)
def test_chunks_are_taken_as_the_parser_takes_them(
    insides: list[bytes], junk: bytes, at: int, cut: int
) -> None:
    """Damaged chunks are left to the parser, or still chunks: then the parser finds the same content."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(inside), inside) for inside in insides)
    data = data[:at] + junk + data[at + cut :]
    content = only_chunks(data)
    if content is not None:
        assert content == parsed(data)


class Body:
    """Collects what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.is_complete = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.is_complete = True


def parsed(chunks: bytes) -> bytes:
    """The content of these chunks by the parser, which must be between two chunks after them."""
    body = Body()
    parser = httptools.HttpResponseParser(body)
    parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
    assert not body.is_complete
    content = b"".join(body.parts)
    parser.feed_data(b"0\r\n\r\n")
    assert body.is_complete
    return content


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",
        b"1234567\r\nx\r\n",
        b"1",
        b"1\r",
        b"1\r\n",
        b"5\r\nhello",
        b"5\r\nhello\r\n5\r\nhello\r\n",
        b"6\r\nhello\r\n",
        b"05\r\nhello\r\n",
        b"A\r\n0123456789\r\n",
        b"5;x=y\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"hello",
        b"",
        b"\r\n",
    ],
)
def test_any_other_chunk_is_left_to_the_parser(data: bytes) -> None:
    assert only_chunk(data) is None
    assert only_chunks(data) is None or data.count(b"5\r\nhello\r\n") == 2


async def test_a_head_that_is_known_is_forgotten_with_its_key(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        for _ in range(3):
            writer.write(request())
            assert (await read_response(reader)).status == 200
        (tmp_path / "pool.yaml").write_text(POOL.replace("[g-key]", "[another-key]"))
        await sidecar.pool_file_watcher.reload()
        writer.write(request())
        assert (await read_response(reader)).status == 401
    assert len(engine.received) == 3


async def test_a_cached_head_is_priced_by_each_body_and_framed_again(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        for prompt in ("a", "bb" * 500, "ccc"):
            writer.write(request(body={"model": "tiny", "prompt": prompt, "max_tokens": 5}))
            assert (await read_response(reader)).status == 200
        writer.write(request(body=b'{"model":"tiny","prompt":7}'))
        refused = await read_response(reader)
        writer.write(request())
        assert (await read_response(reader)).status == 200
        assert is_whole(sidecar)
    assert (refused.status, refused.headers["x-tokenpool-reason"]) == (400, "malformed")
    assert [r.json()["prompt"] for r in engine.received] == ["a", "bb" * 500, "ccc", "hello"]
    assert all(int(r.headers["content-length"]) == len(r.body) for r in engine.received)


async def test_a_cached_head_does_not_get_around_limits_or_a_drain(
    engine: FakeEngine, tmp_path: Path
) -> None:
    options = {"max_body_bytes": 200}
    async with sidecar_for(engine.port, tmp_path, **options) as sidecar:
        async with connected(sidecar) as (reader, writer):
            writer.write(request())
            assert (await read_response(reader)).status == 200
            writer.write(request(body={"model": "tiny", "prompt": "x" * 300}))
            assert (await read_response(reader)).status == 413
        async with connected(sidecar) as (reader, writer):
            writer.write(request())
            assert (await read_response(reader)).status == 200
            sidecar.lifecycle.is_draining = True
            writer.write(request())
            assert (await read_response(reader)).status == 503


async def test_a_cached_head_keeps_the_order_of_pipelined_requests(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request())
        assert (await read_response(reader)).status == 200
        writer.write(request() + request("/v1/models", method="GET", headers={"x-test": "1"}) + request())
        writer.write(request())
        assert [(await read_response(reader)).status for _ in range(4)] == [200] * 4
    lines = [r.line.split()[1] for r in engine.received]
    assert lines == [b"/v1/completions"] * 2 + [b"/v1/models"] + [b"/v1/completions"] * 2


async def test_a_cached_head_is_refused_once_its_credential_has_ended(
    engine: FakeEngine, tmp_path: Path
) -> None:
    text = POOL.replace("[g-key]", "[{file: KEY, id: g-1, expires: 2100-01-01T00:00:00Z}]")
    (tmp_path / "key").write_text("g-key")
    pool = text.replace("KEY", str(tmp_path / "key"))
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar, connected(sidecar) as stream:
        reader, writer = stream
        answers = []
        for now in (0.0, 0.0, 4102444800.0):
            sidecar.controller.authenticator.wall_clock = lambda now=now: now  # type: ignore[misc]
            writer.write(request())
            answers.append(await read_response(reader))
    assert [each.status for each in answers] == [200, 200, 401]
    assert answers[-1].headers["x-tokenpool-reason"] == "expired_key"
