"""The memory limit of this process: the smallest limit of its control groups (Linux).

A container's memory limit is a limit of its control group. Version 2 has one hierarchy and ``memory.max``.
Version 1 has a hierarchy for memory alone and ``memory.limit_in_bytes``. A process in a container may see its
own group as the root of the hierarchy, so the files there are read, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNLIMITED = 1 << 60
"""A limit from here on is none: version 1 states the largest multiple of a page instead of no limit."""


def read(root: Path = Path("/")) -> int | None:
    """The memory limit of this process in bytes; ``None`` without a limit, or if it is not known.

    ``root`` is the root of the file system.
    """
    limits = [limit for file in _files(root) if (limit := _limit(file)) is not None]
    return min(limits, default=None)


def _files(root: Path) -> Iterator[Path]:
    """The files that may have a limit: those of the process's groups, and of all groups above them."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            top, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # A group outside those that this process sees has a path with "..".
        for part in (group, *group.parents):
            if ".." not in part.parts:
                yield top / part / name


def _limit(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() and 0 < int(text) < UNLIMITED else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
