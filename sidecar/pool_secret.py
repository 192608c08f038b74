"""The secret that all sidecars of a pool share, and the keys that are derived from it.

The first sidecar makes it, and the lease store keeps it. Each purpose has its own key. So a proof for one
purpose is none for another, and a key does not reveal the secret. Nothing else uses the secret itself.
"""

from __future__ import annotations

import hmac
import secrets

from tokenpool.store import SECRET_BYTES, Store

PEER_PORT = b"peer port"
"""Sidecars prove to each other that they know this key (``sidecar.handover``)."""
PREFIX_HASHES = b"prefix hashes"
"""The key of the prefix hashes in learned prices and stated caches (``sidecar.dialects.prefixes``)."""


async def read_secret(store: Store) -> bytes:
    """The secret of the pool. The first reader makes it. Raises ``StoreDown``."""
    return await store.secret(secrets.token_bytes(SECRET_BYTES))


def derived_key(secret: bytes, purpose: bytes) -> bytes:
    """The key for one purpose, of 32 bytes: HMAC-SHA-256 of its name, as in HKDF-Expand of RFC 5869."""
    return hmac.digest(secret, purpose + b"\x01", "sha256")
