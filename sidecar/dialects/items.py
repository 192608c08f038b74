"""The parts of a body that become Python objects: structs for the decoder, counted while they are read.

The functions that read bodies are in another file, because they are compiled (docs/decisions/). Structs
cannot be compiled, because the decoder reads their annotations.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

MOST_SEQUENCES = 2048
"""Sequences in one request. More are a mistake or an attack. OpenAI allows as many inputs to embed."""
MOST_ITEMS = 4096
"""Messages and their parts in one request. Each takes one or two microseconds."""
NOTHING = Raw(b"null")
"""The value of a field that was not sent."""


_seen = [0]
"""The number of items of the body that is being read. A list: to set an attribute of a class takes longer."""


def begin_counting(items: int = 0) -> None:
    """Start to count a body. ``items``: so many of its items were read already."""
    _seen[0] = items


def counted() -> int:
    """The number of items that were read of this body."""
    return _seen[0]


def count_item() -> None:
    """Count one more object of this body. Raises ``ValueError``, which the decoder passes on."""
    _seen[0] += 1
    if _seen[0] > MOST_ITEMS:
        raise ValueError(
            f"there are more than {MOST_ITEMS} messages, parts and fields in this request; send fewer"
        )


class Item(msgspec.Struct):
    """A message, or a part of one. Reading it counts it, because msgspec checks a list's length too late."""

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
        """Whether a part without a type, or with a cache's name, has an image or a sound: vLLM finds them."""
        pictures = (self.image_url, self.image_pil, self.image_embeds, self.video_url, self.video_embeds)
        sounds = (self.input_audio, self.audio_url, self.audio_embeds)
        return _is_sent(pictures), _is_sent(sounds)


def _is_sent(values: tuple[Raw, ...]) -> bool:
    for value in values:  # noqa: SIM110 - takes half the time of a generator, and runs for every part
        if value is not NOTHING:
            return True
    return False


class Transfer(msgspec.Struct):
    """The data that one engine passes to another: vLLM's ``kv_transfer_params``."""

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
"""Raises at the first item beyond the limit. It takes 8 µs, so it runs only if the limit may be exceeded."""
