"""The garbage collector: paused while many long-lived records are made.

A collection walks over all objects made since the last freeze. While a pool file of 10,000 entitlements was
taken over, single collections took 20 to 70 ms. Records have no reference cycles, so nothing leaks.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postponed() -> Iterator[None]:
    """Collect nothing within this context."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep() -> None:
    """Exclude all present objects from later collections."""
    gc.freeze()
