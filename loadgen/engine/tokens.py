"""Text to token ids and back, without a vocabulary. Pure and deterministic.

Every token stands for the same number of bytes, so texts with equal beginnings have equal first tokens: all
that a prefix cache needs to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

WORDS = ("the ", "pool ", "is ", "shared ", "and ", "fair ")
"""The text of all answers, repeated."""


def utf8(text: str) -> bytes:
    """Its bytes; JSON may have carried half a character."""
    return text.encode(errors="surrogatepass")


def count_of(text_bytes: int, tokens_per_byte: float) -> int:
    """The number of tokens of a text with so many bytes, at least 1."""
    return max(round(text_bytes * tokens_per_byte), 1)


def pieces(text: bytes, tokens_per_byte: float) -> list[bytes]:
    """The bytes of each token; the last takes what remains."""
    count = count_of(len(text), tokens_per_byte)
    edges = [int(index / tokens_per_byte) for index in range(count)]
    return [text[start:end] for start, end in zip(edges, [*edges[1:], len(text)], strict=True)]


def encode(text: str, tokens_per_byte: float, vocabulary: int) -> tuple[int, ...]:
    """The token ids of a text."""
    return tuple(crc32(piece) % vocabulary for piece in pieces(utf8(text), tokens_per_byte))


def decode(tokens: Iterable[int]) -> str:
    """Some text for token ids: the ids do not tell what was encoded."""
    return "".join(WORDS[token % len(WORDS)] for token in tokens)


def said(start: int, end: int) -> str:
    """The text of a sequence's tokens from ``start`` to before ``end``."""
    return "".join(WORDS[index % len(WORDS)] for index in range(start, end))


def chat_text(messages: Iterable[tuple[str, str]]) -> str:
    """A conversation of roles and contents as one text, the way chat templates do it."""
    return "".join(f"<|{role}|>{content}\n" for role, content in messages) + "<|assistant|>"
