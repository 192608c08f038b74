"""Wire messages that the lease store carries without decoding them: reports, the pool file, the scale hint.

msgpack with a schema version. A reader ignores fields that it does not know, and takes the default of those
that it misses, so that versions can roll one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import KeyRef, KeySource, PoolFile
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.stabiliser import PublishedHint

SCHEMA = 1
REPORTED_OUTCOMES = frozenset(
    {Ending.FINISHED.value, *(reason.value for reason in Reason if reason.status in (429, 503))}
)
"""What a report counts: requests served, and requests refused for want of capacity."""
MOST_REPORTED = 256
"""Entitlements that a report counts: some 10 kB, with every message."""
FIRST_TOKEN_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the counts of times to first token; one more count is for longer times."""


class WireError(ValueError):
    """A message cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class SidecarReport:
    """What one sidecar says of itself and of its engine, with every complete message."""

    capacity: Amount = NOTHING
    """What its engine sustains now; nothing while the engine is down."""
    replica: Amount = NOTHING
    """What its engine sustains when it is up."""
    engine_up: bool = False
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    mode: str = ""
    file_version: str = ""
    """Of the pool file that it enforces."""
    draining: bool = False
    schema: int = SCHEMA
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How requests ended since this sidecar began, by entitlement and outcome, without zeros. At most
    ``MOST_REPORTED`` entitlements: those whose numbers changed last. For pages, not for planning."""
    first_tokens: Mapping[str, tuple[float, tuple[int, ...]]] = field(default_factory=dict)
    """Times to first token since this sidecar began: their sum in seconds, and counts by
    ``FIRST_TOKEN_BOUNDS_S``. Only of entitlements in ``outcomes`` whose times changed a few seconds ago."""


_reports = msgspec.msgpack.Decoder(SidecarReport)
_files = msgspec.msgpack.Decoder(PoolFile)
_hints = msgspec.msgpack.Decoder(PublishedHint)


def encode_report(report: SidecarReport) -> bytes:
    """A report as it travels."""
    return msgspec.msgpack.encode(report)


def decode_report(content: bytes) -> SidecarReport:
    """A report that has come. Raises ``WireError``."""
    try:
        return _reports.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"a sidecar's report: {error}") from error


def encode_file(file: PoolFile) -> tuple[str, bytes]:
    """The version and the content of a pool file as it travels. No key leaves in plain text.

    Line numbers stay behind: a comment more does not make another file.
    """
    content = msgspec.msgpack.encode(_for_the_wire(file))
    return hashlib.sha256(content).hexdigest()[:16], content


def decode_file(content: bytes) -> PoolFile:
    """A pool file that has come; it was valid where it was read. Raises ``WireError``."""
    try:
        return _files.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"the published pool file: {error}") from error


def encode_hint(hint: PublishedHint) -> bytes:
    """A scale hint as it is stored."""
    return msgspec.msgpack.encode(hint)


def decode_hint(content: bytes) -> PublishedHint:
    """A scale hint that was stored. Raises ``WireError``."""
    try:
        return _hints.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"the stored scale hint: {error}") from error


def _for_the_wire(file: PoolFile) -> PoolFile:
    return replace(
        file,
        entitlements=tuple(
            replace(e, api_keys=tuple(_hashed(ref) for ref in e.api_keys)) for e in file.entitlements
        ),
    )


def _hashed(ref: KeyRef) -> KeyRef:
    if ref.source is not KeySource.PLAIN:
        return KeyRef(ref.source, ref.value)
    return KeyRef(KeySource.SHA256, hashlib.sha256(ref.value.strip().encode()).hexdigest())
