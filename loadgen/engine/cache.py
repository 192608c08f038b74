"""KV blocks and the prefix cache over them. Pure.

A block is blank, held by sequences, or idle. An idle block has no holder, but keeps its content until it is
taken; the longest idle block is taken first. A key names the content of a block; each key is in one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockPool:
    """A fixed number of KV blocks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.blank = blocks
        """Blocks without content."""
        self.unnamed = 0
        """Held blocks with content that no other sequence may share."""
        self.held: dict[int, int] = {}
        """The number of holders of a key's block."""
        self.idle: dict[int, None] = {}
        """Keys of idle blocks, the longest idle first."""

    @property
    def free(self) -> int:
        """Blocks without a holder: blank and idle ones."""
        return self.blank + len(self.idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - self.free

    def known(self, keys: Sequence[int]) -> int:
        """The number of leading keys that are in blocks."""
        for count, key in enumerate(keys):
            if key not in self.held and key not in self.idle:
                return count
        return len(keys)

    def fits(self, fresh: int, shared: Iterable[int] = ()) -> bool:
        """Whether so many fresh blocks are free besides the blocks of these known keys."""
        return fresh + sum(key in self.idle for key in shared) <= self.free

    def share(self, keys: Iterable[int]) -> None:
        """Hold the blocks of these known keys, shared with their other holders."""
        for key in keys:
            if key in self.held:
                self.held[key] += 1
            else:
                del self.idle[key]
                self.held[key] = 1

    def take(self, count: int) -> None:
        """Hold fresh blocks without a key. The caller checks ``fits`` before."""
        assert count <= self.free, "blocks were taken that do not fit"
        for _ in range(count - self.blank):
            del self.idle[next(iter(self.idle))]
            self.blank += 1
        self.blank -= count
        self.unnamed += count

    def name(self, key: int) -> bool:
        """Give a fresh block its key. Returns ``False`` if another block has this key."""
        if key in self.held or key in self.idle:
            return False
        self.unnamed -= 1
        self.held[key] = 1
        return True

    def release(self, held: Iterable[int | None]) -> None:
        """Release blocks by their keys; ``None`` is a block without a key. The last ones become idle first.

        So the start of a context, which other requests may share, stays in the cache the longest.
        """
        for key in reversed(list(held)):
            if key is None:
                self.unnamed -= 1
                self.blank += 1
            elif self.held[key] > 1:
                self.held[key] -= 1
            else:
                del self.held[key]
                self.idle[key] = None
