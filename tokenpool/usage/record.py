"""The usage record: what one settled request used.

A record is encoded as a msgpack array, whose first element is the version. A later release adds columns at
the end. A reader uses the default for a missing column and ignores further ones. It refuses another version,
because its columns may have another meaning.
"""

from __future__ import annotations

import msgspec

SCHEMA = 1
"""The version of an encoded record."""
LOST = "lost"
"""The outcome of a request that ran when its sidecar was killed. Its tokens are estimated."""


class RecordInvalid(ValueError):
    """The bytes are no usage record of this version."""


class UsageRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=SCHEMA):
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
        return _encoder.encode(self)


COLUMNS = len(UsageRecord.__struct_fields__)
"""The number of columns, without the version."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UsageRecord)


def decode(content: bytes) -> UsageRecord:
    """The record in some bytes. Raises ``RecordInvalid``."""
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordInvalid(f"a usage record of version {SCHEMA}: {error}") from error
