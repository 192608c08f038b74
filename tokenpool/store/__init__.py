"""Stores: where the books are kept, behind one small protocol. The domain's only impure neighbour.

The rules are ``tokenpool.books``'s; ``memory`` keeps them as they are, ``redis`` runs the same rules as
scripts, and one contract suite holds both to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tokenpool.books import Grant, Holding, Limit


class StoreDown(ConnectionError):
    """The store did not answer, or not in time; the text says which and why. Nothing was decided."""


class Store(Protocol):
    """The books of one pool, somewhere."""

    async def publish(self, limits: Mapping[str, Limit], epoch: int) -> bool:
        """Replace all limits unless a later epoch's stand. Raises ``StoreDown``."""

    async def exchange(
        self, holder: str, number: int, holdings: Mapping[str, Holding]
    ) -> Mapping[str, Grant]:
        """Book what a sidecar says, and answer with what it holds. Raises ``StoreDown``."""

    async def close(self) -> None:
        """Let go of connections."""
