"""What engines and proxies answer, and what the sidecar makes of it: relayed, hidden, settled and counted.

Rows U1 to U4 of the field reports, with further members of each kind. Every shape of usage is read whole,
byte by byte and in random pieces.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.app import Sidecar
from sidecar.dialects.reported_usage import NoUsage
from sidecar.dialects.stream_reader import FingerprintField, StreamReader
from sidecar.dialects.usage_readers import BodyReader, Reader, ResponseReader
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import (
    DONE,
    FINISH_EVENT,
    FakeEngine,
    Received,
    chunk,
    token_event,
    usage_event,
)
from tests.integration.sidecar.controller.test_preemption_and_queue import TWO_SLOTS
from tests.support.harness import (
    CHAT,
    STREAM,
    Response,
    admin,
    ask,
    connected,
    is_whole,
    read_chunks,
    request,
    sidecar_for,
    until,
)
from tokenpool.pricing.cost import Usage

CHATS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
MESSAGE = CHAT | {"stream": True}
RESPONSE = {"model": "tiny", "input": "hi", "max_output_tokens": 8, "stream": True}
ERROR = {"message": "deadline exceeded", "type": "InternalServerError", "param": None, "code": 504}


def event(data: object, name: str | None = None, *, end: bytes = b"\n") -> bytes:
    """One event, as most engines write it."""
    text = data.encode() if isinstance(data, str) else json.dumps(data, separators=(",", ":")).encode()
    lines = [b"event: " + name.encode()] if name else []
    return end.join([*lines, b"data: " + text, b"", b""])


def named(data: dict[str, Any]) -> bytes:
    """An event that has its type as its name, too: Anthropic's and the Responses API's."""
    return event(data, data["type"])


# --- every shape of usage, whatever the split ---


class Shape(NamedTuple):
    reader: Callable[[], Reader]
    data: bytes
    usage: Usage | None


def shown() -> StreamReader:
    return StreamReader(None)


def hidden() -> StreamReader:
    return StreamReader(FingerprintField())


def body(**fields: Any) -> bytes:
    return json.dumps({"id": "x", "choices": [{"text": 'a "usage": {} b'}], **fields}).encode()


PLAIN = {"prompt_tokens": 800, "total_tokens": 845, "completion_tokens": 45}
STREAMED = token_event() * 3 + FINISH_EVENT + usage_event(800, 45) + DONE
START = {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 800, "output_tokens": 1}}}
STOP = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 45}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": '"usage": {'}}
END = {"type": "message_stop"}


def message(start: dict[str, int] | None, stop: dict[str, int | None] | None) -> bytes:
    """A Messages stream with these two usages."""
    begun = {"type": "message_start", "message": {"id": "m", "content": [], "usage": start}}
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": stop}
    return b"".join(map(named, (begun, TEXT, ended, END)))


def response(kind: str, **fields: Any) -> bytes:
    inner = {"id": "resp_1", "error": None, "tools": [{"usage": {"input_tokens": 1}}], **fields}
    return named({"type": f"response.{kind}", "sequence_number": 0, "response": inner})


RESPONSE_USAGE = {"input_tokens": 800, "input_tokens_details": {"cached_tokens": 600}, "output_tokens": 45}
READ = Usage(800, 45)
SHAPES = {
    "chat stream, LF": Shape(shown, STREAMED, READ),
    "chat stream, CRLF": Shape(hidden, STREAMED.replace(b"\n", b"\r\n"), READ),
    "chat stream, CR": Shape(hidden, STREAMED.replace(b"\n", b"\r"), READ),
    "chat stream, mixed": Shape(hidden, STREAMED.replace(b"\n\n", b"\r\n\n"), READ),
    "chat stream, CR and CRLF": Shape(shown, STREAMED.replace(b"\n\n", b"\r\r\n"), READ),
    "no space after the colon": Shape(hidden, STREAMED.replace(b"data: ", b"data:"), READ),
    "byte order mark": Shape(shown, b"\xef\xbb\xbf" + usage_event(800, 45) + DONE, READ),
    "comments, ids and retries": Shape(
        hidden, b": hello\n\nretry: 500\nid: 1\n" + STREAMED.replace(b"data: {", b": c\nid: 7\ndata: {"), READ
    ),
    "several data lines": Shape(hidden, STREAMED.replace(b',"', b',\ndata: "'), READ),
    "without the last blank line": Shape(hidden, STREAMED.removesuffix(DONE)[:-2], READ),
    "other spacing": Shape(hidden, STREAMED.replace(b'"usage":{', b'"usage" :\t{ '), READ),
    "escaped names": Shape(hidden, STREAMED.replace(b'"usage":', b'"\\u0075sage":'), READ),
    "usage with the last choice": Shape(
        hidden, token_event() + event({"choices": [{"finish_reason": "stop"}], "usage": PLAIN}) + DONE, READ
    ),
    "usage in every event": Shape(
        shown,
        b"".join(
            event({"choices": [{}], "usage": {"prompt_tokens": 800, "completion_tokens": n}})
            for n in range(46)
        )
        + DONE,
        READ,
    ),
    "null in every event": Shape(
        hidden, event({"choices": [{}], "usage": None}) * 3 + usage_event(800, 45) + DONE, READ
    ),
    "messages, split": Shape(shown, message({"input_tokens": 800}, {"output_tokens": 45}), READ),
    "messages, zeros at the end": Shape(
        shown,
        message(
            {"input_tokens": 800, "output_tokens": 1},
            {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 45},
        ),
        READ,
    ),
    "messages, zeros at the beginning": Shape(
        shown,
        message({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 800, "output_tokens": 45}),
        READ,
    ),
    "messages, cache at the beginning": Shape(
        shown,
        message(
            {"input_tokens": 100, "cache_read_input_tokens": 600, "cache_creation_input_tokens": 100},
            {"output_tokens": 45, "cache_read_input_tokens": None},
        ),
        Usage(800, 45, 600),
    ),
    "messages, cache at the end": Shape(
        shown,
        message(
            {"input_tokens": 800}, {"input_tokens": 200, "cache_read_input_tokens": 600, "output_tokens": 45}
        ),
        Usage(800, 45, 600),
    ),
    "messages, all of it cached at the end": Shape(
        shown,
        message(
            {"input_tokens": 800},
            {"input_tokens": 0, "cache_creation_input_tokens": 800, "output_tokens": 45},
        ),
        READ,
    ),
    "responses": Shape(
        shown,
        response("created", usage=None)
        + named({"type": "response.output_text.delta", "delta": '"usage":{"input_tokens":1}'})
        + response("completed", usage=RESPONSE_USAGE),
        Usage(800, 45, 600),
    ),
    "responses, cut by the bound": Shape(
        shown, response("incomplete", status="incomplete", usage=RESPONSE_USAGE), Usage(800, 45, 600)
    ),
    "Cohere's chat": Shape(
        shown,
        named({"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant"}}})
        + named(
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "COMPLETE",
                    "usage": {
                        "billed_units": {"input_tokens": 790.0, "output_tokens": 45.0},
                        "tokens": {"input_tokens": 800.0, "output_tokens": 45.0},
                        "cached_tokens": 600.0,
                    },
                },
            }
        )
        + DONE,
        Usage(800, 45, 600),
    ),
    "chat": Shape(BodyReader, body(usage=PLAIN), READ),
    "chat, pretty": Shape(BodyReader, json.dumps({"usage": PLAIN, "choices": []}, indent=2).encode(), READ),
    "chat, other order": Shape(
        BodyReader, json.dumps({"usage": PLAIN, "choices": [{"usage": {"prompt_tokens": 1}}]}).encode(), READ
    ),
    "chat, escaped name": Shape(BodyReader, body(usage=PLAIN).replace(b'"usage":', b'"us\\u0061ge":'), READ),
    "chat, a proxy's two names for the cache": Shape(
        BodyReader,
        body(usage=PLAIN | {"prompt_tokens_details": {"cached_tokens": 600}, "cache_read_input_tokens": 600}),
        Usage(800, 45, 600),
    ),
    "message": Shape(
        BodyReader,
        body(usage={"input_tokens": 200, "cache_read_input_tokens": 600, "output_tokens": 45}),
        Usage(800, 45, 600),
    ),
    "embeddings": Shape(BodyReader, body(usage={"prompt_tokens": 800, "total_tokens": 800}), Usage(800, 0)),
    "ranks": Shape(BodyReader, body(usage={"total_tokens": 800}), Usage(800, 0)),
    "Cohere's embeddings": Shape(
        BodyReader,
        body(meta={"billed_units": {"input_tokens": 700, "image_tokens": 100}}),
        Usage(800, 0),
    ),
    "long embeddings": Shape(
        BodyReader, body(data="x" * 70_000, usage=PLAIN, prompt_logprobs=["usage"] * 10), READ
    ),
    "long, pretty": Shape(
        BodyReader, json.dumps({"data": "x" * 70_000, "usage": PLAIN}, indent=4).encode(), READ
    ),
    "long, Cohere's": Shape(
        BodyReader,
        body(
            texts=["usage", '"billed_units":{}', "x" * 70_000], meta={"billed_units": {"input_tokens": 800}}
        ),
        Usage(800, 0),
    ),
    "response": Shape(ResponseReader, body(usage=RESPONSE_USAGE), Usage(800, 45, 600)),
    "null": Shape(BodyReader, body(usage=None), None),
    "nothing counted": Shape(BodyReader, body(usage={"prompt_tokens": 0, "completion_tokens": 0}), None),
    "null in a stream": Shape(shown, token_event() + event({"choices": [], "usage": None}) + DONE, None),
}


def run(reader: Reader, parts: list[bytes]) -> bytes:
    return b"".join([*(reader.feed(part) for part in parts if part), reader.end()])


def seen(shape: Shape, parts: list[bytes]) -> tuple[object, ...]:
    """All that a reader makes of the parts."""
    reader = shape.reader()
    given = run(reader, parts)
    assert reader.usage == shape.usage
    return given, reader.events, reader.has_begun, reader.has_failed, reader.response, reader.no_usage


@pytest.mark.parametrize("name", SHAPES)
def test_usage_is_read_in_every_shape_whole_and_byte_by_byte(name: str) -> None:
    shape = SHAPES[name]
    data = shape.data
    whole = seen(shape, [data])
    assert whole[3] is False
    # Nearly the whole of a long one is one text.
    start = max(len(data) - 2000, 0)
    assert seen(shape, [data[:start], *(bytes([byte]) for byte in data[start:])]) == whole
    if shape.reader is not hidden:
        assert whole[0] == data


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_usage_is_read_in_every_shape_in_random_pieces(name: str, data: st.DataObject) -> None:
    shape = SHAPES[name]
    size = len(shape.data)
    cuts = data.draw(st.lists(st.integers(max(size - 2000, 0), size), max_size=12))
    parts = [shape.data[a:b] for a, b in pairwise([0, *sorted(cuts), size])]
    assert seen(shape, parts) == seen(shape, [shape.data])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_event_leaves_with_its_last_byte(end: bytes) -> None:
    fingerprint = FingerprintField()
    fingerprint.learn("fp")
    reader = StreamReader(fingerprint)
    token, finish, usage, done = (
        e.replace(b"\n", end) for e in (token_event(), FINISH_EVENT, usage_event(), DONE)
    )
    assert [reader.feed(e) for e in (token, token[:9], token[9:])] == [token, b"", token]
    assert reader.feed(finish) == finish.replace(b"}" + end, b',"system_fingerprint":"fp"}' + end)
    assert [reader.feed(e) for e in (usage, done)] == [b"", done]
    assert reader.usage == Usage(10, 5)


def test_a_line_feed_after_the_last_carriage_return_shares_the_fate_of_its_event() -> None:
    for known in (False, True):
        fingerprint = FingerprintField()
        if known:
            fingerprint.learn(None)
        reader = StreamReader(fingerprint)
        token, finish, usage = (
            e.replace(b"\n", b"\r\n") for e in (token_event(), FINISH_EVENT, usage_event(fingerprint=None))
        )
        given = [reader.feed(part) for e in (token, finish, usage) for part in (e[:-1], e[-1:])]
        assert given[:2] == [token[:-1], token[-1:]]
        assert b"".join(given) == token + finish


# --- live ---


class Settled(NamedTuple):
    """What a sidecar counted of one entitlement."""

    input: int
    output: int
    outcomes: dict[str, int]
    without_usage: dict[str, int]
    first_tokens: int


def settled(sidecar: Sidecar, name: str = "g") -> Settled:
    if name not in sidecar.telemetry._tallies:
        return Settled(0, 0, {}, {}, 0)
    tally = sidecar.telemetry._tallies[name].series
    outcomes = sidecar.telemetry.outcomes(name)
    without_usage = {str(no_usage): count for no_usage, count in tally.without_usage.items()}
    return Settled(tally.input, tally.output, outcomes, without_usage, sum(tally.first_token.counts))


def is_uncharged(sidecar: Sidecar, name: str = "g") -> bool:
    return sidecar.controller.accounts[name].meter.spent == 0


def streams(*events: bytes, head: bytes = fake.STREAM_HEAD) -> fake.Answer:
    """An engine that streams these, each as a chunk of its own."""

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for each in events:
            writer.write(chunk(each))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    return answer


def answers(
    content: bytes, *headers: str, kind: str = "application/json", status: str = "200 OK"
) -> fake.Answer:
    """An engine that answers with this body."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(content)}", *headers]

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    return answer


async def serve(
    engine: FakeEngine, folder: Path, path: str, sent: object, **options: Any
) -> tuple[Response, Settled, Sidecar]:
    """One request through a sidecar of its own."""
    async with sidecar_for(engine.port, folder, **options) as sidecar:
        answered = await ask(sidecar, request(path, sent))
        assert is_whole(sidecar)
        return answered, settled(sidecar), sidecar


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\r\n\n"], ids=["LF", "CRLF", "CR", "mixed"])
async def test_u1_events_are_relayed_at_once_and_usage_is_hidden_whatever_the_line_ends(
    engine: FakeEngine, tmp_path: Path, end: bytes
) -> None:
    def ended(data: bytes) -> bytes:
        return data.replace(b"\n\n", end if len(end) == 3 else end * 2)

    go_on = asyncio.Event()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + chunk(ended(token_event())))
        await go_on.wait()
        for each in (token_event(), FINISH_EVENT, usage_event(800, 45, None), DONE):
            writer.write(chunk(ended(each)))
        writer.write(b"0\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request(CHATS, STREAM))
        await reader.readuntil(b"\r\n\r\n")
        chunks = read_chunks(reader)
        async with asyncio.timeout(2):
            assert await anext(chunks) == ended(token_event())
        go_on.set()
        rest = b"".join([part async for part in chunks])
        assert rest == ended(token_event() + FINISH_EVENT + DONE)
        assert settled(sidecar) == Settled(800, 45, {"finished": 1}, {}, 1)
        assert is_whole(sidecar)


@pytest.mark.parametrize(
    "data",
    [
        STREAMED.replace(b"data: ", b"data:"),
        b"\xef\xbb\xbf" + STREAMED,
        STREAMED.replace(b"data: {", b": c\r\nevent: chunk\rid: 7\nretry: 9\r\ndata: {"),
        STREAMED.replace(b',"', b',\ndata: "'),
    ],
    ids=["no space", "byte order mark", "other fields", "several data lines"],
)
async def test_u1_streams_are_read_as_the_standard_has_it(
    engine: FakeEngine, tmp_path: Path, data: bytes
) -> None:
    engine.answer = streams(*(data[i : i + 50] for i in range(0, len(data), 50)))
    answered, counted, _ = await serve(engine, tmp_path, CHATS, STREAM)
    assert b"prompt_tokens" not in answered.body
    assert answered.body.count(b"choices") == 4
    assert counted == Settled(800, 45, {"finished": 1}, {}, 1)


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ({"input_tokens": 800}, {"output_tokens": 45}),
        ({"input_tokens": 800, "output_tokens": 1}, {"input_tokens": 0, "output_tokens": 45}),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 800, "output_tokens": 45}),
        ({"input_tokens": 800, "output_tokens": 0}, {"input_tokens": 800, "output_tokens": 45}),
    ],
)
async def test_u2_usage_of_a_messages_stream_is_put_together(
    engine: FakeEngine, tmp_path: Path, start: dict[str, int], stop: dict[str, int]
) -> None:
    data = message(start, dict(stop))
    engine.answer = streams(data[:100], data[100:])
    answered, counted, _ = await serve(engine, tmp_path, MESSAGES, MESSAGE)
    assert answered.body == data
    assert counted == Settled(800, 45, {"finished": 1}, {}, 1)


async def test_u2_a_messages_stream_that_is_cut_has_its_input_reported_and_its_output_estimated(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + chunk(named(START)))
        for _ in range(20):
            writer.write(chunk(named(TEXT)))
        await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (reader, writer):
            writer.write(request(MESSAGES, MESSAGE))
            for _ in range(20):
                await reader.readuntil(b"text_delta")
        await until(lambda: is_whole(sidecar))
        counted = settled(sidecar)
        assert counted == Settled(800, 21, {"client_gone": 1}, {}, 1)
        assert sidecar.controller.settlement.tokens_per_event.value == 1.0


async def test_u2_a_whole_messages_stream_without_its_last_usage_is_estimated_and_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = streams(named(START), *[named(TEXT)] * 10, named(END))
    _, counted, sidecar = await serve(engine, tmp_path, MESSAGES, MESSAGE)
    assert counted == Settled(800, 12, {"finished": 1}, {"missing": 1}, 1)
    assert not list(sidecar.controller.accounts["g"].pricer.learned_by_target)


async def test_u2_what_follows_the_usage_of_a_whole_stream_is_no_output(
    engine: FakeEngine, tmp_path: Path
) -> None:
    trailing = [event({"choices": [], "cost": 1}), b": bye\n\n", b": bye\n\n", DONE]
    engine.answer = streams(*[token_event()] * 4, usage_event(800, 45), *trailing)
    _, counted, _ = await serve(engine, tmp_path, CHATS, STREAM)
    assert counted == Settled(800, 45, {"finished": 1}, {}, 1)


FAILURES = {
    "openai": (CHATS, STREAM, event({"error": ERROR}) + DONE),
    "openai, CRLF": (CHATS, STREAM, (event({"error": ERROR}) + DONE).replace(b"\n", b"\r\n")),
    "older vLLM": (CHATS, STREAM, event({"object": "error", **ERROR}) + DONE),
    "text": (CHATS, STREAM, event({"error": "Request failed during generation", "error_type": "generation"})),
    "with an empty choice": (
        CHATS,
        STREAM,
        event({"choices": [{"delta": {"content": ""}, "finish_reason": "error"}], "error": ERROR}) + DONE,
    ),
    "after heartbeats": (CHATS, STREAM, b": ping\n\n" * 3 + event({"error": ERROR}) + DONE),
    "a field of its own": (CHATS, STREAM, b"error: " + json.dumps(ERROR).encode() + b"\n\n"),
    "no event at all": (CHATS, STREAM, json.dumps({"error": ERROR}, indent=1).encode()),
    "without a blank line": (CHATS, STREAM, event({"error": ERROR})[:-1]),
    "anthropic": (MESSAGES, MESSAGE, named({"type": "error", "error": {"type": "overloaded_error"}})),
    "anthropic, no name": (MESSAGES, MESSAGE, event({"type": "ping"}) + event({"type": "error"})),
    "anthropic, no JSON": (MESSAGES, MESSAGE, event("upstream reset", "error")),
    "responses": (
        RESPONSES,
        RESPONSE,
        response("created") + named({"type": "error", "code": "x", "message": "m"}),
    ),
    "responses, failed": (
        RESPONSES,
        RESPONSE,
        response("created") + response("in_progress") + response("failed", status="failed"),
    ),
    "responses, only a name": (RESPONSES, RESPONSE, event({"response": {"id": "r"}}, "response.failed")),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("size", [0, 7])
async def test_u3_a_stream_that_holds_an_error_failed_and_costs_nothing(
    engine: FakeEngine, tmp_path: Path, name: str, size: int
) -> None:
    path, sent, data = FAILURES[name]
    engine.answer = streams(*(data[i : i + size] for i in range(0, len(data), size)) if size else [data])
    answered, counted, sidecar = await serve(engine, tmp_path, path, sent, pool=TWO_SLOTS)
    assert answered.body == data
    assert counted == Settled(0, 0, {"upstream_error": 1}, {}, 0)
    assert is_uncharged(sidecar)
    assert sidecar.controller.control.slo._seen == 0
    assert not list(sidecar.controller.accounts["g"].pricer.learned_by_target)


async def test_u3_what_was_streamed_before_an_error_is_charged(engine: FakeEngine, tmp_path: Path) -> None:
    events = [*[token_event()] * 5, event({"error": ERROR}), DONE]
    engine.answer = streams(*events)
    answered, counted, sidecar = await serve(engine, tmp_path, CHATS, STREAM)
    assert answered.body == b"".join(events)
    assert counted.outcomes == {"upstream_error": 1}
    assert counted.input > 0
    assert (counted.output, counted.first_tokens) == (5, 1)
    assert sidecar.controller.settlement.tokens_per_event.value == 1.0
    assert not is_uncharged(sidecar)


async def test_u3_usage_that_was_reported_before_an_error_is_charged(
    engine: FakeEngine, tmp_path: Path
) -> None:
    every = [
        event({"choices": [{}], "usage": {"prompt_tokens": 800, "completion_tokens": n}}) for n in range(1, 8)
    ]
    engine.answer = streams(*every, event({"error": ERROR}), DONE)
    asked = STREAM | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    _, counted, _ = await serve(engine, tmp_path, CHATS, asked)
    assert counted == Settled(800, 7, {"upstream_error": 1}, {}, 1)


async def test_u3_a_client_that_leaves_at_the_error_does_not_make_it_its_own(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + chunk(event({"error": ERROR})))
        await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (reader, writer):
            writer.write(request(CHATS, STREAM))
            await reader.readuntil(b"deadline exceeded")
        await until(lambda: is_whole(sidecar))
        assert settled(sidecar) == Settled(0, 0, {"upstream_error": 1}, {}, 0)


@pytest.mark.parametrize(
    ("path", "sent", "content"),
    [
        (CHATS, CHAT, {"error": ERROR}),
        (MESSAGES, CHAT, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
        (RESPONSES, RESPONSE | {"stream": False}, {"id": "r", "status": "failed", "usage": None}),
    ],
)
async def test_u3_an_error_that_is_the_whole_answer_is_an_error_whatever_its_status(
    engine: FakeEngine, tmp_path: Path, path: str, sent: object, content: object
) -> None:
    engine.answer = answers(json.dumps(content).encode())
    answered, counted, sidecar = await serve(engine, tmp_path, path, sent)
    assert (answered.status, json.loads(answered.body)) == (200, content)
    assert counted == Settled(0, 0, {"upstream_error": 1}, {}, 0)
    assert is_uncharged(sidecar)


async def test_u3_a_text_about_errors_is_no_error(engine: FakeEngine, tmp_path: Path) -> None:
    text = '{"error": {"code": 504}}, response.failed, event: error'
    said = event({"choices": [{"index": 0, "delta": {"content": text}}], "error": None})
    engine.answer = streams(said, said, FINISH_EVENT, usage_event(800, 45, None), DONE)
    answered, counted, _ = await serve(engine, tmp_path, CHATS, STREAM)
    assert answered.body == said * 2 + FINISH_EVENT + DONE
    assert counted == Settled(800, 45, {"finished": 1}, {}, 1)


async def test_u4_the_engine_is_asked_not_to_compress(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for asked in ({}, {"accept-encoding": "gzip, br"}, {"Accept-Encoding": "identity;q=0, *"}):
            await ask(sidecar, request(headers=asked))
    assert [received.raw_head.lower().count(b"accept-encoding") for received in engine.received] == [1] * 3
    assert {received.headers["accept-encoding"] for received in engine.received} == {"identity"}


CONTENT = json.dumps({"choices": [{"text": "x" * 500}], "usage": PLAIN}).encode()
BARE = json.dumps({"choices": [{"text": "x"}]}).encode()
WITHOUT = {
    "gzip": (answers(gzip.compress(CONTENT), "content-encoding: gzip"), "compressed"),
    "deflate": (answers(zlib.compress(CONTENT), "content-encoding: deflate"), "compressed"),
    "br": (answers(b"\x0b\x02\x80", "Content-Encoding: br"), "compressed"),
    "several codings": (answers(gzip.compress(CONTENT), "content-encoding: identity, gzip"), "compressed"),
    "no usage": (answers(BARE), "missing"),
    "null": (answers(BARE[:-1] + b', "usage": null}'), "missing"),
    "nothing counted": (answers(BARE[:-1] + b', "usage": {}}'), "missing"),
    "no usage in a long one": (answers(BARE.replace(b'"x"', b'"' + b"x" * 70_000 + b'"')), "missing"),
    "empty": (answers(b""), "missing"),
    "a page": (answers(b"<html>ready</html>", kind="text/html"), "unreadable"),
    "bytes": (answers(bytes(range(256)) * 300, kind="application/octet-stream"), "unreadable"),
    "lines of JSON": (answers(BARE + b"\n" + BARE, kind="application/x-ndjson"), "unreadable"),
    "usage of another type": (answers(BARE[:-1] + b', "usage": [1]}'), "unreadable"),
    "tokens of another type": (answers(BARE[:-1] + b', "usage": {"prompt_tokens": "9"}}'), "unreadable"),
}


@pytest.mark.parametrize("name", WITHOUT)
async def test_u4_an_answer_without_usage_is_relayed_estimated_and_counted(
    engine: FakeEngine, tmp_path: Path, name: str
) -> None:
    engine.answer, reason = WITHOUT[name]
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answered = await ask(sidecar, request())
        counted = settled(sidecar)
        assert counted.outcomes == {"finished": 1}
        assert counted.without_usage == {reason: 1}
        assert counted.input > 0
        assert counted.output == 5  # the bound: an estimate
        assert is_whole(sidecar)
        page = (await admin(sidecar, "/metrics"))[1]
    assert (
        f'tokenpool_answers_without_usage_total{{entitlement="g",pool="chat",reason="{reason}"}} 1.0' in page
    )
    if name == "gzip":
        assert gzip.decompress(answered.body) == CONTENT
        assert answered.headers["content-encoding"] == "gzip"


STREAMS_WITHOUT = {
    "no usage": ([token_event()] * 4 + [FINISH_EVENT, DONE], "missing", 6),
    "usage of another type": (
        [token_event(), event({"choices": [], "usage": {"prompt_tokens": "9"}}), DONE],
        "unreadable",
        3,
    ),
    "no events": ([b"Internal ", b"error"], "unreadable", 0),
    "nothing": ([], "missing", 0),
}


@pytest.mark.parametrize("name", STREAMS_WITHOUT)
async def test_u4_a_stream_without_usage_is_estimated_and_counted(
    engine: FakeEngine, tmp_path: Path, name: str
) -> None:
    events, reason, output = STREAMS_WITHOUT[name]
    engine.answer = streams(*events)
    _, counted, _ = await serve(engine, tmp_path, CHATS, STREAM)
    assert (counted.output, counted.without_usage) == (output, {reason: 1})


async def test_u4_a_compressed_stream_is_relayed_at_once_and_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    squeeze = zlib.compressobj(wbits=31)
    parts = [
        squeeze.compress(e) + squeeze.flush(zlib.Z_SYNC_FLUSH) for e in (token_event(), usage_event(), DONE)
    ]
    head = fake.STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    engine.answer = streams(*parts, head=head)
    answered, counted, _ = await serve(engine, tmp_path, CHATS, STREAM)
    assert answered.body == b"".join(parts)
    assert (counted.output, counted.without_usage) == (8, {"compressed": 1})


async def test_u4_only_answers_that_finished_and_had_a_price_are_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def silent(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + chunk(token_event()))
        await asyncio.Event().wait()

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        engine.answer = answers(b'{"object":"list"}')
        await ask(sidecar, request("/v1/models", method="GET", headers={"x-test": "1"}))
        engine.answer = answers(json.dumps({"error": ERROR}).encode(), status="400 Bad Request")
        assert (await ask(sidecar, request())).status == 400
        engine.answer = answers(CONTENT, "content-encoding: identity")
        await ask(sidecar, request())
        engine.answer = silent
        async with connected(sidecar) as (reader, writer):
            writer.write(request(CHATS, STREAM))
            await reader.readuntil(token_event())
        await until(lambda: is_whole(sidecar))
        assert settled(sidecar).without_usage == {}
        assert settled(sidecar).outcomes == {"finished": 3, "client_gone": 1}


def test_the_reasons_are_a_closed_set() -> None:
    assert set(NoUsage) == {"compressed", "missing", "unreadable"}


@pytest.mark.parametrize(
    "heads",
    [
        [b": ping\n\n"],
        [response("created"), response("in_progress")],
        [named({"type": "ping"}), named(START)],
    ],
    ids=["comments", "responses", "messages"],
)
async def test_what_comes_before_any_output_is_no_first_token(
    engine: FakeEngine, tmp_path: Path, heads: list[bytes]
) -> None:
    go_on = asyncio.Event()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + b"".join(map(chunk, heads)))
        await go_on.wait()
        writer.write(chunk(named(TEXT)) + b"0\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request(MESSAGES, MESSAGE))
        await reader.readuntil(heads[-1])
        assert settled(sidecar).first_tokens == 0
        go_on.set()
        await reader.readuntil(b"0\r\n\r\n")
        assert settled(sidecar).first_tokens == 1
