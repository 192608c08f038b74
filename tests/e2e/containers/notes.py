"""Measurements of the container tests, which are printed at the end of the run.

pytest imports ``conftest.py`` under a name of its own, so tests cannot share an object of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

NOTES: dict[str, str] = {}


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Record the duration of the context."""
    started = time.monotonic()
    yield
    NOTES[what] = f"{time.monotonic() - started:.1f} s"
