"""The limits of single credentials: the sequences that run at the same time with one key.

They apply in addition to the entitlement's limits. A sidecar enforces its part of such a limit: the limit
divided by the number of sidecars, and at least one request. Without any limited credential, nothing is kept.
"""

from __future__ import annotations

from sidecar.identity import Credential


class CredentialLimits:
    """The sequences of admitted and waiting requests here, by credentials with a limit of their own."""

    def __init__(self) -> None:
        self._in_use: dict[str, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no request of a limited credential runs or waits."""
        return not self._in_use

    def in_use(self, name: str) -> int:
        """The sequences of a credential."""
        return self._in_use.get(name, 0)

    @staticmethod
    def part(credential: Credential, sidecars: int) -> int:
        """The part of a credential's limit at one of ``sidecars`` sidecars."""
        return max(credential.concurrency // max(sidecars, 1), 1)

    def take(self, credential: Credential, sequences: int, sidecars: int) -> bool:
        """Count the sequences of a request, if they are within the limit. Returns whether they are.

        A request larger than the sidecar's part runs alone, if the whole limit has room for it.
        """
        used = self._in_use.get(credential.id, 0)
        most = self.part(credential, sidecars) if used else credential.concurrency
        if used + sequences > most:
            return False
        self._in_use[credential.id] = used + sequences
        return True

    def give_back(self, name: str, sequences: int) -> None:
        """A request that was counted has ended. An empty name means that none was counted."""
        if not name:
            return
        left = self._in_use.get(name, 0) - sequences
        if left > 0:
            self._in_use[name] = left
        else:
            self._in_use.pop(name, None)
