"""Reading the pool file in a child process: a coordinator's ticks and pages go on meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime import child
from tokenpool.entitlements import Entitlement, Pool, PoolFile
from tokenpool.leases.wire import encode_file
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse

log = logging.getLogger(__name__)

PER_FRAME = 200
MODULE = "coordinator.reader"


class PoolFileInvalid(ValueError):
    """A pool file cannot be led with; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A valid pool file, and how it travels."""

    file: PoolFile
    version: str
    content: bytes


class _Head(msgspec.Struct):
    error: str = ""
    pools: tuple[Pool, ...] = ()
    anonymous: str | None = None
    version: str = ""
    content: bytes = b""


_heads = msgspec.msgpack.Decoder(_Head)
_parts = msgspec.msgpack.Decoder(tuple[Entitlement, ...])


def read(path: Path) -> Reading:
    """Read a pool file here and now. Raises ``PoolFileInvalid``."""
    try:
        file = parse(path.read_text(encoding="utf-8"), name=str(path)).file
    except OSError as error:
        reason = f"--config {path}: the pool file cannot be read: {error.strerror or error}"
        raise PoolFileInvalid(reason) from error
    except (PoolFileError, UnicodeError) as error:
        raise PoolFileInvalid(str(error)) from error
    return Reading(file, *encode_file(file))


async def read_apart(path: Path) -> Reading:
    """Read a pool file in a thread where it is small, else in a child process. Raises ``PoolFileInvalid``."""
    if not child.is_small(path):
        try:
            return await _from_child(path)
        except child.ChildFailed as error:
            log.warning("the pool file is read in this process", extra={"reason": str(error)})
    return await asyncio.to_thread(read, path)


async def _from_child(path: Path) -> Reading:
    head: _Head | None = None
    entitlements: list[Entitlement] = []
    async for frame in child.frames(MODULE, str(path).encode()):
        if head is None:
            head = _heads.decode(frame)
        else:
            entitlements += _parts.decode(frame)
            await asyncio.sleep(0)
    if head is None:
        raise child.ChildFailed(f"{MODULE} said nothing")
    if head.error:
        raise PoolFileInvalid(head.error)
    return Reading(PoolFile(head.pools, tuple(entitlements), head.anonymous), head.version, head.content)


def _answer(request: bytes) -> Iterator[bytes]:
    encode = msgspec.msgpack.encode
    try:
        made = read(Path(request.decode()))
    except PoolFileInvalid as error:
        yield encode(_Head(str(error)))
        return
    file = made.file
    yield encode(_Head("", file.pools, file.anonymous, made.version, made.content))
    for first in range(0, len(file.entitlements), PER_FRAME):
        yield encode(file.entitlements[first : first + PER_FRAME])


if __name__ == "__main__":
    child.serve(_answer)
