"""The feed of issued credentials in the lease store: its records, and its rules in Python.

The lease store has the last record of each credential, in the order of their last changes. A reader asks for
the records after the last sequence that it has read. So a change costs each sidecar one record, for any
number of credentials.

- Each record has a *version*, which rises with each change of its credential. It is made of the
  milliseconds of the store's clock, so it rises after a lost store too. The later version wins.
- Each write has a *sequence*, which rises over all credentials of the pool. A record that a coordinator
  restores keeps its version, and gets a new sequence.
- A store that has lost everything begins a new *generation*. Then every reader reads from the beginning.
- ``records`` and ``check`` are sums over all records. A coordinator with other sums restores its records.
- A credential that ended long ago is removed. Removal is no entry: each reader forgets such ones by itself.

The lease store does not decode a record (``wire.CredentialRecord``). ``CredentialFeed`` has the rules of
``put_credentials.lua``, for the workers of one pod and the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

CHECK_MODULUS = 2**40
"""The sum of versions is kept below this number: Lua's numbers are exact below 2**53."""
PAGE = 100
"""The most credentials in one call, so that no script occupies Redis for long: 0.7 ms to
write them, 0.3 ms to read them."""


class FeedState(NamedTuple):
    """The state of the feed, which every answer to a sidecar carries as a text."""

    generation: int = 0
    """0 if no credential was ever issued, or the store has lost all."""
    sequence: int = 0
    """The sequence of the last write."""
    records: int = 0
    """The number of credentials, revoked ones included."""
    check: int = 0
    """The sum of the versions of all credentials, modulo ``CHECK_MODULUS``."""

    @classmethod
    def parse(cls, text: str) -> FeedState:
        """The state of its text. Raises ``ValueError``."""
        return cls(*(int(part) for part in text.split())) if text else cls()

    def __str__(self) -> str:
        return " ".join(map(str, self)) if self.generation else ""


class CredentialPut(NamedTuple):
    """A write of one credential."""

    id: str
    content: bytes
    expected: int = 0
    """For a change: the version that it replaces; 0 for a new credential."""
    version: int = 0
    """For a record that is restored: its version. 0 for a change."""


class CredentialRemoval(NamedTuple):
    """The removal of a credential that ended long ago."""

    id: str
    version: int
    """The version to remove. A later one stays."""


class CredentialEntry(NamedTuple):
    """One credential in the feed."""

    id: str
    version: int
    sequence: int
    content: bytes


@dataclass(frozen=True, slots=True)
class CredentialPage:
    """The next entries of the feed, at most ``PAGE``. Fewer entries mean that the reader has read all."""

    state: FeedState = FeedState()
    entries: Sequence[CredentialEntry] = ()


class CredentialFeed:
    """The rules of the feed. ``now`` is in seconds of the store's clock."""

    def __init__(self) -> None:
        self.state = FeedState()
        self._entries: dict[str, CredentialEntry] = {}

    def page(self, after: int) -> CredentialPage:
        """The entries after this sequence, in order."""
        later = sorted((e for e in self._entries.values() if e.sequence > after), key=lambda e: e.sequence)
        return CredentialPage(self.state, later[:PAGE])

    def put(self, puts: Sequence[CredentialPut], now: float) -> list[int]:
        """Write credentials. Returns the version of each one; 0 if it was not written.

        A change is not written if the credential has another version than expected. A record is not restored
        if the store has the same or a later version.
        """
        ms = int(now * 1000)
        generation, sequence, records, check = self.state
        generation = generation or ms
        written = []
        for put in puts:
            before = self._entries.get(put.id)
            known = 0 if before is None else before.version
            if put.version > known or (not put.version and put.expected == known):
                version = put.version or max(known + 1, ms)
                sequence = max(sequence + 1, ms)
                records += before is None
                check = (check + version - known) % CHECK_MODULUS
                self._entries[put.id] = CredentialEntry(put.id, version, sequence, put.content)
                written.append(version)
            else:
                written.append(0)
        self.state = FeedState(generation, sequence, records, check)
        return written

    def remove(self, removals: Sequence[CredentialRemoval]) -> None:
        """Remove credentials of these versions. Others stay."""
        generation, sequence, records, check = self.state
        for name, version in removals:
            entry = self._entries.get(name)
            if entry is not None and entry.version == version:
                del self._entries[name]
                records, check = records - 1, (check - version) % CHECK_MODULUS
        self.state = FeedState(generation, sequence, records, check)
