"""KV blocks and the prefix cache over them. Pure.

A block is blank, held by sequences, or idle: held by none, but still known by its content, until it is
taken for something else, the longest idle first. What a block contains is a key; a key is in one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockPool:
    """A fixed number of KV blocks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.blank = blocks
        """Blocks that contain nothing."""
        self.unnamed = 0
        """Held blocks whose content no other sequence may use."""
        self.held: dict[int, int] = {}
        """The number of holders of a key's block."""
        self.idle: dict[int, None] = {}
        """Keys of idle blocks, the longest idle first."""

    @property
    def free(self) -> int:
        """Blocks that may be taken, known by their content or not."""
        return self.blank + len(self.idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - self.free

    def known(self, keys: Sequence[int]) -> int:
        """The number of these keys, from the first on, that are in some block."""
        for count, key in enumerate(keys):
            if key not in self.held and key not in self.idle:
                return count
        return len(keys)

    def fits(self, fresh: int, shared: Iterable[int] = ()) -> bool:
        """Whether so many fresh blocks can be taken together with the blocks of these known keys."""
        return fresh + sum(key in self.idle for key in shared) <= self.free

    def share(self, keys: Iterable[int]) -> None:
        """Hold the blocks of these known keys, together with their other holders."""
        for key in keys:
            if key in self.held:
                self.held[key] += 1
            else:
                del self.idle[key]
                self.held[key] = 1

    def take(self, count: int) -> None:
        """Hold fresh blocks, of unknown content; ``fits`` was asked before."""
        assert count <= self.free, "blocks were taken that do not fit"
        for _ in range(count - self.blank):
            del self.idle[next(iter(self.idle))]
            self.blank += 1
        self.blank -= count
        self.unnamed += count

    def name(self, key: int) -> bool:
        """Say what is in a fresh block; ``False`` where another block has it, and this one stays unnamed."""
        if key in self.held or key in self.idle:
            return False
        self.unnamed -= 1
        self.held[key] = 1
        return True

    def release(self, held: Iterable[int | None]) -> None:
        """Give blocks back, by their keys; ``None`` is an unnamed one. The last become idle first.

        So the start of a context, which others are likely to share, stays known the longest.
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
