"""Reads request bodies for all dialects: sizes of texts, limits, and malformed values.

A body is decoded once, into the few fields that price it. Prompt texts stay undecoded (``Raw``), so a 400 kB
prompt is scanned and not copied. Types are strict. vLLM converts ``"5"`` to 5; such a request could mean
different things in the two programs, so it is refused with the field's name. A number without a fraction
(``5.0``, ``5e0``) has only one meaning, and is an integer.

Parsing blocks the event loop, so its time must be proportional to the length of the body. 32 MB of text are
scanned in 33 ms, but as many bytes of ``{},`` or ``1,`` would take nine seconds, and gigabytes of memory. So
every value that becomes a Python object is counted while it is read. Token ids never become objects.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from sidecar.dialects.items import (
    MOST_SEQUENCES,
    NOTHING,
    Part,
    Transfer,
    begin_counting,
    count_item,
    counted,
    decode_list,
    decode_part,
    decode_parts,
    decode_short_list,
    decode_transfer,
)
from tokenpool.pricing.cost import WINDOW, Ask

MESSAGE_BYTES: Final = 16
"""The bytes of text that stand for the chat template around one message: about four tokens."""
MOST_NESTED: Final = 3
"""Levels of nested parts. Each level copies and reads its content again: 450 levels took a gigabyte."""
MOST_VALUES: Final = 1 << 20
"""Commas in one body: a million token ids, or a text of fifty megabytes. Scanning takes up to 12 ms."""
MOST_UNPRICED: Final = 256 * 1024
"""Bytes of one body without a price: schemas, metadata. The engine must read them as well."""
_ID_BYTES: Final = 12
"""The most bytes of a token id: ten digits, a comma and a space."""
BRACKET, QUOTE, BRACE, NULL = b'["{n'
"""The first bytes of a list, a text, an object and a null."""
_DIGITS, _SPACE = b"0123456789", b" \t\r\n"
_LOOKS_LIKE_IDS: Final = re.compile(rb"\[\s*[\d\[\]]").match
_WHOLE_FRACTIONS: Final = re.compile(rb"(?<=\d)\.0+(?=[,\]\s])")
_HOLDS_TEXT: Final = re.compile(r"Expected `object`, got `str` in \[(\d+)\]").fullmatch
_EMPTY_LIST: Final = re.compile(rb"\[\s*\]").fullmatch
_MOST_TOKENS: Final = 1 << 31
_NO_EMBEDS: Final = (
    "prompt_embeds is not supported, because it does not state a number of tokens; send text or token ids"
)
"""A tensor file of 1 kB may have any number of rows: an expanded tensor stores one row, a sparse one none."""

_Request = TypeVar("_Request")
_Value = TypeVar("_Value")
_Read = TypeVar("_Read")


class Malformed(ValueError):
    """The body cannot be priced. The text states the fault, ``param`` the field."""

    def __init__(self, message: str, param: str | None = None, *, names_param: bool = True) -> None:
        """``names_param``: the message already names the field."""
        super().__init__(message if names_param or param is None else f"{message} in {param}")
        self.param = param
        self._message = message
        self._names_param = names_param

    def within(self, place: str) -> Malformed:
        """The same fault, in the value of the field ``place`` of a larger body."""
        rest = self.param or ""
        dot = "." if rest and not rest.startswith("[") else ""
        return Malformed(self._message, place + dot + rest, names_param=self._names_param)


_PARSED: Final = (
    "ask",
    "model",
    "streams",
    "hides_usage",
    "body",
    "has_priority",
    "takes_priority",
    "continued_response",
    "response_name",
    "is_flex",
)


class Parsed:
    """The data of a request body that the proxy needs."""

    __slots__ = _PARSED

    def __init__(
        self,
        ask: Ask,
        model: str | None,
        streams: bool,
        hides_usage: bool,
        body: bytes,
        has_priority: bool = False,
        takes_priority: bool = True,
        continued_response: str | None = None,
        response_name: str | None = None,
        is_flex: bool = False,
    ) -> None:
        self.ask = ask
        self.model = model
        self.streams = streams
        self.hides_usage = hides_usage
        """Whether usage is requested from the engine and hidden from the client, who did not request it."""
        self.body = body
        """The body for the engine."""
        self.has_priority = has_priority
        """Whether the client wrote a ``priority`` of its own."""
        self.takes_priority = takes_priority
        """Whether the engine knows that field on this route."""
        self.continued_response = continued_response
        """The stored response that the request continues."""
        self.response_name = response_name
        """The name that the client chose for the response, under which it may be stored."""
        self.is_flex = is_flex
        """Whether the client requests the service tier ``flex``: spare capacity only."""

    def _key(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in _PARSED])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parsed) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Parsed{self._key()}"

    def changed(self, **changes: Any) -> Parsed:
        """The same body with other values of some fields."""
        return Parsed(**({name: getattr(self, name) for name in _PARSED} | changes))


Content = tuple[int, int, int]
"""The size of one text or list of parts: its bytes of text, its images, and its sounds."""


_UTF8_PIECE: Final = 1 << 20


def read(decode: Callable[[bytes], _Request], body: bytes) -> _Request:
    """Decode a whole body. Raises ``Malformed``."""
    check(body)
    begin_counting()
    return read_part(decode, body)


def check(body: bytes) -> None:
    """Check what the decoder does not check. Raises ``Malformed``."""
    if len(body) > MOST_VALUES and body.count(b",") > MOST_VALUES:
        raise Malformed(f"the body has more than {MOST_VALUES} values, or commas; send a smaller body")
    if not body.isascii():
        _check_utf8(body)


def _check_utf8(body: bytes) -> None:
    """Check the bytes that the decoder skips, in pieces: decoded text takes up to four times its bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _UTF8_PIECE):
        piece = body[start : start + _UTF8_PIECE]
        left = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=start + _UTF8_PIECE >= len(body))
        except UnicodeDecodeError as error:
            raise Malformed(f"the body is not valid UTF-8 (byte {start - left + error.start})") from None


def read_part(decode: Callable[[bytes], _Request], part: bytes) -> _Request:
    """Decode a part of a decoded body. Raises ``Malformed``."""
    try:
        return decode(part)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        message = message.replace("`int | float", "`int")
        raise Malformed(message, path.rstrip("`").lstrip(".") or None, names_param=False) from None
    except msgspec.DecodeError as error:
        raise Malformed(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None


def at(place: str, read: Callable[[_Value], _Read], value: _Value) -> _Read:
    """Read the value of the field ``place``. An error names the full path."""
    try:
        return read(value)
    except Malformed as error:
        raise error.within(place) from None


def check_unpriced(parsed: Parsed) -> None:
    """Check that a long body consists mostly of priced parts. Raises ``Malformed``.

    A body with an image or a sound is not checked, because the size of those is unknown.
    """
    ask = parsed.ask
    unpriced = len(parsed.body) - ask.text_bytes - _ID_BYTES * ask.token_ids
    if unpriced > MOST_UNPRICED and not ask.images and not ask.audios:
        raise Malformed(
            f"the body has {unpriced} bytes outside its prompt and tools; the limit is {MOST_UNPRICED}"
        )


def whole(number: int | float, name: str) -> int:
    """A whole number of tokens or sequences. ``16.0`` and ``1e2`` are valid."""
    if isinstance(number, float):
        if not number.is_integer():
            raise Malformed(f"{name} must be a whole number, not {number:g}", name)
        return int(number)
    return number


def tokens(number: int | float, name: str) -> int:
    """A number of tokens that can fit into a context window."""
    count = whole(number, name)
    if count > _MOST_TOKENS:
        raise Malformed(f"{name} exceeds the context window of every engine; lower it, or leave it out", name)
    return count


def output_bound(number: int | float | None, name: str) -> int | None:
    """The output bound, at least 1 token. The engine itself refuses a lower bound."""
    return None if number is None else max(tokens(number, name), 1)


def input_bound(number: int | float | None, name: str = "truncate_prompt_tokens") -> int | None:
    """The number of tokens to which the engine truncates each prompt; -1 is its context window."""
    if number is None:
        return None
    bound = tokens(number, name)
    if bound < WINDOW:
        raise Malformed(f"{name} must be at least 0, or -1 for the context window", name)
    return bound


def sequences(n: int | float | None, name: str = "n") -> int:
    """The number of sequences in a field."""
    if n is None:
        return 1
    n = whole(n, name)
    if not 1 <= n <= MOST_SEQUENCES:
        raise Malformed(f"{name} must be from 1 to {MOST_SEQUENCES}", name)
    return n


def not_too_many(prompts: int, name: str, each: int = 1) -> int:
    """The number of prompts, if their sequences are within the limit. Raises ``Malformed``."""
    if prompts * each > MOST_SEQUENCES:
        per_prompt = f" with n={each}" if each > 1 else ""
        raise Malformed(
            f"{prompts} prompts{per_prompt} are more than {MOST_SEQUENCES} sequences; send fewer", name
        )
    return prompts


def is_flex(service_tier: Raw) -> bool:
    """Whether a ``service_tier`` is ``flex``. All other values mean the usual service.

    OpenAI knows ``auto``, ``default``, ``flex``, ``scale`` and ``priority``; Anthropic ``auto`` and
    ``standard_only``. No value raises the tier of a request, so the others have no effect here.
    """
    return bytes(memoryview(service_tier)) == b'"flex"'


def is_null(value: Raw) -> bool:
    """Whether a value is null or was not sent."""
    return memoryview(value)[0] == NULL


def size(value: Raw) -> int:
    """The bytes of a value in the body. A null has none. The quotes of a text do not count."""
    view = memoryview(value)
    if view[0] == QUOTE:
        return len(view) - 2
    return 0 if view[0] == NULL else len(view)


def content(value: Raw, depth: int = 0) -> Content:
    """The texts, images and sounds of one content: a text, or a list of parts. Raises ``Malformed``."""
    view = memoryview(value)
    if view[0] != BRACKET:
        return size(value), 0, 0
    if depth == MOST_NESTED:
        raise Malformed(f"parts are nested in more than {MOST_NESTED} levels")
    text_bytes, parts = _parts(bytes(view))
    images = audios = 0
    for part in parts:
        kind = part.type or ""
        if "image" in kind or "video" in kind:
            images += 1
        elif "audio" in kind:
            audios += 1
        elif kind == "prompt_embeds" or part.prompt_embeds is not NOTHING:
            raise Malformed(_NO_EMBEDS, _place(parts, part, value))
        else:
            for text in (part.text, part.thinking, part.refusal, part.input):
                if text is not NOTHING:
                    text_bytes += size(text)
            if part.content is not NOTHING:
                more, pictures, sounds = _nested(parts, part, value, depth)
                text_bytes += more
                images += pictures
                audios += sounds
            if part.type is None or part.uuid is not NOTHING:
                is_picture, is_sound = part.media()
                images += is_picture
                audios += is_sound
    return text_bytes, images, audios


def _nested(parts: list[Part], part: Part, value: Raw, depth: int) -> Content:
    """The content of a part that was read from the list ``value``."""
    try:
        return content(part.content, depth + 1)
    except Malformed as error:
        raise error.within("content").within(_place(parts, part, value)) from None


def _parts(text: bytes) -> tuple[int, list[Part]]:
    """The parts of a list, and the bytes of plain texts among them, which vLLM allows."""
    try:
        return 0, read_part(decode_parts, text)
    except Malformed as error:
        found = _HOLDS_TEXT(str(error))
        if found is None:
            raise
        begin_counting(counted() - int(found[1]))  # the parts before the first text are read again
    text_bytes = 0
    parts: list[Part] = []
    try:
        elements = items(Raw(text), "content")
    except Malformed:
        raise Malformed(f"a list with texts must not have more than {MOST_SEQUENCES} items") from None
    for number, each in enumerate(elements):
        if memoryview(each)[0] == QUOTE:
            text_bytes += size(each)
            try:
                count_item()
            except ValueError as too_many:  # mypyc gives each variable one type, so the name is new
                raise Malformed(str(too_many)) from None
        else:
            try:
                parts.append(read_part(decode_part, bytes(each)))
            except Malformed as error:
                raise error.within(f"[{number}]") from None
    return text_bytes, parts


def _place(parts: list[Part], part: Part, value: Raw) -> str:
    """The position of a part in its list, which may have texts among the parts."""
    before = 0
    while parts[before] is not part:
        before += 1
    for number, each in enumerate(read_part(decode_list, bytes(memoryview(value)))):
        if memoryview(each)[0] == BRACE:
            if not before:
                return f"[{number}]"
            before -= 1
    raise AssertionError("the part was not read from this list")


def check_no_embeds(value: Raw, name: str = "prompt_embeds") -> None:
    """Refuse embeddings as a prompt. An empty list is no prompt, for the engine as well."""
    if not is_null(value) and not _EMPTY_LIST(memoryview(value)):
        raise Malformed(_NO_EMBEDS, name)


def reused_ids(value: Raw) -> int:
    """The number of token ids in ``kv_transfer_params``. vLLM usually reads them instead of the messages."""
    transfer = at("kv_transfer_params", _read_transfer, value)
    if transfer is None or is_null(transfer.prompt_token_ids):
        return 0
    return prompts(transfer.prompt_token_ids, "kv_transfer_params.prompt_token_ids")[2]


def _read_transfer(value: Raw) -> Transfer | None:
    transfer: Transfer | None = read_part(decode_transfer, bytes(memoryview(value)))
    return transfer


def total(contents: Iterable[Content]) -> Content:
    """The sum of several contents."""
    text_bytes = images = audios = 0
    for more, pictures, sounds in contents:
        text_bytes += more
        images += pictures
        audios += sounds
    return text_bytes, images, audios


def items(value: Raw, name: str) -> list[Raw]:
    """The items of a list, at most ``MOST_SEQUENCES``; none of a null. Raises ``Malformed``."""
    text = bytes(memoryview(value))
    if text[0] == NULL:
        return []
    if text[0] != BRACKET:
        raise Malformed(f"{name} must be a list", name)
    if text.count(b",") >= MOST_SEQUENCES:
        try:
            decode_short_list(text)
        except msgspec.ValidationError:
            raise Malformed(f"{name} must not have more than {MOST_SEQUENCES} items", name) from None
    return read_part(decode_list, text)


def prompts(value: Raw, name: str) -> tuple[int, int, int]:
    """The prompts, text bytes and token ids of a prompt in any of its four forms. Raises ``Malformed``."""
    view = memoryview(value)
    if view[0] == QUOTE:
        return 1, size(value), 0
    if view[0] != BRACKET:
        raise Malformed(
            f"{name} must be a string, a list of strings, a list of token ids or a list of such lists", name
        )
    text = bytes(view)
    if _LOOKS_LIKE_IDS(text):
        return _token_ids(text, name)
    texts = items(value, name)
    if any(memoryview(each)[0] != QUOTE for each in texts):
        raise Malformed(f"{name} must not mix strings, token ids and lists", name)
    return len(texts), sum(map(size, texts)), 0


def _token_ids(text: bytes, name: str) -> tuple[int, int, int]:
    """The prompts and token ids in lists of whole numbers, counted by commas. An empty list counts as one id.

    Decoding 32,000 ids into Python's numbers took 32 ms; counting their commas takes 0.1 ms.
    """
    if b"." in text:
        text = _WHOLE_FRACTIONS.sub(b"", text)  # 16.0 is 16
    bare = text.translate(None, _SPACE)
    if bare == b"[]":
        raise Malformed(f"{name} must not be an empty list", name)
    bare = bare.translate(None, _DIGITS)
    lists = bare.count(b"[") - 1
    are_flat = not lists or (bare.startswith(b"[[") and bare.count(b"],[") == bare.count(b"],") == lists - 1)
    if bare.strip(b"[],") or not are_flat:
        raise Malformed(f"{name} must not mix strings, token ids and lists", name)
    return max(lists, 1), 0, bare.count(b",") + 1
