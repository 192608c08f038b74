"""The times at which an issuer's keys are read. Pure: ``now`` is in seconds of a monotonic clock."""

from __future__ import annotations

READ_EVERY_S = 300.0
"""Seconds between two reads. Issuers publish a new key hours before they use it, and some allow to cache the
set for a day. A retired key is refused within this time."""
ASKED_EVERY_S = 10.0
"""The least seconds between two reads that unknown key ids ask for. Callers choose key ids, so this bounds
the load on the issuer."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
"""A failed read is repeated after ``FIRST_RETRY_S``, then at doubled intervals up to this one."""
KEPT_FOR_S = 86400.0
"""Seconds for which keys stay in force without a successful read. An outage of the issuer for a day ends no
service. An attacker who blocks the issuer cannot keep a stolen key in use for longer."""


class ReadSchedule:
    """When to read the keys of one issuer. The first read is due at once."""

    __slots__ = ("_is_asked", "_retry_s", "_spread", "due_at", "read_at", "tried_at")

    def __init__(self, now: float, spread: float) -> None:
        """``spread`` (0 to 1) shifts the reads of many sidecars against each other."""
        self._spread = spread
        self._is_asked = False
        self._retry_s = FIRST_RETRY_S
        self.due_at = now
        self.tried_at = -ASKED_EVERY_S
        """The time of the last read, successful or not."""
        self.read_at: float | None = None
        """The time of the last successful read."""

    def ask(self, now: float) -> bool:
        """A JWT has an unknown key id. Returns whether the next read is due earlier than before."""
        if self._is_asked:
            return False
        self._is_asked = True
        due_at = max(now, self.tried_at + ASKED_EVERY_S)
        if due_at >= self.due_at:
            return False
        self.due_at = due_at
        return True

    def request(self, now: float) -> None:
        """The operator wants the keys to be read now."""
        self.due_at = now

    def succeeded(self, now: float) -> None:
        """The keys have been read."""
        self._retry_s = FIRST_RETRY_S
        self.read_at = now
        self._tried(now, READ_EVERY_S * (1.0 - 0.1 * self._spread))

    def failed(self, now: float) -> None:
        """The keys could not be read."""
        retry_s, self._retry_s = self._retry_s, min(self._retry_s * 2, LONGEST_RETRY_S)
        self._tried(now, retry_s)

    def _tried(self, now: float, next_s: float) -> None:
        self._is_asked = False
        self.tried_at = now
        self.due_at = now + next_s

    def has_lapsed(self, now: float) -> bool:
        """Whether the last successful read is too old for its keys to stay in force."""
        return self.read_at is not None and now - self.read_at > KEPT_FOR_S
