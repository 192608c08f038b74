"""Adds fields to a request body: the request for usage, and the sidecar's priority.

The client's bytes are copied, never decoded and encoded again. If the body may have a field of that name, the
field is replaced, because the meaning of a second one would depend on the engine.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.bodies import Parsed, read_part
from sidecar.dialects.items import MOST_ITEMS, begin_counting, count_item


class _Name(str):
    """A field's name. It is counted while a body is read, like an item."""

    __slots__ = ()


def _count_name(kind: type, value: Any) -> Any:
    count_item()
    return kind(value)


_decode_object = msgspec.json.Decoder(dict[_Name, Raw], dec_hook=_count_name).decode
_encode = msgspec.json.Encoder().encode
_OURS = re.compile(rb'\{"priority":-?[0-9]+,(?=")').match
"""Matches the field that ``with_priority`` adds to a body without a priority."""


def with_priority(parsed: Parsed, priority: int) -> bytes:
    """The body with the sidecar's priority, and without the client's."""
    field = b'"priority":%d' % priority
    return with_field(parsed.body, field, replaces=parsed.has_priority)


def without_priority(body: bytes, *, is_ours: bool) -> bytes:
    """The body without any ``priority``. ``is_ours``: ``with_priority`` made it, so it has exactly one."""
    ours = _OURS(body) if is_ours else None
    if ours is not None:
        return b"{" + body[ours.end() :]
    fields = _fields(body)
    fields.pop(_Name("priority"), None)
    return _encode(fields)


def with_field(body: bytes, field: bytes, *, replaces: bool) -> bytes:
    """The body with an additional field. ``replaces``: the body may have a field of that name."""
    if not replaces:
        start = body.index(b"{") + 1
        return b"{" + field + b"," + body[start:]
    name, _, value = field.partition(b":")
    fields = _fields(body)
    fields[_Name(name.strip(b'"').decode())] = Raw(value)
    return _encode(fields)


def is_given(priority: Raw | UnsetType, body: bytes) -> bool:
    """Whether the client sent a priority. Raises ``Malformed`` if there are too many fields to replace it."""
    if priority is UNSET:
        return False
    if body.count(b":") > MOST_ITEMS:
        _fields(body)
    return True


def _fields(body: bytes) -> dict[_Name, Raw]:
    begin_counting()
    return read_part(_decode_object, body)
