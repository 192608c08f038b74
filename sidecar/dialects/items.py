"""What of a body becomes an object of Python's: structs for the decoder, counted while they are read.

Nothing is computed of them here. They stand apart from the functions that read bodies, since those are
compiled (docs/decisions/) and structs cannot be: the decoder asks for their annotations.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import Raw

MOST_SEQUENCES = 2048
"""More sequences in one request are a mistake or an attack. OpenAI allows as many inputs to be embedded."""
MOST_ITEMS = 4096
"""Messages and their parts in one request. Each takes one or two microseconds here."""
NOTHING = Raw(b"null")
"""What stands for a text that was not sent."""


class _Seen:
    """What was read of one body so far."""

    items: ClassVar[int] = 0


def begin_counting(items: int = 0) -> None:
    """Another body is read; or a part of one is read again, before which there were so many items."""
    _Seen.items = items


def counted() -> int:
    """How many items of this body were read so far."""
    return _Seen.items


def count_item() -> None:
    """One more thing of this body becomes an object. Raises ``ValueError``: the decoder tells it on."""
    _Seen.items += 1
    if _Seen.items > MOST_ITEMS:
        raise ValueError(f"there are more than {MOST_ITEMS} messages, parts and fields in this request")


class Item(msgspec.Struct):
    """A message, or a part of one: counted as it is read, since msgspec looks at a list's length too late."""

    def __post_init__(self) -> None:
        count_item()


class Part(Item):
    """A part of a message, of a content, or of another part."""

    type: str | None = None
    text: Raw = NOTHING
    content: Raw = NOTHING
    thinking: Raw = NOTHING
    refusal: Raw = NOTHING
    input: Raw = NOTHING
    uuid: Raw = NOTHING
    image_url: Raw = NOTHING
    image_pil: Raw = NOTHING
    image_embeds: Raw = NOTHING
    video_url: Raw = NOTHING
    video_embeds: Raw = NOTHING
    audio_url: Raw = NOTHING
    audio_embeds: Raw = NOTHING
    input_audio: Raw = NOTHING
    prompt_embeds: Raw = NOTHING

    def media(self) -> tuple[bool, bool]:
        """Pictures and sounds that no type tells of: without one, or with a cache's name, vLLM looks."""
        pictures = (self.image_url, self.image_pil, self.image_embeds, self.video_url, self.video_embeds)
        sounds = (self.input_audio, self.audio_url, self.audio_embeds)
        return _is_sent(pictures), _is_sent(sounds)


def _is_sent(values: tuple[Raw, ...]) -> bool:
    for value in values:  # noqa: SIM110 - half as long as a generator, and it is asked for every part
        if value is not NOTHING:
            return True
    return False


class Transfer(msgspec.Struct):
    """What one engine hands to another: vLLM's ``kv_transfer_params``."""

    prompt_token_ids: Raw = NOTHING


decode_part = msgspec.json.Decoder(Part).decode
decode_parts = msgspec.json.Decoder(list[Part]).decode
decode_transfer = msgspec.json.Decoder(Transfer | None).decode
decode_list = msgspec.json.Decoder(list[Raw]).decode
decode_short_list = msgspec.json.Decoder(
    msgspec.defstruct(
        "_ShortList",
        [(f"item{number}", Raw, NOTHING) for number in range(MOST_SEQUENCES)],
        array_like=True,
        forbid_unknown_fields=True,
    )
).decode
"""Gives up at the first item too many. It takes 8 µs, so it is asked only where there may be too many."""
