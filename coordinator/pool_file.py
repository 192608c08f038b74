"""The pool file that a coordinator leads with, and its published form.

A large file is read in a child process, so that ticks and pages continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from runtime import child, config_files
from tokenpool.entitlements import Entitlement, Group, Issuer, KeyRef, Pool, PoolFile
from tokenpool.leases.wire import encode_file
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse_all

PER_PART = 200
"""Entitlements in one part: the parent decodes it in about 0.4 ms."""


class PoolFileInvalid(ValueError):
    """A pool file that cannot be in force; the text gives the reason and the fix."""


class EncodedPoolFile(msgspec.Struct, frozen=True):
    """A valid pool file with its published form."""

    file: PoolFile
    version: str
    content: bytes


class _Request(msgspec.Struct):
    path: str


class _Head(msgspec.Struct):
    pools: tuple[Pool, ...]
    anonymous: str | None
    administrator_keys: tuple[KeyRef, ...]
    issuers: tuple[Issuer, ...]
    groups: tuple[Group, ...]
    version: str
    content: bytes


class _Part(msgspec.Struct):
    entitlements: tuple[Entitlement, ...]


class _Result:
    """A file that is being made."""

    def __init__(self, head: _Head) -> None:
        self._head = head
        self._entitlements: list[Entitlement] = []

    def take(self, part: _Part) -> None:
        self._entitlements += part.entitlements

    def made(self) -> EncodedPoolFile:
        head = self._head
        file = PoolFile(
            head.pools,
            tuple(self._entitlements),
            head.anonymous,
            head.administrator_keys,
            head.issuers,
            head.groups,
        )
        return EncodedPoolFile(file, head.version, head.content)


def _read(request: _Request) -> tuple[_Head, Iterator[_Part]]:
    try:
        file = parse_all(config_files.read(Path(request.path))).file
    except OSError as error:
        reason = f"--config {request.path}: the pool file cannot be read: {error.strerror or error}"
        raise PoolFileInvalid(reason) from error
    except (PoolFileError, UnicodeError) as error:
        raise PoolFileInvalid(str(error)) from error
    others = (file.anonymous, file.administrator_keys, file.issuers, file.groups)
    return _Head(file.pools, *others, *encode_file(file)), _parts(file)


def _parts(file: PoolFile) -> Iterator[_Part]:
    for first in range(0, len(file.entitlements), PER_PART):
        yield _Part(file.entitlements[first : first + PER_PART])


_reading = child.Work(
    "coordinator.pool_file",
    _read,
    _Result,
    _Result.take,
    types=(_Request, _Head, _Part),
    failure=PoolFileInvalid,
)


def read(path: Path) -> EncodedPoolFile:
    """Read a pool file in this thread. Raises ``PoolFileInvalid``."""
    return _reading.here(_Request(str(path))).made()


async def read_apart(path: Path) -> EncodedPoolFile:
    """Read a pool file without blocking the event loop. Raises ``PoolFileInvalid``."""
    return (await _reading.apart(_Request(str(path)), is_small=child.is_small(path))).made()


if __name__ == "__main__":
    _reading.serve()
