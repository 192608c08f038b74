"""Text to token ids and back, without a vocabulary. Pure and deterministic.

Every token has the same number of bytes, so texts with equal beginnings have equal first tokens. A prefix
cache needs no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

WORDS = ("the ", "pool ", "is ", "shared ", "and ", "fair ")
"""The text of all responses, repeated."""


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. JSON may contain half of a surrogate pair."""
    return text.encode(errors="surrogatepass")


def count_of(text_bytes: int, tokens_per_byte: float) -> int:
    """The number of tokens of a text with so many bytes, at least 1."""
    return max(round(text_bytes * tokens_per_byte), 1)


def pieces(text: bytes, tokens_per_byte: float) -> list[bytes]:
    """The bytes of each token. The last token has the rest."""
    count = count_of(len(text), tokens_per_byte)
    edges = [int(index / tokens_per_byte) for index in range(count)]
    return [text[start:end] for start, end in zip(edges, [*edges[1:], len(text)], strict=True)]


def encode(text: str, tokens_per_byte: float, vocabulary: int) -> tuple[int, ...]:
    """The token ids of a text."""
    return tuple(crc32(piece) % vocabulary for piece in pieces(utf8(text), tokens_per_byte))


def decode(tokens: Iterable[int]) -> str:
    """Arbitrary text for token ids, because the ids do not contain the encoded text."""
    return "".join(WORDS[token % len(WORDS)] for token in tokens)


def output_text(start: int, end: int) -> str:
    """The text of a sequence's tokens from ``start`` to before ``end``."""
    return "".join(WORDS[index % len(WORDS)] for index in range(start, end))


def chat_text(messages: Iterable[tuple[str, str]]) -> str:
    """A conversation of roles and contents as one text, similar to a chat template."""
    return "".join(f"<|{role}|>{content}\n" for role, content in messages) + "<|assistant|>"
