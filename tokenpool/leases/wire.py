"""The encoded records that the lease store carries without decoding.

These are reports, prices, the pool file, issued credentials and the scale hint.

They are msgpack with a schema version. A reader ignores unknown fields and uses defaults for missing ones, so
versions can be rolled out one process at a time. A new field needs no new schema. A reader refuses a later
schema: its fields may have another meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.credentials import CREDENTIAL_SCHEMA, CredentialRecord
from tokenpool.entitlements import Entitlement, Group, Issuer, KeyRef, KeySource, Pool, PoolFile
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.stabiliser import PublishedHint, ScaleHint, StabiliserState
from tokenpool.pricing.statistics import EntitlementStatistics, Statement

SCHEMA = 1
PRICES_SCHEMA = 1
"""The version of shared prices. A reader ignores other versions: their fields may have another meaning."""
FILE_SCHEMA = 1
"""The version of the published pool file."""
HINT_SCHEMA = 1
"""The version of the stored scale hint."""
REPORTED_OUTCOMES = frozenset(
    {Ending.FINISHED.value, *(reason.value for reason in Reason if reason.status in (429, 503))}
)
"""The outcomes that a report counts: requests served, and requests refused for a lack of capacity."""
MOST_REPORTED = 256
"""The most entitlements in the counts of a report: about 10 kB per report."""
FIRST_TOKEN_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the counts of times to first token; one more count is for longer times."""


class WireError(ValueError):
    """A record cannot be decoded. The text names the record and the reason."""


@dataclass(frozen=True, slots=True)
class SidecarReport:
    """The state of one sidecar and its engine, with every message that begins or renews a lifetime."""

    capacity: Amount = NOTHING
    """The capacity of its engine now; zero while the engine is down."""
    replica: Amount = NOTHING
    """The capacity of its engine while it is up."""
    engine_up: bool = False
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    mode: str = ""
    file_version: str = ""
    """The version of the pool file that it enforces."""
    draining: bool = False
    schema: int = SCHEMA
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Ended requests since this sidecar started, by entitlement and outcome, without zeros. At most
    ``MOST_REPORTED`` entitlements, those with the latest changes. For metrics and pages, not for planning."""
    first_tokens: Mapping[str, tuple[float, tuple[int, ...]]] = field(default_factory=dict)
    """Times to first token since this sidecar started: their sum in seconds, and counts by
    ``FIRST_TOKEN_BOUNDS_S``. Only for entitlements in ``outcomes`` with changes in the last few seconds."""
    workers: int = 1
    """The number of processes of its sidecar. Each has a report of its own, with its part of ``capacity``."""


class _Prices(msgspec.Struct, array_like=True, frozen=True):
    """A sidecar's statement, with the encoded statistics of its entitlements."""

    schema: int
    number: int
    entitlements: dict[str, msgspec.Raw]


class _File(msgspec.Struct, frozen=True):
    """The published pool file: the fields of ``PoolFile``, with the schema."""

    pools: tuple[Pool, ...]
    entitlements: tuple[Entitlement, ...]
    anonymous: str | None = None
    administrator_keys: tuple[KeyRef, ...] = ()
    schema: int = FILE_SCHEMA
    issuers: tuple[Issuer, ...] = ()
    groups: tuple[Group, ...] = ()


class _Hint(msgspec.Struct, frozen=True):
    """The stored scale hint: the fields of ``PublishedHint``, with the schema."""

    hint: ScaleHint
    min_replicas: int
    max_replicas: int
    state: StabiliserState
    schema: int = HINT_SCHEMA


_prices = msgspec.msgpack.Decoder(_Prices)
_statistics = msgspec.msgpack.Decoder(EntitlementStatistics)
_reports = msgspec.msgpack.Decoder(SidecarReport)
_files = msgspec.msgpack.Decoder(_File)
_hints = msgspec.msgpack.Decoder(_Hint)
_credentials = msgspec.msgpack.Decoder(CredentialRecord)


def encode_report(report: SidecarReport) -> bytes:
    """Encode a report."""
    return msgspec.msgpack.encode(report)


def decode_report(content: bytes) -> SidecarReport:
    """Decode a report. Raises ``WireError``."""
    try:
        return _reports.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"a sidecar's report: {error}") from error


def encode_prices(statement: Statement) -> bytes:
    """Encode the learned prices of a sidecar."""
    entitlements = {name: msgspec.Raw(content) for name, content in statement.entitlements.items()}
    return msgspec.msgpack.encode(_Prices(PRICES_SCHEMA, statement.number, entitlements))


def decode_prices(content: bytes) -> Statement:
    """Decode the learned prices of a sidecar. Raises ``WireError``, also for another version."""
    try:
        prices = _prices.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"a sidecar's prices: {error}") from error
    if prices.schema != PRICES_SCHEMA:
        raise WireError(f"a sidecar's prices: version {prices.schema} is not {PRICES_SCHEMA}")
    return Statement(prices.number, {name: bytes(raw) for name, raw in prices.entitlements.items()})


def encode_statistics(statistics: EntitlementStatistics) -> bytes:
    """Encode the statistics of one entitlement in a ``Statement``."""
    return msgspec.msgpack.encode(statistics)


def decode_statistics(content: bytes) -> EntitlementStatistics:
    """Decode the statistics of one entitlement. Raises ``WireError``."""
    try:
        return _statistics.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"an entitlement's prices: {error}") from error


def encode_file(file: PoolFile) -> tuple[str, bytes]:
    """Encode a pool file: its version and its content. Plain API keys are replaced by their SHA-256.

    Line numbers are left out, so another comment in the file does not change its version.
    """
    ready = _for_the_wire(file)
    content = msgspec.msgpack.encode(
        _File(
            ready.pools,
            ready.entitlements,
            ready.anonymous,
            ready.administrator_keys,
            issuers=ready.issuers,
            groups=ready.groups,
        )
    )
    return hashlib.sha256(content).hexdigest()[:16], content


def decode_file(content: bytes) -> PoolFile:
    """Decode a pool file, which its reader has validated. Raises ``WireError``, also for a later schema."""
    try:
        file = _files.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"the published pool file: {error}") from error
    _check_schema(file.schema, FILE_SCHEMA, "the published pool file")
    return PoolFile(
        file.pools, file.entitlements, file.anonymous, file.administrator_keys, file.issuers, file.groups
    )


def encode_credential(record: CredentialRecord) -> bytes:
    """Encode an issued credential."""
    return msgspec.msgpack.encode(record)


def decode_credential(content: bytes) -> CredentialRecord:
    """Decode an issued credential. Raises ``WireError``."""
    try:
        record = _credentials.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"an issued credential: {error}") from error
    _check_schema(record.schema, CREDENTIAL_SCHEMA, f"the issued credential {record.id!r}")
    return record


def encode_hint(hint: PublishedHint) -> bytes:
    """Encode a scale hint."""
    return msgspec.msgpack.encode(_Hint(hint.hint, hint.min_replicas, hint.max_replicas, hint.state))


def decode_hint(content: bytes) -> PublishedHint:
    """Decode a scale hint. Raises ``WireError``, also for a later schema."""
    try:
        hint = _hints.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"the stored scale hint: {error}") from error
    _check_schema(hint.schema, HINT_SCHEMA, "the stored scale hint")
    return PublishedHint(hint.hint, hint.min_replicas, hint.max_replicas, hint.state)


def _check_schema(found: int, known: int, what: str) -> None:
    if found > known:
        raise WireError(f"{what} has schema {found}, and this process knows {known}: update this process")


def _for_the_wire(file: PoolFile) -> PoolFile:
    return replace(
        file,
        entitlements=tuple(
            e if _is_ready(e) else replace(e, api_keys=tuple(_hashed(ref) for ref in e.api_keys))
            for e in file.entitlements
        ),
        administrator_keys=tuple(_hashed(ref) for ref in file.administrator_keys),
        issuers=tuple(_without_lines(issuer) for issuer in file.issuers),
    )


def _without_lines(issuer: Issuer) -> Issuer:
    return replace(issuer, rules=tuple(replace(rule, line=0) for rule in issuer.rules))


def _is_ready(entitlement: Entitlement) -> bool:
    """Whether no key has a line or is in plain text. 10,000 such entitlements take 25 ms, others 90 ms."""
    return not any(ref.line or ref.source is KeySource.PLAIN for ref in entitlement.api_keys)


def _hashed(ref: KeyRef) -> KeyRef:
    if ref.source is not KeySource.PLAIN:
        return replace(ref, line=0)
    digest = hashlib.sha256(ref.value.strip().encode()).hexdigest()
    return replace(ref, source=KeySource.SHA256, value=digest, line=0)
