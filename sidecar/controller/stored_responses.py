"""The owners of stored responses. The engine itself returns a stored response to any caller with its name.

An engine keeps stored responses in its memory. Its sidecar sees each one being made, so it knows the owner.
After a restart of the sidecar alone, earlier stored responses have no owner and are not returned.
"""

from __future__ import annotations

from typing import Final

from sidecar.stored_rings import StoredRings

MOST_STORED: Final = 10_000
"""Stored responses of one entitlement. The oldest is forgotten beyond this number."""
LONGEST_NAME: Final = 128
"""Characters of a name. A response with a longer name cannot be requested."""


class StoredResponses:
    """The owner of each stored response, and the length of its conversation in tokens."""

    def __init__(self, rings: StoredRings | None = None) -> None:
        """``rings`` has the owners that other workers of this sidecar know; ``None`` without any."""
        self._rings = rings
        self._by_id: dict[str, tuple[str, int]] = {}
        self._of: dict[str, dict[str, None]] = {}
        """The responses of each owner, the oldest first."""
        self.follow()

    def record(self, response: str, owner: str, tokens: int) -> None:
        """Record the owner of a response. ``tokens`` is the length of its conversation."""
        if len(response) > LONGEST_NAME:
            return
        self.follow()
        self._record(response, owner, tokens)
        if self._rings is not None:
            self._rings.write((response, owner, tokens))

    def follow(self) -> None:
        """Learn the owners that other workers have recorded."""
        if self._rings is not None:
            for response, owner, tokens in self._rings.news():
                self._record(response, owner, tokens)

    def _record(self, response: str, owner: str, tokens: int) -> None:
        if response in self._by_id:
            self._forget(response)
        own = self._of.setdefault(owner, {})
        if len(own) >= MOST_STORED:
            self._forget(next(iter(own)))
        self._by_id[response] = (owner, tokens)
        own[response] = None

    def _forget(self, response: str) -> None:
        owner, _ = self._by_id.pop(response)
        del self._of[owner][response]

    def tokens(self, response: str, owner: str) -> int | None:
        """The length of a response's conversation; ``None`` unless ``owner`` owns it."""
        self.follow()
        whose, tokens = self._by_id.get(response, ("", 0))
        return tokens if whose == owner else None

    def belongs_to_another(self, response: str, owner: str) -> bool:
        """Whether another entitlement owns a response of this name."""
        self.follow()
        return self._by_id.get(response, (owner, 0))[0] != owner
