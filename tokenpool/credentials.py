"""Issued credentials: API keys that operators issue, rotate and revoke while the pool serves. Pure.

A record has the digest of its key, never the key. Each change makes a new record with the same id. Times are
in seconds of Unix time.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tokenpool.entitlements import Quota

CREDENTIAL_SCHEMA = 1
"""The version of the record. A reader refuses a later one, because a new field may restrict the key."""
KEY_PREFIX = "tp_"
"""The beginning of each issued key, so that scanners for leaked secrets can find it."""
KEY_BYTES = 32
"""The random bytes of an issued key."""
LONGEST_NOTE = 200
"""The most characters of a note."""
KEEP_ENDED_S = 90 * 86400.0
"""The seconds for which an expired or revoked credential is kept. Then all processes forget it.

Its changes stay in the table of changes."""
PURGE_MARGIN_S = 3600.0
"""The largest difference in seconds between the times at which two processes forget a credential."""


class CredentialState(StrEnum):
    """Whether a credential is accepted."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Change(StrEnum):
    """What an administrator did to a credential."""

    ISSUED = "issued"
    ROTATED = "rotated"
    """Another key replaces it; it ends after the overlap."""
    REVOKED = "revoked"


class CredentialRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One issued credential, as the lease store carries it and the coordinators keep it."""

    id: str
    entitlement: str
    digest: bytes
    """The SHA-256 digest of the key; 32 bytes."""
    created_at: float
    created_by: str = ""
    """The name of the administrator who issued it."""
    expires_at: float | None = None
    """The time from which it is refused; ``None`` if it never expires."""
    concurrency: int | None = None
    """The most sequences that run at the same time with it; ``None`` without a limit of its own."""
    quotas: tuple[Quota, ...] = ()
    """The budgets of its requests, in addition to those of the entitlement."""
    note: str = ""
    replaces: str = ""
    """The id of the credential from which it was rotated."""
    revoked_at: float | None = None
    changed_at: float = 0.0
    """The time of the change that made this record."""
    changed_by: str = ""
    """The name of the administrator who made it."""
    change: Change = Change.ISSUED
    schema: int = CREDENTIAL_SCHEMA

    def state(self, now: float) -> CredentialState:
        """Whether it is accepted at this time."""
        if self.revoked_at is not None:
            return CredentialState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return CredentialState.EXPIRED
        return CredentialState.ACTIVE

    @property
    def ended_at(self) -> float | None:
        """The time from which it is refused; ``None`` if it never ends. It may be in the future."""
        if self.revoked_at is None or self.expires_at is None:
            return self.revoked_at if self.expires_at is None else self.expires_at
        return min(self.revoked_at, self.expires_at)

    def revoked(self, now: float, by: str) -> CredentialRecord:
        """The record after its revocation by an administrator."""
        return msgspec.structs.replace(
            self, revoked_at=now, changed_at=now, changed_by=by, change=Change.REVOKED
        )

    def rotated_out(self, overlap_s: float, now: float, by: str) -> CredentialRecord:
        """The record after its rotation: another key replaces it, and it ends after ``overlap_s``."""
        ends_at = now + overlap_s
        if self.expires_at is not None:
            ends_at = min(ends_at, self.expires_at)
        return msgspec.structs.replace(
            self, expires_at=ends_at, changed_at=now, changed_by=by, change=Change.ROTATED
        )

    def is_for_same_key(self, other: CredentialRecord) -> bool:
        """Whether another record is for the same key, with the same id, entitlement and predecessor."""
        return (self.id, self.entitlement, self.digest, self.replaces) == (
            other.id,
            other.entitlement,
            other.digest,
            other.replaces,
        )
