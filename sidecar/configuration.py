"""A pool file with its keys, as one sidecar enforces it: read at the start, or in a child process later.

The child makes everything that takes long (YAML, checks, keys); its parent only takes the records over, a few
at a time. What is done with a configuration is the controller's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime import child
from runtime.options import SettingsError
from sidecar.identity import KeyRing, KeyUnreadable, digests, resolver
from sidecar.settings import Settings
from tokenpool.entitlements import Entitlement, KeySource, Pool, PoolFile
from tokenpool.leases.wire import WireError, decode_file, encode_file
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse

log = logging.getLogger(__name__)

PER_FRAME = 200
"""Entitlements that the parent takes over at once: some 0.4 ms."""
MOST_WARNINGS = 20
"""So many warnings are logged: 2,000 lines held up requests for 30 ms."""
MODULE = "sidecar.configuration"


class ConfigurationInvalid(ValueError):
    """A pool file cannot be put in force; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A pool file with its keys, ready to be put in force."""

    file: PoolFile
    pool: Pool
    keys: KeyRing
    watched: tuple[Path, ...]
    """The pool file and every key file."""
    version: str
    """Of the file, as it would be published."""


class _Request(msgspec.Struct):
    pool: str | None
    config: str = ""
    content: bytes = b""
    """A published file, in the place of one on disk."""


class _Head(msgspec.Struct):
    error: str = ""
    pool: str = ""
    pools: tuple[Pool, ...] = ()
    anonymous: str | None = None
    watched: tuple[str, ...] = ()
    version: str = ""
    warnings: tuple[tuple[int, str, str], ...] = ()


class _Part(msgspec.Struct):
    entitlements: tuple[Entitlement, ...]
    keys: dict[bytes, str]


_heads, _parts = msgspec.msgpack.Decoder(_Head), msgspec.msgpack.Decoder(_Part)


def load(settings: Settings) -> Configuration:
    """Read the pool file here and now. Raises ``ConfigurationInvalid``."""
    head, file, keys = _read(_Request(settings.pool, str(settings.config)))
    return _configuration(head, file, KeyRing(keys))


async def load_apart(settings: Settings) -> Configuration:
    """Read the pool file beside the event loop. Raises ``ConfigurationInvalid``."""
    return await _apart(
        _Request(settings.pool, str(settings.config)), is_small=child.is_small(settings.config)
    )


async def published(content: bytes, settings: Settings, joined: str) -> Configuration:
    """A pool file that a coordinator published, with the keys that this sidecar can read.

    ``joined`` is the pool that this sidecar belongs to already: another pool in the file does not ask again.
    Raises ``ConfigurationInvalid``.
    """
    request = _Request(settings.pool or joined, content=content)
    return await _apart(request, is_small=len(content) <= child.SMALL_FILE)


def of_published(file: PoolFile, settings: Settings, joined: str) -> Configuration:
    """The same here and now. Raises ``SettingsError`` or ``KeyUnreadable``."""
    pool = _pool(file, settings.pool or joined)
    keys = digests(file.entitlements_of(pool.name), resolver(os.environ, _read_key))
    return Configuration(file, pool, KeyRing(keys), (), encode_file(file)[0])


async def _apart(request: _Request, *, is_small: bool) -> Configuration:
    """In a thread where the file is small, or no child can be had; else in a child."""
    if not is_small:
        try:
            return await _from_child(request)
        except child.ChildFailed as error:
            # It delays requests by some milliseconds, and tells what is wrong with the file all the same.
            log.warning("the pool file is read in this process", extra={"reason": str(error)})
    head, file, keys = await asyncio.to_thread(_read, request)
    return _configuration(head, file, KeyRing(keys))


async def _from_child(request: _Request) -> Configuration:
    answer = child.frames(MODULE, msgspec.msgpack.encode(request))
    head = _Head()
    entitlements: list[Entitlement] = []
    keys = KeyRing({})
    is_first = True
    async for frame in answer:
        if is_first:
            head, is_first = _heads.decode(frame), False
            continue
        part = _parts.decode(frame)
        entitlements += part.entitlements
        keys.add(part.keys)
        await asyncio.sleep(0)
    if head.error:
        raise ConfigurationInvalid(head.error)
    if is_first:
        raise child.ChildFailed(f"{MODULE} said nothing")
    return _configuration(head, PoolFile(head.pools, tuple(entitlements), head.anonymous), keys)


def _configuration(head: _Head, file: PoolFile, keys: KeyRing) -> Configuration:
    for line, message, fix in head.warnings[:MOST_WARNINGS]:
        log.warning(message, extra={"line": line, "fix": fix})
    if len(head.warnings) > MOST_WARNINGS:
        log.warning(
            "there are more warnings about the pool file",
            extra={"more": len(head.warnings) - MOST_WARNINGS, "fix": "see tokenpool-sidecar check"},
        )
    watched = tuple(Path(path) for path in head.watched)
    return Configuration(file, file.pool(head.pool), keys, watched, head.version)


def _read(request: _Request) -> tuple[_Head, PoolFile, dict[bytes, str]]:
    """Everything that takes long. Raises ``ConfigurationInvalid``."""
    warnings: tuple[tuple[int, str, str], ...] = ()
    watched: tuple[str, ...] = ()
    try:
        if request.content:
            file = decode_file(request.content)
        else:
            parsed = parse(Path(request.config).read_text(encoding="utf-8"), name=request.config)
            file = parsed.file
            warnings = tuple((w.line, w.message, w.fix) for w in parsed.warnings)
        pool = _pool(file, request.pool)
        entitlements = file.entitlements_of(pool.name)
        keys = digests(entitlements, resolver(os.environ, _read_key))
    except OSError as error:
        reason = f"--config {request.config}: the pool file cannot be read: {error.strerror or error}"
        raise ConfigurationInvalid(reason) from error
    except (PoolFileError, WireError, KeyUnreadable, SettingsError, UnicodeError) as error:
        raise ConfigurationInvalid(str(error)) from error
    if request.config:
        key_files = {
            ref.value for each in entitlements for ref in each.api_keys if ref.source is KeySource.FILE
        }
        watched = (request.config, *sorted(key_files))
    head = _Head("", pool.name, file.pools, file.anonymous, watched, encode_file(file)[0], warnings)
    return head, file, keys


def _read_key(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _pool(file: PoolFile, name: str | None) -> Pool:
    names = [pool.name for pool in file.pools]
    if name is None:
        if len(names) > 1:
            raise SettingsError(f"the pool file has several pools; give --pool {'|'.join(names)}")
        return file.pools[0]
    if name not in names:
        raise SettingsError(f"--pool {name}: the pool file has only {', '.join(names)}")
    return file.pool(name)


def _answer(request: bytes) -> Iterator[bytes]:
    """The child: what it has read, in frames."""
    encode = msgspec.msgpack.encode
    try:
        head, file, keys = _read(msgspec.msgpack.decode(request, type=_Request))
    except ConfigurationInvalid as error:
        yield encode(_Head(str(error)))
        return
    yield encode(head)
    names: dict[str, list[bytes]] = {}
    for digest, name in keys.items():
        names.setdefault(name, []).append(digest)
    for first in range(0, len(file.entitlements), PER_FRAME):
        some = file.entitlements[first : first + PER_FRAME]
        # A name is one entitlement's, of whichever pool.
        yield encode(_Part(some, {digest: e.name for e in some for digest in names.get(e.name, ())}))


if __name__ == "__main__":
    child.serve(_answer)
