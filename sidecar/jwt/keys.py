"""The public keys of one issuer, from its published set (JWKS, RFC 7517)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sidecar.jwt import signatures

MOST_KEYS = 100
"""The most keys of one issuer. Microsoft Entra publishes about 10, Google 2 to 4."""
MOST_SAME_ID = 4
"""The most keys of one id that a signature is checked with."""
_LONGEST_ID = 256


class KeysUnusable(ValueError):
    """A published key set cannot be used. The text has the reason."""


class SigningKey:
    """One public key. A key that the issuer no longer publishes is not in force."""

    __slots__ = ("id", "is_in_force", "key")

    def __init__(self, id: str | None, key: Any) -> None:  # noqa: A002 - the name in the set is kid
        self.id = id
        self.key = key
        self.is_in_force = True


class KeySet:
    """The keys of one issuer in force."""

    def __init__(self) -> None:
        self._keys: dict[str, SigningKey] = {}
        """By their published content. A key that is published again stays the same object."""
        self._by_id: dict[str | None, list[SigningKey]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def candidates(self, id: str | None, algorithm: str) -> list[SigningKey]:  # noqa: A002
        """The keys for a JWT with this key id. A JWT without an id needs a single key that fits."""
        if id is not None:
            return [key for key in self._by_id.get(id, ()) if signatures.fits(key.key, algorithm)]
        fitting = [key for key in self._keys.values() if signatures.fits(key.key, algorithm)]
        return fitting if len(fitting) == 1 else []

    def replace(self, content: bytes) -> bool:
        """Put a published set in force. Returns whether it differs from the one before.

        Raises ``KeysUnusable``, and then changes nothing.
        """
        found = _read(content)
        if found.keys() == self._keys.keys():
            return False
        retired = [key for text, key in self._keys.items() if text not in found]
        self._keys = {text: self._keys.get(text, key) for text, key in found.items()}
        self._by_id = {}
        for key in self._keys.values():
            of_id = self._by_id.setdefault(key.id, [])
            if len(of_id) < MOST_SAME_ID:
                of_id.append(key)
        for key in retired:
            key.is_in_force = False
        return True

    def retire(self) -> None:
        """Take all keys out of force."""
        for key in self._keys.values():
            key.is_in_force = False
        self._keys, self._by_id = {}, {}


def _read(content: bytes) -> dict[str, SigningKey]:
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise KeysUnusable("it is not a JSON document") from None
    published = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(published, list):
        raise KeysUnusable('it has no list "keys"')
    if len(published) > MOST_KEYS:
        raise KeysUnusable(f"it has more than {MOST_KEYS} keys")
    found = {}
    for each in published:
        made = _key(each) if isinstance(each, dict) else None
        if made is not None:
            found[json.dumps(each, sort_keys=True)] = made
    if not found:
        raise KeysUnusable(f"none of its {len(published)} keys is a public key for signatures")
    return found


def _key(values: Mapping[str, object]) -> SigningKey | None:
    """A key of the set; ``None`` if it cannot be used, as RFC 7517 section 5 advises for unknown keys."""
    key_id = values.get("kid")
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > _LONGEST_ID):
        return None
    key = signatures.key_of(values)
    return None if key is None else SigningKey(key_id, key)
