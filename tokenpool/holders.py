"""The ids of lease holders that are workers of one sidecar. This module owns their format. Pure.

A sidecar with one process has an id without this format, also if its name has a slash.
"""

from __future__ import annotations

import re

_WORKER = re.compile(r"/[0-9]+-[0-9]+\Z")


def worker_id(engine: str, index: int, start: int) -> str:
    """The id of a worker of the sidecar ``engine``, from this start of the worker on."""
    return f"{worker_prefix(engine)}{index}-{start}"


def worker_prefix(engine: str) -> str:
    """The beginning of the ids of all workers of a sidecar."""
    return f"{engine}/"


def engine_of(holder: str) -> str:
    """The sidecar of a holder, which has one engine: the same for all its workers."""
    return _WORKER.sub("", holder)
