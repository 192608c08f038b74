"""A pool file with its keys, as a sidecar enforces it. It is read at the start, and again after a change.

A child process does the slow work (YAML, checks, keys). Its parent only takes over the records, a few
at a time. The controller puts a configuration in force.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from runtime import child, config_files
from runtime.options import SettingsError
from sidecar.identity import Credential, KeyRing, KeyUnreadable, administrator_digests, digests, resolver
from sidecar.settings import Settings
from tokenpool.entitlements import Entitlement, Group, Issuer, KeyRef, KeySource, Pool, PoolFile
from tokenpool.leases.wire import WireError, decode_file, encode_file
from tokenpool.poolfile.problems import PoolFileError, Sources
from tokenpool.poolfile.reading import parse_all
from tokenpool.yaml_nodes import Problem

log = logging.getLogger(__name__)

PER_PART = 40
"""Entitlements that the parent takes over in one step: about 0.2 ms."""
MOST_WARNINGS = 20
"""The most warnings that are logged: 2,000 lines delayed requests by 30 ms."""


class ConfigurationInvalid(ValueError):
    """A pool file that cannot be in force; the text gives the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A pool file with its keys, ready to be put in force."""

    file: PoolFile
    pool: Pool
    keys: KeyRing
    administrators: KeyRing
    """The keys that may use the routes for administrators."""
    watched: tuple[Path, ...]
    """The pool file, if it is on disk, and every key file."""
    version: str
    """The version of the file in its published form."""


class Enforcer(Protocol):
    """Puts changed configurations in force."""

    def prepare(self, configuration: Configuration) -> Iterator[None]:
        """Make the accounts of a configuration, in short steps."""

    def enforce(self, configuration: Configuration) -> None:
        """Put a configuration in force."""

    def apply(self, configuration: Configuration) -> None:
        """The sidecar's own pool file changed. Put it in force unless a published one is in force."""

    def keys_changed(self) -> None:
        """A key file of the published pool file changed. The sidecar has no file of its own."""


class _Request(msgspec.Struct):
    pool: str | None
    config: str = ""
    content: bytes = b""
    """A published file, which replaces the one on disk."""


class _Head(msgspec.Struct):
    pool: str
    pools: tuple[Pool, ...]
    anonymous: str | None
    administrator_keys: tuple[KeyRef, ...]
    issuers: tuple[Issuer, ...]
    administrators: dict[bytes, Credential]
    """The digests of these keys."""
    watched: tuple[str, ...]
    version: str
    warnings: tuple[tuple[str, str, str], ...]
    groups: tuple[Group, ...]


class _Part(msgspec.Struct):
    entitlements: tuple[Entitlement, ...]
    keys: dict[bytes, Credential]


class _Result:
    """A configuration that is being made."""

    def __init__(self, head: _Head) -> None:
        self._head = head
        self._entitlements: list[Entitlement] = []
        self._keys = KeyRing({})

    def take(self, part: _Part) -> None:
        self._entitlements += part.entitlements
        self._keys.add(part.keys)

    def made(self) -> Configuration:
        head = self._head
        _log_warnings(head.warnings)
        file = PoolFile(
            head.pools,
            tuple(self._entitlements),
            head.anonymous,
            head.administrator_keys,
            head.issuers,
            head.groups,
        )
        return Configuration(
            file,
            file.pool(head.pool),
            self._keys,
            KeyRing(head.administrators),
            tuple(Path(path) for path in head.watched),
            head.version,
        )


def _log_warnings(warnings: Sequence[tuple[str, str, str]]) -> None:
    for at, message, fix in warnings[:MOST_WARNINGS]:
        log.warning(message, extra={"at": at, "fix": fix})
    if len(warnings) > MOST_WARNINGS:
        log.warning(
            "there are more warnings about the pool file",
            extra={"more": len(warnings) - MOST_WARNINGS, "fix": "see tokenpool-sidecar check"},
        )


def _read(request: _Request) -> tuple[_Head, Iterator[_Part]]:
    """Read and check a pool file and its keys. Raises ``ConfigurationInvalid``."""
    warnings: tuple[tuple[str, str, str], ...] = ()
    sources: Sources | None = None
    # Only sidecars know the keys that a pool file names by a variable or a file. A resource in the published
    # file may have the digest of such a key. It must not keep the whole file out of force.
    taken: list[tuple[str, str]] | None = [] if request.content else None
    try:
        if request.content:
            file = decode_file(request.content)
        else:
            parsed = parse_all(config_files.read(Path(request.config)))
            file, sources = parsed.file, parsed.sources
            warnings = tuple((_at(warning), warning.message, warning.fix) for warning in parsed.warnings)
        _check_library(file)
        pool = _pool(file, request.pool)
        entitlements = file.entitlements_of(pool.name)
        resolve = resolver(os.environ, _read_key)
        keys = digests(entitlements, resolve, taken)
        administrators = administrator_digests(file.administrator_keys, resolve, keys, taken)
        warnings += tuple(
            (
                "",
                f"a key of {later!r} is also a key of {earlier!r}, and stays there",
                "give each its own keys",
            )
            for later, earlier in taken or ()
        )
    except OSError as error:
        reason = f"--config {request.config}: the pool file cannot be read: {error.strerror or error}"
        raise ConfigurationInvalid(reason) from error
    except KeyUnreadable as error:
        where = sources.where(error.line) if sources is not None else "the published pool file"
        raise ConfigurationInvalid(f"{where}: {error.text}") from error
    except (PoolFileError, WireError, SettingsError, UnicodeError) as error:
        raise ConfigurationInvalid(str(error)) from error
    refs = [ref for each in entitlements for ref in each.api_keys]
    key_files = {ref.value for ref in (*refs, *file.administrator_keys) if ref.source is KeySource.FILE}
    watched = (*([request.config] if request.config else []), *sorted(key_files))
    head = _Head(
        pool.name,
        file.pools,
        file.anonymous,
        file.administrator_keys,
        file.issuers,
        administrators,
        watched,
        encode_file(file)[0],
        warnings,
        file.groups,
    )
    return head, _parts(file, keys)


def _check_library(file: PoolFile) -> None:
    """Raise ``ConfigurationInvalid`` if the file has issuers, and the library for JWTs is missing."""
    if file.issuers and importlib.util.find_spec("joserfc") is None:
        raise ConfigurationInvalid(
            f"issuer {file.issuers[0].name!r}: JWTs need joserfc, which is not installed:"
            " pip install 'tokenpool[jwt]', or remove issuers"
        )


def _at(problem: Problem) -> str:
    return f"{problem.file}:{problem.line}" if problem.file else f"line {problem.line}"


def _parts(file: PoolFile, keys: Mapping[bytes, Credential]) -> Iterator[_Part]:
    names: dict[str, list[bytes]] = {}
    for digest, credential in keys.items():
        names.setdefault(credential.entitlement, []).append(digest)
    for first in range(0, len(file.entitlements), PER_PART):
        some = file.entitlements[first : first + PER_PART]
        # A name is unique in the whole file, across its pools.
        yield _Part(some, {digest: keys[digest] for e in some for digest in names.get(e.name, ())})


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


_reading = child.Work(
    "sidecar.configuration",
    _read,
    _Result,
    _Result.take,
    types=(_Request, _Head, _Part),
    failure=ConfigurationInvalid,
)


def load(settings: Settings) -> Configuration:
    """Read the pool file that the settings name, in this thread. Raises ``ConfigurationInvalid``."""
    return _reading.here(_Request(settings.pool, str(settings.config))).made()


async def load_apart(settings: Settings) -> Configuration:
    """Read the pool file without blocking the event loop. Raises ``ConfigurationInvalid``."""
    is_small = settings.config is None or child.is_small(settings.config)
    return (await _reading.apart(_Request(settings.pool, str(settings.config)), is_small=is_small)).made()


async def published(content: bytes, settings: Settings, joined: str) -> Configuration:
    """A pool file that a coordinator published, with the keys that this sidecar can read.

    ``joined`` is the pool of this sidecar. It is needed if the published file has several pools, and the
    file on disk had one. Raises ``ConfigurationInvalid``.
    """
    request = _Request(settings.pool or joined, content=content)
    return (await _reading.apart(request, is_small=len(content) <= child.SMALL_FILE)).made()


if __name__ == "__main__":
    _reading.serve()
