"""Whose a stored response is: the engine gives it to whoever knows its name.

What an engine stores it holds in its own memory, so that its sidecar, which saw all of it being made, is the
one to ask. After a restart of the sidecar alone nobody owns what was stored before.
"""

from __future__ import annotations

MOST_STORED = 10_000
"""Of one entitlement; its oldest are forgotten beyond."""
LONGEST_NAME = 128
"""What is called by more cannot be asked for."""


class StoredResponses:
    """Who made which stored response, and how long the conversation is that it ends."""

    def __init__(self) -> None:
        self._by_id: dict[str, tuple[str, int]] = {}
        self._of: dict[str, dict[str, None]] = {}
        """Each owner's, the oldest first."""

    def remember(self, response: str, owner: str, tokens: int) -> None:
        """An entitlement was given a response, and may come back for it."""
        if len(response) > LONGEST_NAME:
            return
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
        """How long the conversation is; ``None`` where there is none, or it is somebody else's."""
        whose, tokens = self._by_id.get(response, ("", 0))
        return tokens if whose == owner else None

    def is_taken(self, response: str, owner: str) -> bool:
        """Whether somebody else has a response of that name."""
        return self._by_id.get(response, (owner, 0))[0] != owner
