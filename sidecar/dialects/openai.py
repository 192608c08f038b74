"""The OpenAI dialect, as vLLM speaks it: request bodies in, asks out; refusals in, error bodies out.

The body is decoded once, into the few fields that price it; prompt texts stay undecoded (``Raw``), so a
400 kB prompt is skimmed and not copied. Types are strict: where vLLM would coerce (``"5"`` to 5), a
request could mean one thing here and another there, and is refused with the field's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tokenpool.cost import Ask
from tokenpool.outcomes import Reason

MESSAGE_BYTES = 16
"""What the chat template adds around one message, in bytes of text: about four tokens."""
COMPLETIONS_DEFAULT_TOKENS = 16
"""vLLM's ``max_tokens`` of ``/v1/completions`` where the request gives none."""
MOST_SEQUENCES = 1024
"""More sequences in one request are a mistake or an attack; engines refuse them too."""
_MOST_TOKENS = 1 << 31
_BRACKET, _QUOTE, _NULL = b'["n'

_Request = TypeVar("_Request")


class Malformed(ValueError):
    """The body cannot be priced; the text says what is wrong with it, ``param`` where."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Parsed(NamedTuple):
    """What the proxy needs to know of a request body."""

    ask: Ask
    model: str | None
    streams: bool
    hides_usage: bool
    """Whether usage must be asked of the engine, and kept from the client who did not ask."""
    body: bytes
    """The body for the engine."""
    has_priority: bool = False
    """Whether the client wrote a ``priority`` of its own."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


_NOTHING = Raw(b"null")


class _Message(msgspec.Struct):
    content: Raw = _NOTHING
    tool_calls: Raw = _NOTHING


class _Part(msgspec.Struct):
    type: str | None = None
    text: Raw = _NOTHING


class _Generation(msgspec.Struct):
    model: str | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | UnsetType | None = UNSET
    max_tokens: int | None = None
    n: int | None = 1
    priority: Raw | UnsetType = UNSET


class _Chat(_Generation):
    messages: list[_Message] = []
    max_completion_tokens: int | None = None
    tools: list[Raw] | None = None


class _Completion(_Generation):
    prompt: Raw = _NOTHING
    best_of: int | None = None
    suffix: str | None = None


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def parse_chat(body: bytes) -> Parsed:
    """Read a ``/v1/chat/completions`` body. Raises ``Malformed``."""
    request = _decoded(_decode_chat, _utf8(body))
    if not request.messages:
        raise Malformed("messages must be a list of at least one message", "messages")
    images = audios = 0
    text_bytes = MESSAGE_BYTES * len(request.messages)
    for message in request.messages:
        content = message.content
        view = memoryview(content)
        if view[0] == _QUOTE:
            text_bytes += len(view) - 2
        elif content is not _NOTHING:
            size, pictures, sounds = _content_size(content)
            text_bytes += size
            images += pictures
            audios += sounds
        if message.tool_calls is not _NOTHING:
            text_bytes += _size(message.tool_calls)
    tools = 0
    if request.tools:
        tools = len(request.tools)
        text_bytes += sum(map(_size, request.tools))
    bound = request.max_completion_tokens
    if bound is None:
        bound = request.max_tokens
    per_prompt = 1 if request.n is None or request.n == 1 else _sequences(request.n)
    ask = Ask(text_bytes, 0, images, audios, tools, 1, per_prompt, _bound(bound, "max_completion_tokens"))
    return _parsed(ask, request, body)


def parse_completion(body: bytes) -> Parsed:
    """Read a ``/v1/completions`` body. Raises ``Malformed``."""
    request = _decoded(_decode_completion, _utf8(body))
    prompts, text_bytes, token_ids = _prompt_size(request.prompt)
    per_prompt = max(_sequences(request.n), _sequences(request.best_of, "best_of"))
    if prompts * per_prompt > MOST_SEQUENCES:
        raise Malformed(
            f"{prompts} prompts with n={per_prompt} are more than {MOST_SEQUENCES} sequences", "n"
        )
    bound = request.max_tokens
    ask = Ask(
        text_bytes=text_bytes + len(request.suffix or ""),
        token_ids=token_ids,
        prompts=prompts,
        sequences_per_prompt=per_prompt,
        output_bound=_bound(COMPLETIONS_DEFAULT_TOKENS if bound is None else bound, "max_tokens"),
    )
    return _parsed(ask, request, body)


def _utf8(body: bytes) -> bytes:
    """The body itself, if it is UTF-8 throughout: the decoder does not look into what it skips."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"the body is not valid UTF-8 (byte {error.start})") from None
    return body


def _decoded(decode: Callable[[bytes], _Request], body: bytes) -> _Request:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise Malformed(f"{message}{f' in {path[:-1]}' if path else ''}", path[:-1] or None) from None
    except msgspec.DecodeError as error:
        raise Malformed(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None


def _parsed(ask: Ask, request: _Generation, body: bytes) -> Parsed:
    has_priority = request.priority is not UNSET
    if not request.stream:
        return Parsed(ask, request.model, False, False, body, has_priority)
    options = request.stream_options
    asks_for_usage = isinstance(options, _StreamOptions) and bool(options.include_usage)
    if not asks_for_usage:
        body = _with_usage(body, has_options=options is not UNSET)
    return Parsed(ask, request.model, True, not asks_for_usage, body, has_priority)


def with_priority(parsed: Parsed, priority: int) -> bytes:
    """The body with the sidecar's word on the engine's order, and not the client's."""
    if not parsed.has_priority:
        start = parsed.body.index(b"{") + 1
        return b'{"priority":%d,' % priority + parsed.body[start:]
    fields = _decode_object(parsed.body)
    fields["priority"] = Raw(b"%d" % priority)
    return _encode(fields)


def _with_usage(body: bytes, *, has_options: bool) -> bytes:
    """The same body, asking for usage. What the client wrote is moved, never read and written anew."""
    if not has_options:
        start = body.index(b"{") + 1
        return b'{"stream_options":{"include_usage":true},' + body[start:]
    # A second stream_options would leave it to the engine which one counts: replace the first.
    fields = _decode_object(body)
    fields["stream_options"] = Raw(b'{"include_usage":true}')
    return _encode(fields)


def _bound(tokens: int | None, name: str) -> int | None:
    """The output bound; the engine refuses one below 0 or so itself, so it is priced as one token."""
    if tokens is None:
        return None
    if tokens > _MOST_TOKENS:
        raise Malformed(f"{name} of {tokens} is more than any engine's context window", name)
    return max(tokens, 1)


def _sequences(n: int | None, name: str = "n") -> int:
    if n is None:
        return 1
    if not 1 <= n <= MOST_SEQUENCES:
        raise Malformed(f"{name} must be from 1 to {MOST_SEQUENCES}, not {n}", name)
    return n


def _size(value: Raw) -> int:
    """Bytes of a value as the client wrote it; a null has none. A text's quotes do not count."""
    view = memoryview(value)
    if view[0] == _QUOTE:
        return len(view) - 2
    return 0 if view[0] == _NULL else len(view)


def _content_size(content: Raw) -> tuple[int, int, int]:
    """Text bytes, images and audio clips of one message's content."""
    view = memoryview(content)
    if view[0] != _BRACKET:
        return _size(content), 0, 0
    text_bytes = images = audios = 0
    for part in _decoded(_decode_parts, bytes(view)):
        kind = part.type or ""
        if "image" in kind or "video" in kind:
            images += 1
        elif "audio" in kind:
            audios += 1
        else:
            text_bytes += _size(part.text)
    return text_bytes, images, audios


def _prompt_size(prompt: Raw) -> tuple[int, int, int]:
    """Prompts, text bytes and token ids of a completion's prompt, in any of its four forms."""
    view = memoryview(prompt)
    if view[0] == _QUOTE:
        return 1, _size(prompt), 0
    if view[0] != _BRACKET:
        raise Malformed(
            "prompt must be a string, a list of strings, a list of token ids or a list of such lists",
            "prompt",
        )
    items = _decoded(_decode_list, bytes(view))
    if not items:
        raise Malformed("prompt must not be an empty list", "prompt")
    return _list_size(prompt, items)


def _list_size(prompt: Raw, items: list[Raw]) -> tuple[int, int, int]:
    kinds = {bytes(memoryview(item)[:1]) for item in items}
    if kinds == {b'"'}:
        return len(items), sum(map(_size, items)), 0
    if kinds == {b"["}:
        return len(items), 0, sum(len(_decoded(_decode_ids, bytes(item))) for item in items)
    if all(kind.isdigit() for kind in kinds):
        return 1, 0, len(_decoded(_decode_ids, bytes(prompt)))
    raise Malformed("prompt must not mix strings, token ids and lists", "prompt")


def error_body(reason: Reason, message: str, param: str | None = None) -> bytes:
    """The body of an error answer."""
    kind, code = _ERRORS[reason]
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(reason: Reason, message: str) -> bytes:
    """The last words of a stream that is ended early, as vLLM ends one that fails."""
    return b"data: " + error_body(reason, message) + b"\n\ndata: [DONE]\n\n"


_INVALID = "invalid_request_error"
_ERRORS: dict[Reason, tuple[str, str | int]] = {
    Reason.TOKENS_PER_SECOND: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.KV_TOKENS: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.CONCURRENCY: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.ENGINE_FULL: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.PREEMPTED: ("rate_limit_error", "preempted"),
    Reason.ENGINE_DOWN: ("service_unavailable_error", "server_is_overloaded"),
    Reason.DRAINING: ("service_unavailable_error", "server_is_overloaded"),
    Reason.TOO_MANY_CONNECTIONS: ("service_unavailable_error", "server_is_overloaded"),
    Reason.NEVER_FITS: (_INVALID, "request_too_large"),
    Reason.MALFORMED: (_INVALID, "invalid_request"),
    Reason.UNKNOWN_KEY: ("authentication_error", "invalid_api_key"),
    Reason.UNKNOWN_ROUTE: (_INVALID, "unknown_url"),
    # vLLM's own words, so that a client sees the same whoever answers.
    Reason.UNKNOWN_MODEL: ("NotFoundError", 404),
    Reason.METHOD_NOT_ALLOWED: (_INVALID, "method_not_allowed"),
    Reason.TARGET_TOO_LONG: (_INVALID, "target_too_long"),
    Reason.HEAD_TOO_LARGE: (_INVALID, "headers_too_large"),
    Reason.BODY_TOO_LARGE: (_INVALID, "request_too_large"),
    Reason.REQUEST_TIMEOUT: (_INVALID, "request_timeout"),
    Reason.UNSUPPORTED_EXPECTATION: (_INVALID, "unsupported_expectation"),
    Reason.UPSTREAM_ERROR: ("server_error", "upstream_error"),
    Reason.UPSTREAM_TIMEOUT: ("server_error", "upstream_timeout"),
}
