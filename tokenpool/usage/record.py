"""The usage record: what one settled request used.

A record is encoded as a msgpack array, whose first element is the version. A later release adds columns at
the end. A reader uses the default for a missing column and ignores further ones. It refuses another version,
because its columns may have another meaning.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import cast

import msgspec

SCHEMA = 1
"""The version of an encoded record."""
LOST = "lost"
"""The outcome of a request that ran when its sidecar was killed. Its tokens are estimated."""


class RecordInvalid(ValueError):
    """The bytes are no usage record of this version."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one settled request used. All texts are empty where they are unknown."""

    id: str
    """Unique among all records: the id of the sidecar's process, and a number."""
    time: float
    """The time of the settlement, in seconds since 1970 by the sidecar's clock."""
    pool: str
    entitlement: str
    model: str = ""
    """The model that the request names."""
    route: str = ""
    """The path of the request, such as ``/v1/chat/completions``."""
    input_tokens: int = 0
    """All input tokens, with those from the prefix cache."""
    output_tokens: int = 0
    cached_tokens: int = 0
    """The input tokens that came from the prefix cache. A quota and the limits do not count them."""
    kv_token_seconds: float = 0.0
    """The reserved KV-cache tokens, times the seconds of their reservation."""
    sequence_seconds: float = 0.0
    """The sequences, times the seconds from admission to the end."""
    queue_s: float = 0.0
    """The seconds from the pricing of the request to its admission."""
    ttft_s: float | None = None
    """The seconds from the pricing to the first output; ``None`` without a first output that was seen."""
    outcome: str = ""
    """The value of an ``Ending``, or ``LOST``."""
    replica: str = ""
    """The name of the sidecar that settled the request."""
    group: str = ""
    """The entitlement's group at the settlement."""
    credential_id: str = ""
    """The id of the credential that authenticated the request."""
    is_estimated: bool = False
    """Whether the tokens are an estimate, because the engine reported no usage."""

    def encode(self) -> bytes:
        """The record as bytes."""
        return encode_row(cast(Row, (SCHEMA, *astuple(self))))


# fmt: off
Row = tuple[
    int, str, float, str, str, str, str, int, int, int, float, float, float, float | None, str, str, str, str,
    bool,
]
# fmt: on
"""``SCHEMA`` and the fields of a ``UsageRecord``, in their order."""


class _Row(msgspec.Struct, array_like=True, frozen=True):
    """The encoded form: the version, and the fields of ``UsageRecord``."""

    schema: int
    id: str
    time: float
    pool: str
    entitlement: str
    model: str = ""
    route: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    kv_token_seconds: float = 0.0
    sequence_seconds: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None
    outcome: str = ""
    replica: str = ""
    group: str = ""
    credential_id: str = ""
    is_estimated: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Row)


def encode_row(row: Row) -> bytes:
    """A record as bytes, from its fields. A sidecar makes no ``UsageRecord`` for each request."""
    return _encoder.encode(row)


def decode(content: bytes) -> UsageRecord:
    """The record in some bytes. Raises ``RecordInvalid``."""
    try:
        row = _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordInvalid(f"a usage record: {error}") from error
    if row.schema != SCHEMA:
        raise RecordInvalid(f"a usage record: version {row.schema} is not {SCHEMA}")
    return UsageRecord(*msgspec.structs.astuple(row)[1:])
