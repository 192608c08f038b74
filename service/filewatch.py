"""Files that are read again when they change. What is read, and what it means, is the owner's business."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

LOOK_EVERY_S = 1.0


class FileWatch:
    """Looks whether files have changed."""

    def __init__(self, paths: tuple[Path, ...], changed: Callable[[], None]) -> None:
        self._changed = changed
        self.follow(paths)

    def follow(self, paths: tuple[Path, ...]) -> None:
        """Watch these files from now, as they are now."""
        self._paths = paths
        self._seen = _fingerprint(paths)

    def look(self) -> None:
        """Tell the owner if a file is not as it was when last looked at."""
        seen = _fingerprint(self._paths)
        if seen != self._seen:
            self._seen = seen
            self._changed()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()


def _fingerprint(paths: tuple[Path, ...]) -> tuple[object, ...]:
    """What changes when a file does, even when a ConfigMap's symlink is swapped."""
    marks: list[object] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            marks.append(error.errno)
        else:
            marks.append((status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev))
    return tuple(marks)
