"""Fuzzing what reads bytes of tenants and engines: bodies, usage, heads. No socket, so far more examples.

Python's own ``json``, which the engine reads with, judges what a body means, the strict reader what a head
means, slow readers of whole texts the usage.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from sidecar.dialects import anthropic, openai, pooling, responses
from sidecar.dialects.bodies import Malformed, Parsed
from sidecar.dialects.fields import with_priority
from sidecar.dialects.stream_reader import FingerprintField, StreamReader
from sidecar.dialects.usage_readers import BodyReader, Reader, ResponseReader
from sidecar.proxy.head_cache import CachedHead, only_chunk, only_chunks
from sidecar.proxy.heads import RequestFramer, RequestHead, ResponseHead
from tests.fakes.scripted_engine import DONE, FINISH_EVENT, token_event, usage_event
from tests.support.fuzzing import fuzz, mutated, pieces
from tests.support.strict import answers, requests
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import EngineShape, Pricer, Usage

# --- JSON as it should not be ---

LEAVES = [
    *(
        b"null",
        b"true",
        b"false",
        b"0",
        b"-0",
        b"-1",
        b"1",
        b"2",
        b"5.0",
        b"1e2",
        b"1e999",
        b"01",
        b"1.",
        b"NaN",
    ),
    *(b"Infinity", b"2147483648", b"2147483649", b"9" * 30, b"9" * 5000, b'""', b'"m"', b'"5"', b'"\\u0000"'),
    *(
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\xc3\xa9"',
        b'"a\nb"',
    ),
    *(
        b"[" * 400 + b"]" * 400,
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 400 + b"1" + b"}" * 400,
        b"[",
        b"}",
        b"",
    ),
    *(b'"usage"', b'"{"', b'"}"', b'"\\"usage\\":{"', b"[]", b"{}", b'"' + b"x" * 1100 + b'"'),
]
TOKENS = [
    *LEAVES,
    b",",
    b":",
    b'"',
    b"\\",
    b"\xef\xbb\xbf",
    b" ",
    b"\t",
    b"\x0b",
    b"\xa0",
    b"//",
    b'"a":1,',
    b"\x00",
]


def spelled(name: str, *, escapes: bool) -> bytes:
    """A key, plain or with its first letter as an escape."""
    return b'"\\u%04x%b"' % (ord(name[0]), name[1:].encode()) if escapes else b'"%b"' % name.encode()


def objects(names: list[str], values: st.SearchStrategy[bytes], most: int = 4) -> st.SearchStrategy[bytes]:
    """Objects as they may be written: names twice, names in escapes."""
    rarely = st.integers(0, 9).map(lambda number: number == 0)
    keys = st.builds(lambda name, rare: spelled(name, escapes=rare), st.sampled_from(names), rarely)
    pairs = st.builds(lambda key, value: key + b":" + value, keys, values)
    return st.lists(pairs, max_size=most).map(lambda parts: b"{" + b",".join(parts) + b"}")


NAMES = [
    *("role", "content", "type", "text", "thinking", "refusal", "input", "image_url", "uuid", "input_audio"),
    *("summary", "output", "arguments", "tool_calls", "include_usage", "usage", "a"),
]
texts = st.text(max_size=8).map(lambda text: json.dumps(text).encode())
wild = st.recursive(
    st.sampled_from(LEAVES) | texts | st.integers().map(lambda number: b"%d" % number),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: b"[" + b",".join(parts) + b"]") | objects(NAMES, inner)
    ),
    max_leaves=6,
)

# --- bodies ---

MESSAGES = [
    b'[{"role":"user","content":"hi"}]',
    b'[{"role":"system","content":"be"},{"role":"user","content":[{"type":"text","text":"what"}]}]',
    b'[{"content":[{"type":"image_url","image_url":{"url":"data:x"}},{"image_url":"x"},{"text":"y"}]}]',
    b'[{"content":[{"type":"refusal","refusal":"no, never"}]},{"content":null,"tool_calls":[{"id":"1"}]}]',
    b'[{"content":[{"type":"tool_result","content":[{"type":"text","text":"deep"}]}]}]',
    b"[]",
    b"[{}]",
]
PROMPTS = [b'"hello"', b'["a","bc"]', b"[1,2,3]", b"[[1,2],[3]]", b"[]", b'["a",1]']
COUNTS = [b"1", b"2", b"5", b"null", b"1024", b"1025", b"0"]
FLAGS = [b"true", b"true", b"false", b"null"]
MODELS = [b'"m"', b"null", b'""']
ONES = [b'"one"', b'["one","other"]', b'{"content":[{"type":"text","text":"rich"}]}', b"null", b"[]"]

GENERATION = {
    "model": MODELS,
    "stream": FLAGS,
    "stream_options": [b"null", b"{}", b'{"include_usage":true}', b'{"include_usage":null,"a":1}'],
    "max_tokens": COUNTS,
    "n": COUNTS,
    "priority": COUNTS,
}
CHAT = GENERATION | {"max_completion_tokens": COUNTS}


def number(*values: Any) -> Any:
    """The first that is there."""
    return next((value for value in values if value is not None), None)


def said(value: Any) -> int:
    """Bytes of the texts that the engine finds in a content, at least."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(map(said, value))
    if not isinstance(value, dict) or not isinstance(value.get("type", "text"), str):
        return 0
    kind = value.get("type", "text")
    if "image" in kind or "video" in kind or "audio" in kind:
        return 0
    names = ("text", "content", "thinking", "refusal")
    return sum(said(value[name]) for name in names if isinstance(value.get(name), str | list))


def contents(messages: Any) -> int:
    """The same of all messages of a conversation, or of several."""
    if not isinstance(messages, list):
        return 0
    each = (
        said(message.get("content")) if isinstance(message, dict) else contents(message)
        for message in messages
    )
    return sum(each)


def document(value: Any) -> int:
    """The same of what is scored: a text, a rich one, or several."""
    if isinstance(value, list):
        return sum(map(document, value))
    return said(value.get("content") if isinstance(value, dict) else value)


def scored(body: dict[str, Any]) -> int:
    """The engine may read any pair that is there: the longest."""
    names = ("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")
    sent = [(body.get(one), body.get(other)) for one, other in names]
    return max(document(one) + document(other) for one, other in sent if None not in (one, other))


def embedded(body: dict[str, Any]) -> int:
    """The same of what is there to be embedded."""
    texts, data = body.get("input"), body.get("data")
    if isinstance(texts, list) and not all(isinstance(text, str) for text in texts):
        texts = None
    return max(
        said(texts),
        contents(body.get("input")),
        contents(body.get("messages")),
        said(data) if isinstance(data, str) else 0,
    )


def bounded(*bounds: Any) -> int | None:
    """The first bound that is there; the engine refuses less than one token."""
    bound = number(*bounds)
    return None if bound is None else max(bound, 1)


class Reading(NamedTuple):
    """How the bodies of one parser are written, and what the engine reads in them."""

    parse: Callable[[bytes], Parsed]
    needed: dict[str, list[bytes]]
    others: dict[str, list[bytes]]
    text: Callable[[dict[str, Any]], int]
    """Bytes of text, at least."""
    bound: Callable[[dict[str, Any]], Any] = lambda _: 0
    sequences: Callable[[dict[str, Any]], Any] = lambda _: 1


READINGS = {
    "chat": Reading(
        openai.parse_chat,
        {"messages": MESSAGES},
        CHAT | {"tools": [b"[]", b'[{"type":"function"}]', b"null"]},
        lambda body: contents(body["messages"]),
        lambda body: bounded(body.get("max_completion_tokens"), body.get("max_tokens")),
        lambda body: number(body.get("n"), 1),
    ),
    "batch": Reading(
        openai.parse_chat_batch,
        {"messages": [b"[%b,%b]" % (one, one) for one in MESSAGES]},
        CHAT,
        lambda body: contents(body["messages"]),
        lambda body: bounded(body.get("max_completion_tokens"), body.get("max_tokens")),
        lambda body: number(body.get("n"), 1),
    ),
    "completion": Reading(
        openai.parse_completion,
        {"prompt": PROMPTS},
        GENERATION | {"best_of": COUNTS, "suffix": [b'"end"', b"null"]},
        lambda body: said(body["prompt"]),
        lambda body: bounded(body.get("max_tokens"), 16),
        lambda body: max(number(body.get("n"), 1), number(body.get("best_of"), 1)),
    ),
    "response": Reading(
        responses.parse,
        {"input": [*PROMPTS[:1], *MESSAGES]},
        {
            "model": MODELS,
            "stream": FLAGS,
            "background": FLAGS,
            "priority": COUNTS,
            "max_output_tokens": COUNTS,
        }
        | {"instructions": [b'"be"'], "previous_response_id": [b'"resp_1"', b"null"], "request_id": [b'"r"']},
        lambda body: said(body["input"]) if isinstance(body["input"], str) else contents(body["input"]),
        lambda body: bounded(body.get("max_output_tokens")),
    ),
    "message": Reading(
        anthropic.parse,
        {"messages": MESSAGES, "max_tokens": COUNTS},
        {
            "model": MODELS,
            "stream": FLAGS,
            "system": [b'"be"', b'[{"type":"text","text":"be"}]'],
            "tools": [b"[{}]"],
        },
        lambda body: contents(body["messages"]) + said(body.get("system")),
        lambda body: bounded(body.get("max_tokens")),
    ),
    "input": Reading(
        pooling.parse_input,
        {"input": [*PROMPTS, *MESSAGES]},
        {"model": MODELS, "messages": [b"null", *MESSAGES], "data": [b"null", b'"data"'], "priority": COUNTS},
        embedded,
    ),
    "scores": Reading(
        pooling.parse_scores,
        {"queries": ONES, "documents": ONES},
        {"model": MODELS, "priority": COUNTS}
        | dict.fromkeys(("items", "text_1", "text_2", "data_1", "data_2", "queries", "documents"), ONES),
        scored,
    ),
    "reranking": Reading(
        pooling.parse_reranking,
        {"query": ONES, "documents": ONES},
        {"model": MODELS, "priority": COUNTS},
        lambda body: said(body.get("query")) + said(body.get("documents")),
    ),
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A parser, and a body much like what it reads."""
    name = draw(st.sampled_from(sorted(READINGS)))
    reading = READINGS[name]
    known = reading.others | reading.needed
    names = [*reading.needed, *draw(st.lists(st.sampled_from(sorted(known)), max_size=5))]
    if "stream" in known and draw(st.booleans()):
        names.append("stream")
    pairs = []
    for field in draw(st.permutations(names)):
        is_wild, escapes = draw(st.integers(0, 11)) == 0, draw(st.integers(0, 9)) == 0
        value = draw(wild if is_wild else st.sampled_from(known[field]))
        pairs.append(spelled(field, escapes=escapes) + draw(st.sampled_from([b":", b" : "])) + value)
    if draw(st.integers(0, 3)) == 0:
        pairs.append(draw(texts) + b":" + draw(wild))
    body = draw(st.sampled_from([b"", b"", b" ", b"\r\n"])) + b"{" + b",".join(pairs) + b"}"
    return name, mutated(draw, body, TOKENS, most=2) if draw(st.integers(0, 2)) == 0 else body


def engine_reads(body: bytes) -> dict[str, Any] | None:
    """What the engine makes of a body; ``None`` if it refuses it for its size."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError) as error:
        # Of what is not JSON at all we must say so; of what is too deep or too large for it, it does.
        assert not isinstance(error, json.JSONDecodeError | UnicodeError), body
        return None
    assert isinstance(read, dict)
    return read


PRICER = Pricer(Entitlement("a", "p", Tier.ELASTIC), Pricing())


def check_body(example: tuple[str, bytes]) -> None:
    """A body is refused with a reason, or priced as the engine will read it, and sent on as it was."""
    name, body = example
    reading = READINGS[name]
    try:
        parsed = reading.parse(body)
    except Malformed as error:
        assert str(error)
        return
    read = engine_reads(body)
    if read is None:
        return
    check_fields(reading, parsed, read)
    ask = parsed.ask
    assert ask.text_bytes >= reading.text(read)
    for window in (None, 1, 2048):
        cost = PRICER.price(ask, EngineShape(context_window=window))
        tokens = (cost.input_tokens, cost.output_tokens, cost.kv_tokens, cost.cached_tokens)
        assert all(math.isfinite(part) and part >= 0 for part in (*tokens, cost.sequences, cost.throughput))
    check_ids(parsed, read)
    check_rewriting(parsed, body, read)


def check_ids(parsed: Parsed, read: dict[str, Any]) -> None:
    """Token ids are counted by their commas: there must be as many as the engine reads."""
    given = read.get("prompt", read.get("input"))
    if not isinstance(given, list) or parsed.ask.token_ids == 0:
        return
    lists = [given] if all(isinstance(each, int) for each in given) else given
    assert all(isinstance(number, int) for each in lists for number in each)
    assert parsed.ask.prompts == len(lists)
    assert parsed.ask.token_ids == sum(max(len(each), 1) for each in lists)


def check_fields(reading: Reading, parsed: Parsed, read: dict[str, Any]) -> None:
    """What decides the price is what the engine reads."""
    ask = parsed.ask
    assert parsed.model == read.get("model")
    if reading.parse is not openai.parse_chat_batch and "stream" in reading.others:
        assert parsed.streams == bool(read.get("stream"))
    assert ask.output_bound == reading.bound(read)
    assert ask.sequences_per_prompt == reading.sequences(read)
    assert parsed.has_priority == ("priority" in read and parsed.takes_priority)
    assert parsed.continued_response == (
        read.get("previous_response_id") if reading.parse is responses.parse else None
    )


def check_rewriting(parsed: Parsed, body: bytes, read: dict[str, Any]) -> None:
    """The engine gets the client's words, with a field more where that was meant."""
    if parsed.hides_usage:
        read = read | {"stream_options": {"include_usage": True}}
        assert json.loads(parsed.body, object_pairs_hook=once("stream_options")) == read
    else:
        assert parsed.body == body
    if parsed.takes_priority:
        sent = with_priority(parsed, 10)
        assert json.loads(sent, object_pairs_hook=once("priority")) == read | {"priority": 10}


def once(name: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Reads an object in which a name may be once only."""

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert [key for key, _ in pairs].count(name) <= 1
        return dict(pairs)

    return read


# --- usage ---

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 9)
    | st.floats(0, 9)
    | st.sampled_from(["usage", '"usage":{', "}"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "id", "text"]), inner, max_size=2)
    ),
    max_leaves=5,
)
amounts = st.integers(0, 1 << 40)
numbers: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.floats(0, 9) | st.integers(-1, 1) | st.just([]) | st.just({})
)
details = st.fixed_dictionaries({}, optional={"cached_tokens": amounts | st.none() | numbers})
blocks = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        [
            *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"),
            *("cache_read_input_tokens", "cache_creation_input_tokens"),
        ],
        amounts | amounts | amounts | numbers,
    )
    | dict.fromkeys(["prompt_tokens_details", "input_tokens_details"], details | numbers),
)
answer_bodies = st.fixed_dictionaries(
    {}, optional={"id": st.text(max_size=5) | junk, "output": junk, "usage": blocks | st.none() | numbers}
)
events = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(junk, max_size=2) | junk,
        "usage": blocks | st.none(),
        "system_fingerprint": st.sampled_from(["fp", "fq"]) | junk,
        "response": answer_bodies | st.none(),
        "message": answer_bodies | st.none(),
        "finish_reason": st.sampled_from(["stop", None]),
    },
)


def written(value: Any, *, compact: bool) -> bytes:
    return json.dumps(value, separators=(",", ":") if compact else None).encode()


def slow_count(block: dict[str, Any], name: str) -> int | None:
    value = block.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1 << 53:
        raise ValueError(name)
    return int(value)


def slow_counts(block: Any) -> dict[str, int]:
    """What a usage block counts. Raises ``ValueError`` or ``TypeError`` if it is none."""
    if not isinstance(block, dict):
        raise TypeError("usage")
    names = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens")
    prompt, fresh, completed, told, total = (slow_count(block, name) for name in names)
    read, made = (slow_count(block, f"cache_{kind}_input_tokens") for kind in ("read", "creation"))
    cached: list[int | None] = []
    for name in ("prompt_tokens_details", "input_tokens_details"):
        inside = block.get(name)
        if inside is not None:
            if not isinstance(inside, dict):
                raise TypeError(name)
            cached.append(slow_count(inside, "cached_tokens"))
    output = completed or (told if told is not None else completed)
    if prompt is None and fresh is None and total is not None:
        prompt = max(total - (output or 0), 0)
    slow_count(block, "cached_tokens")
    names = ("prompt", "fresh", "read", "created", "cached", "output")
    counts = (prompt, fresh, read, made, cached[0] if cached else None, output)
    return {name: count for name, count in zip(names, counts, strict=True) if count is not None}


def slow_usage(counts: dict[str, int]) -> Usage | None:
    """What counts come to."""
    get = counts.get
    if get("prompt"):
        usage = Usage(get("prompt", 0), get("output", 0), get("cached") or get("read", 0))
    else:
        tokens = sum(get(name, 0) for name in ("fresh", "read", "created"))
        usage = Usage(tokens, get("output", 0), get("cached", 0) + get("read", 0))
    return usage if usage[:2] != (0, 0) else None


def slow_answer(answer: Any) -> tuple[str | None, Usage | None]:
    """Name and usage of a whole response."""
    if not isinstance(answer, dict):
        return None, None
    name = answer.get("id")
    try:
        usage = slow_usage(slow_counts(answer.get("usage")))
    except (ValueError, TypeError):
        usage = None
    return name if isinstance(name, str) else None, usage


def slow_stream(data: bytes) -> tuple[str | None, Usage | None]:
    """Name and usage of a stream, by reading each event that mentions usage."""
    name: str | None = None
    known: dict[str, int] = {}
    for event in re.split(rb"\r\n\r\n|\n\n|\r\r", data)[:-1]:
        try:
            read = json.loads(event.partition(b"data:")[2]) if b'"usage"' in event else {}
        except ValueError:
            continue
        inner = next((read[key] for key in ("response", "message") if isinstance(read.get(key), dict)), None)
        for answer in (read, inner or {}):
            try:
                counts = slow_counts(answer.get("usage"))
            except (ValueError, TypeError):
                continue
            says_cached = counts.get("read") or counts.get("created")
            for key, count in counts.items():
                if count or (key == "fresh" and says_cached) or key not in known:
                    known[key] = count
            if answer is read.get("response") and "output" in counts and isinstance(answer.get("id"), str):
                name = answer["id"] or name
    return name, slow_usage(known)


def fed(reader: Reader, parts: list[bytes]) -> Reader:
    """The reader after these parts; it gives on all that it must, and holds little."""
    given = b""
    for part in parts:
        given += reader.feed(part)
        assert len(getattr(reader, "_held", b"")) <= 4096 + 64 or isinstance(reader, StreamReader)
    given += reader.end()
    if not isinstance(reader, StreamReader):
        assert given == b"".join(parts)
    return reader


class UsageExample(NamedTuple):
    """Bytes of an engine, what they say, and where they are cut."""

    data: bytes
    cuts: list[int]
    expected: tuple[str | None, Usage | None] | None
    """``None`` where they are mutated: then it must only be the same whatever the cuts."""


def cut(draw: st.DrawFn, data: bytes) -> list[int]:
    return draw(st.lists(st.integers(0, len(data)), max_size=6))


@st.composite
def unary_answers(draw: st.DrawFn) -> UsageExample:
    """A body whose usage comes last, or nearly."""
    block, compact = draw(blocks), draw(st.booleans())
    body = {"choices": draw(junk), "usage": block, "prompt_logprobs": draw(junk)}
    data = written(body, compact=compact)
    if draw(st.booleans()):
        data = mutated(draw, data, TOKENS)
        return UsageExample(data, cut(draw, data), None)
    return UsageExample(data, cut(draw, data), (None, slow_answer(body)[1]))


@st.composite
def whole_responses(draw: st.DrawFn) -> UsageExample:
    """A body of ``/v1/responses``."""
    body = draw(answer_bodies)
    data = written(body, compact=draw(st.booleans()))
    if draw(st.booleans()):
        data = mutated(draw, data, TOKENS)
        return UsageExample(data, cut(draw, data), None)
    return UsageExample(data, cut(draw, data), slow_answer(body))


STREAM_TOKENS = [
    *(b"\n\n", b"\r\n", b"\r", b"\ndata:", b'"usage":', b'"finish_reason":"', b"\nevent: error"),
    *(b'"error":1,', b'"\\u0075sage":', b"\xef\xbb\xbf", b": ping\n", b"\nerror: "),
]


@st.composite
def streams(draw: st.DrawFn) -> UsageExample:
    """Events, most of them well-formed."""
    made = []
    for event in draw(st.lists(events, max_size=5)):
        prefix = draw(st.sampled_from([b"", b"event: x\n", b"id: 7\n: ping\n"]))
        start = draw(st.sampled_from([b"data: ", b"data:"]))
        made.append(prefix + start + written(event, compact=draw(st.booleans())) + b"\n\n")
    plain = [token_event(), FINISH_EVENT, usage_event(), usage_event(fingerprint=None), DONE, b": ping\n\n"]
    ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
    mixed = draw(st.permutations(made + draw(st.lists(st.sampled_from(plain), max_size=4))))
    data = b"".join(event.replace(b"\n", draw(ends)) for event in mixed)
    if draw(st.booleans()):
        data = mutated(draw, data, [*TOKENS, *STREAM_TOKENS])
        return UsageExample(data, cut(draw, data), None)
    return UsageExample(data, cut(draw, data), slow_stream(data))


def searching() -> BodyReader:
    """A reader to which every body is too long to be kept."""
    return BodyReader(longest=0)


def check_bodies_usage(made: Callable[[], BodyReader]) -> Callable[[UsageExample], None]:
    def check(example: UsageExample) -> None:
        whole = fed(made(), [example.data])
        said = whole.response, whole.usage
        assert example.expected in (None, said)
        assert whole.usage is None or min(whole.usage) >= 0
        for parts in (pieces(example.data, example.cuts), [bytes([byte]) for byte in example.data]):
            again = fed(made(), [part for part in parts if part])
            assert (again.response, again.usage) == said

    return check


def check_streams_usage(example: UsageExample) -> None:
    """The same whatever the cuts, whether usage is shown or hidden, and whether the fingerprint is known."""
    bytewise = [bytes([byte]) for byte in example.data]
    for knows in (None, False, True):
        results = []
        for parts in ([example.data], pieces(example.data, example.cuts), bytewise):
            fingerprint = None if knows is None else FingerprintField()
            if fingerprint is not None and knows:
                fingerprint.learn("known")
            reader = StreamReader(fingerprint)
            given = b"".join([*map(reader.feed, filter(None, parts)), reader.end()])
            assert fingerprint is not None or given == example.data
            assert example.expected in (None, (reader.response, reader.usage))
            # No engine ends an event with more than one blank line: there, a cut may move the third line end.
            # Nor does one change its line ends: then events of one read may be counted as one.
            is_plain = re.search(rb"(?:\r\n|\r|\n){3}|\r.*\n\n|\n\n.*\r", example.data, re.DOTALL) is None
            seen = (reader.events, given) if is_plain else ()
            results.append((reader.response, reader.usage, seen))
        assert results[0] == results[1] == results[2]


# --- heads ---

TCHAR = b"abcdefghijklmnopqrstuvwxyz0123456789-_.!#$%&'*+^`|~"
header_names = st.sampled_from(
    [
        *(
            b"connection",
            b"te",
            b"expect",
            b"host",
            b"content-length",
            b"transfer-encoding",
            b"authorization",
        ),
        *(b"x-api-key", b"x-tokenpool-reason", b"content-type", b"upgrade", b"keep-alive", b"x-a", b"accept"),
    ]
) | st.lists(st.sampled_from(TCHAR), min_size=1, max_size=6).map(bytes)
visible = st.sampled_from([*range(0x21, 0x7F), *range(0x80, 0x100)])
inner = visible | st.sampled_from(b"\t ,:")
header_values = st.sampled_from(
    [b"", b"close", b"x-a, te", b"content-type", b"5", b"chunked", b"a,,b"]
) | st.builds(
    lambda first, middle, last: bytes([first, *middle, last]), visible, st.lists(inner, max_size=6), visible
)
headers = st.lists(st.tuples(header_names, header_values), max_size=6)
FRAMER = RequestFramer("engine:8000", "engine-key", "x-who")


class Heads(NamedTuple):
    """What a parser found in a request and in an answer, and bytes much like what it had seen."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    status: int
    reason: bytes
    length: int | None
    again: bytes
    chunk: bytes


@st.composite
def heads(draw: st.DrawFn) -> Heads:
    body = draw(st.binary(max_size=20))
    found = draw(headers)
    framed = framed_head(found, body) + body
    chunk = mutated(draw, b"%x\r\n%b\r\n" % (len(body), body), HEAD_TOKENS, most=2)
    length = draw(st.none() | st.integers(0, 1 << 40))
    status = draw(st.integers(200, 599))
    reason = draw(st.sampled_from([b"", b"OK", b"Not Found", b"\xff\t"]))
    again = mutated(draw, framed, HEAD_TOKENS, most=2)
    return Heads(found, body, status, reason, length, again, chunk)


HEAD_TOKENS = [b"\r\n", b"0", b"9", b"a", b" ", b"\r\n\r\n", b"content-length: 3\r\n", b";x", b"+", b"-"]


def framed_head(found: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    head = RequestHead()
    head.method, head.target, head.headers = b"POST", b"/v1/completions", found
    return FRAMER.frame(head, len(body), None)


def check_heads(example: Heads) -> None:
    """What is relayed is read strictly, in one way; what is known is read as it was."""
    sent = framed_head(example.headers, example.body) + example.body
    one, other = requests(sent * 2)
    assert one == other
    assert (one.method, one.target, one.body) == (b"POST", b"/v1/completions", example.body)
    assert [value for name, value in one.headers if name == b"authorization"] == [b"Bearer engine-key"]
    check_answer_head(example)
    check_cached(sent, example.again)
    inside = only_chunk(example.chunk)
    assert inside is None or inside == only_chunks(example.chunk)
    inside = only_chunks(example.chunk)
    if inside is not None:
        (answer,), left = answers(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + example.chunk + b"0\r\n\r\n"
        )
        assert (answer.body, left) == (inside, b"")


def check_answer_head(example: Heads) -> None:
    found = [pair for pair in example.headers if pair[0] not in (b"content-length", b"transfer-encoding")]
    if example.length is not None:
        found.append((b"Content-Length", b"00%d" % example.length))
    head = ResponseHead(example.status, example.reason, found)
    assert head.content_length == example.length
    if example.status in (204, 304):
        return
    wire = head.frame(
        b"x-extra: 1\r\n", b"content-length: %d\r\n" % len(example.body), b"connection: close\r\n"
    )
    (answer,), left = answers(wire + example.body)
    assert (answer.status, answer.body, left) == (example.status, example.body, b"")


def check_cached(seen: bytes, again: bytes) -> None:
    known = CachedHead.of(seen)
    assert known is not None
    body = known.body_of(again)
    if body is None:
        return
    # Zeros before a length are read by the parser, and never written by us.
    head, end, rest = again.partition(b"\r\n\r\n")
    lines = [b"content-length: %d" % len(body) if is_length(line) else line for line in head.split(b"\r\n")]
    (first,), (second,) = requests(seen), requests(b"\r\n".join(lines) + end + rest)
    assert second.body == body
    others = [[pair for pair in read.headers if pair[0] != b"content-length"] for read in (first, second)]
    assert (first.method, first.target, others[0]) == (second.method, second.target, others[1])


def is_length(line: bytes) -> bool:
    return line.startswith(b"content-length: ")


# --- all ---

FOUND_BODIES = [
    # What was priced was not what the engine would read.
    ("input", b'{"input":"a long text","data":null}'),
    ("input", b'{"input":"a long text","data":1}'),
    ("input", b'{"input":"a text that is longer than a message","messages":[{"content":"x"}]}'),
    ("scores", b'{"queries":null,"documents":null,"text_1":"a long text","text_2":"another"}'),
    ("scores", b'{"queries":"a","documents":"b","text_1":"a long text","text_2":"another"}'),
    (
        "chat",
        b'{"messages":[{"content":[{"type":"refusal","refusal":"a text that is longer than a message"}]}]}',
    ),
    # Another form of a document: refused by the engine, but never for nothing.
    ("reranking", b'{"query":"a","documents":{"text":"a long text"}}'),
    ("reranking", b'{"query":{"content":null,"text":"a long text"},"documents":"a"}'),
]
FOUND_USAGE = [
    # Nested too deeply for the decoder.
    (b'{"usage":{"a":' + b"[" * 1500 + b"]" * 1500 + b"}}", None),
    # The mark of usage is cut, and something before it was taken for one.
    (b'{"text":"usage"}],"usage":{"prompt_tokens":7}}', Usage(7, 0)),
    (b'{"usage":' + b" " * 5000 + b'"usage":{"prompt_tokens":7}}', Usage(7, 0)),
    # A text, and an object that follows something else of the name.
    (b'{"usage":{"prompt_tokens":7},"text":"usage"}', Usage(7, 0)),
    (b'{"usage":null,"x":{"prompt_tokens":7}}', None),
    (b'{"usage":{"prompt_tokens":-7}}', None),
]
FOUND_RESPONSES = [b'{"id":"\xff" ""}', b'{"id":"\xff","usage":{}}']
FOUND_STREAMS = [b'data: "finish_reason":"\n\n']


@pytest.mark.parametrize("example", FOUND_BODIES)
def test_bodies_that_fuzzing_found_stay_fixed(example: tuple[str, bytes]) -> None:
    check_body(example)


@pytest.mark.parametrize(("data", "usage"), FOUND_USAGE)
def test_usage_that_fuzzing_found_stays_fixed(data: bytes, usage: Usage | None) -> None:
    check_bodies_usage(searching)(UsageExample(data, [], (None, usage)))
    for at in range(max(len(data) - 50, 0), len(data)):
        assert fed(searching(), pieces(data, [at])).usage == usage


@pytest.mark.parametrize("data", FOUND_RESPONSES)
def test_responses_that_fuzzing_found_stay_fixed(data: bytes) -> None:
    check_bodies_usage(ResponseReader)(UsageExample(data, [], None))


@pytest.mark.parametrize("data", FOUND_STREAMS)
def test_streams_that_fuzzing_found_stay_fixed(data: bytes) -> None:
    check_streams_usage(UsageExample(data, [], None))


def test_bodies_are_priced_as_the_engine_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz("bodies", 0.15, bodies(), check_body, capsys)


def test_usage_is_read_whatever_the_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz("answers", 0.02, unary_answers(), check_bodies_usage(BodyReader), capsys)
    fuzz("long answers", 0.02, unary_answers(), check_bodies_usage(searching), capsys)
    fuzz("responses", 0.03, whole_responses(), check_bodies_usage(ResponseReader), capsys)
    fuzz("streams", 0.05, streams(), check_streams_usage, capsys)


def test_heads_are_read_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz("heads", 0.04, heads(), check_heads, capsys)
