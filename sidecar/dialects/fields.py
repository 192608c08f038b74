"""A field more in a request body: usage that is asked for, the sidecar's word on the engine's order.

What the client wrote is moved, never read and written anew. A second field of a name would leave it to the
engine which one counts: where there may be one, it is replaced.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.bodies import Parsed, read_part
from sidecar.dialects.items import MOST_ITEMS, begin_counting, count_item


class _Name(str):
    """A field's name: counted while a body is read, as items are."""

    __slots__ = ()


def _count_name(kind: type, value: Any) -> Any:
    count_item()
    return kind(value)


_decode_object = msgspec.json.Decoder(dict[_Name, Raw], dec_hook=_count_name).decode
_encode = msgspec.json.Encoder().encode
_OURS = re.compile(rb'\{"priority":-?[0-9]+,(?=")').match
"""The field as ``with_priority`` writes it to a body that had none."""


def with_priority(parsed: Parsed, priority: int) -> bytes:
    """The body with the sidecar's word on the engine's order, and not the client's."""
    field = b'"priority":%d' % priority
    return with_field(parsed.body, field, replaces=parsed.has_priority)


def without_priority(body: bytes, *, is_ours: bool) -> bytes:
    """The body without any ``priority``. ``is_ours``: it has exactly one, since ``with_priority`` made it."""
    ours = _OURS(body) if is_ours else None
    if ours is not None:
        return b"{" + body[ours.end() :]
    fields = _fields(body)
    fields.pop(_Name("priority"), None)
    return _encode(fields)


def with_field(body: bytes, field: bytes, *, replaces: bool) -> bytes:
    """A body with a field more; ``replaces`` says that it may have one of that name."""
    if not replaces:
        start = body.index(b"{") + 1
        return b"{" + field + b"," + body[start:]
    name, _, value = field.partition(b":")
    fields = _fields(body)
    fields[_Name(name.strip(b'"').decode())] = Raw(value)
    return _encode(fields)


def is_given(priority: Raw | UnsetType, body: bytes) -> bool:
    """Whether a body has a priority of its own, and not too many fields to have it replaced."""
    if priority is UNSET:
        return False
    if body.count(b":") > MOST_ITEMS:
        _fields(body)
    return True


def _fields(body: bytes) -> dict[_Name, Raw]:
    begin_counting()
    return read_part(_decode_object, body)
