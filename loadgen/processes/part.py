"""One process's part of the load of a run. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """The requests of one process of several.

    Every process draws all arrivals of the seed, and sends its own only. So the requests and their times do
    not depend on the number of processes.
    """

    index: int = 0
    """From 0."""
    of: int = 1
    """The number of processes."""

    def has(self, number: int, tenant: int) -> bool:
        """Whether a request, conversation or worker belongs to this process.

        ``number`` counts those of one tenant. ``tenant`` is its position, so that the first requests of all
        tenants are not in one process.
        """
        return (number + tenant) % self.of == self.index

    @property
    def is_first(self) -> bool:
        """Whether this process also inflicts faults and reads state pages, which happens once in a run."""
        return self.index == 0


WHOLE = Part()
"""All requests of a run."""
