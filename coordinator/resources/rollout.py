"""The rollout of one pool: which resources all sidecars enforce. Pure: versions and times go in.

A sidecar reports the version of the pool file that it enforces. Each published version has a number, and each
resource needs the number that it changed with. So a change of one tenant does not touch the state of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coordinator.resources.reading import Key

GRACE_S = 10.0
"""The time until a sidecar that enforces an older version counts. A new sidecar begins with its own pool
file, and takes the published one within 2 s. Without the grace, each start would change all conditions."""
MOST_VERSIONS = 1000
"""The versions whose numbers are known. A sidecar with an older one counts as behind all of them."""


class Rollout:
    """The published versions of one pool, and the resources that sidecars do not enforce yet."""

    def __init__(self) -> None:
        self._last = 0
        self._numbers: dict[str, int] = {}
        self._needs: dict[Key, int] = {}
        self._lowest = 0
        """All sidecars enforce this number, or did so less than the grace ago."""
        self._behind_since: float | None = None
        self.sidecars = 0
        self.behind = 0
        """The sidecars that enforce another version than the last one."""

    def published(self, version: str, changed: Iterable[Key]) -> None:
        """A version is published, in which these resources changed."""
        if self._numbers.get(version) != self._last or not self._last:
            self._last += 1
            self._numbers.pop(version, None)
            self._numbers[version] = self._last
            if len(self._numbers) > MOST_VERSIONS:
                del self._numbers[next(iter(self._numbers))]
        self._needs |= dict.fromkeys(changed, self._last)

    def forget(self, key: Key) -> None:
        """A resource is no longer in force."""
        self._needs.pop(key, None)

    def observe(self, versions: Collection[str], now: float) -> set[Key]:
        """Use the versions that sidecars report. Returns the resources whose state changed."""
        numbers = [self._numbers.get(version, 0) for version in versions]
        had_sidecars, self.sidecars = self.sidecars > 0, len(numbers)
        self.behind = sum(number != self._last for number in numbers)
        if not numbers or not had_sidecars:
            self._behind_since = None
            self._lowest = min(numbers, default=0)
            return set(self._needs) if had_sidecars or numbers else set()
        lowest = min(numbers)
        if lowest < self._lowest:
            since = self._behind_since = now if self._behind_since is None else self._behind_since
            if now - since < GRACE_S:
                return set()
        self._behind_since = None
        before, self._lowest = self._lowest, lowest
        first, last = sorted((before, lowest))
        return {key for key, need in self._needs.items() if first < need <= last} if first != last else set()

    def is_enforced(self, key: Key) -> bool:
        """Whether all sidecars enforce the version of a resource that is in force."""
        need = self._needs.get(key)
        return need is not None and self.sidecars > 0 and need <= self._lowest
