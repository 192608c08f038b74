"""Watches files for changes. Their owner reads them again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from runtime import config_files

CHECK_EVERY_S = 1.0


class FileWatch:
    """Compares files with their last known state, once a second. A folder stands for the files in it."""

    def __init__(self, paths: tuple[Path, ...], changed: Callable[[], Awaitable[None]]) -> None:
        self._changed = changed
        self._asked = asyncio.Event()
        self._seen = _fingerprints(paths)

    def follow(self, paths: tuple[Path, ...]) -> None:
        """Watch these files from now on. The last known state of a file that was watched before stays.

        So a file that changes while its owner reads it is read once more.
        """
        new = tuple(path for path in paths if path not in self._seen)
        seen = {**self._seen, **_fingerprints(new)}
        self._seen = {path: seen[path] for path in paths}

    def retry(self) -> None:
        """Call the owner again at the next comparison, changed or not."""
        self._seen = dict.fromkeys(self._seen)

    async def check(self) -> None:
        """Call the owner if a file has changed since the last comparison."""
        # Many files, or a slow file system, take time. A thread waits without the interpreter lock.
        seen = await asyncio.to_thread(_fingerprints, tuple(self._seen))
        if seen != self._seen:
            self._seen = seen
            await self._changed()

    def request_reload(self) -> None:
        """Make the owner read the files again, changed or not, after the read in progress."""
        self._asked.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                await self._changed()
            else:
                await self.check()


def _fingerprints(paths: tuple[Path, ...]) -> Mapping[Path, object]:
    return {path: config_files.mark(path) for path in paths}
