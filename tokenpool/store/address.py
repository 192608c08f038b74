"""The URL of a store. Only this module builds Redis client objects.

========================= ==================================================================
``redis://``              one server: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``
``rediss://``             the same over TLS
``unix://``               one server on this machine: ``unix://PATH[?db=DB]``
``redis+sentinel://``     the master of a group: ``//[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/GROUP[/DB]``
``redis+cluster://``      a cluster: ``//[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]``; give several nodes, or a
                          DNS name of all nodes, because only these are asked after a failure
========================= ==================================================================

``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS. TLS options are query parameters:
``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths), ``ssl_cert_reqs`` (required, none),
``ssl_check_hostname`` (true, false). ``sentinel_password`` is the password of the sentinels.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from tokenpool.store.redis import RedisStore
from tokenpool.store.redis_client import Client, RedisClient

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_TEXT_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}


class AddressInvalid(ValueError):
    """A store's URL is invalid. The text gives the reason, without the password."""


@dataclass(frozen=True, slots=True)
class Access:
    """A URL with its password, and a digest of the TLS files that it names."""

    url: str
    tls: str = ""


class StoreFiles:
    """The URL of the lease store, of which a part or the whole may be in files.

    ``url`` is the option ``--store``, ``url_file`` is ``--store-file``; one of both is given.
    ``password_file`` is ``--store-password-file``.
    """

    def __init__(self, url: str | None, url_file: Path | None, password_file: Path | None) -> None:
        self._url = url
        self._url_file = url_file
        self._password_file = password_file
        self.in_force = self.read()
        """What the stores use. A store that is opened later uses it, too."""

    def read(self) -> Access:
        """Read the files. Raises ``AddressInvalid``, which names the option, and ``OSError``."""
        url, source = self._url, "--store"
        if self._url_file is not None:
            url, source = _line(self._url_file), f"--store-file {self._url_file}"
        try:
            if self._password_file is not None:
                url = with_password(url or "", _line(self._password_file))
            check(url or "")
        except AddressInvalid as error:
            raise AddressInvalid(f"{source}: {error}") from None
        files = b"".join(path.read_bytes() for path in _tls_files(url or ""))
        return Access(url or "", hashlib.sha256(files).hexdigest() if files else "")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files whose content matters, with the TLS files that the URL in force names."""
        own = (self._url_file, self._password_file)
        return (*(path for path in own if path is not None), *_tls_files(self.in_force.url))

    async def follow(self, stores: Iterable[RedisStore], timeout_s: float) -> tuple[Path, ...]:
        """Read the files again, move open stores to what they say, and return ``paths``.

        A store moves only if the new URL answers as a primary with the new credentials. Otherwise it stays,
        and ``StoreDown`` is raised. Raises ``AddressInvalid`` and ``OSError``, too.
        """
        found = await asyncio.to_thread(self.read)
        for store in stores:
            if store.access != found:
                client, *helpers = _clients(found.url, timeout_s)
                await store.move(RedisClient(client, helpers), found, _first_host(found.url))
        self.in_force = found
        return self.paths

    def open(self, pool: str, lifetime_s: float, timeout_s: float) -> RedisStore:
        """The store of a pool, as ``open_store``."""
        store = open_store(self.in_force.url, pool, lifetime_s, timeout_s)
        store.access = self.in_force
        return store


def with_password(url: str, password: str) -> str:
    """A URL with this password. Raises ``AddressInvalid`` if it has a password already."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise AddressInvalid(f"{shown(url)!r} is not a URL, and --store-password-file needs one")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, hosts = authority.rpartition("@")
    if ":" in user:
        raise AddressInvalid(
            f"{shown(url)!r} has a password, and --store-password-file is given: remove one of them"
        )
    return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{rest[len(authority) :]}"


def _line(path: Path) -> str:
    """The content of a file of one line. Raises ``AddressInvalid`` if it is empty; ``OSError``."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise AddressInvalid(f"{path} is not a text file") from None
    if not text or "\n" in text:
        raise AddressInvalid(f"{path} has {'several lines' if text else 'no content'}; write one line")
    return text


def _tls_files(url: str) -> tuple[Path, ...]:
    query = parse_qs(urlsplit(url).query)
    return tuple(Path(query[name][-1]) for name in _TLS_FILES if name in query)


def open_store(url: str, pool: str, lifetime_s: float, timeout_s: float) -> RedisStore:
    """The store at ``url``, without connecting. Raises ``AddressInvalid``.

    ``lifetime_s`` is the lifetime of leases. A call that takes longer than ``timeout_s`` seconds fails. The
    store retries nothing: its callers repeat their messages at their next interval.
    """
    client, *helpers = _clients(url, timeout_s)
    return RedisStore(client, pool, lifetime_s, helpers=helpers, host=_first_host(url))


def _first_host(url: str) -> tuple[str, int]:
    """The first host and port in a URL; loopback for a Unix socket."""
    first = urlsplit(url).netloc.rpartition("@")[2].split(",")[0]
    return _node(first, 6379) if first else ("127.0.0.1", 6379)


def check(url: str) -> None:
    """Raise ``AddressInvalid`` if a URL does not name a store. Does not connect."""
    _clients(url, 1.0)


def shown(url: str) -> str:
    """A URL without its password, for logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.partition("?")[0].rpartition("@")[2]
    credentials, at, where = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0] + ':***@' if at else ''}{where.partition('?')[0]}"


def _clients(url: str, timeout_s: float) -> list[Client]:
    """The client of the store, followed by the clients that it uses internally."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "://" not in url:
        raise AddressInvalid(
            f"{shown(url)!r} is not a store: give memory, or a URL that begins with one of "
            + ", ".join(f"{known}://" for known in SCHEMES)
        )
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        return _of_many(url, common) if "+" in scheme else [_of_one(url, common)]
    except AddressInvalid as error:
        raise AddressInvalid(f"{shown(url)!r} is not a store: {error}") from None
    except (ValueError, TypeError):
        # The text of the library's error may contain a part of the password.
        raise AddressInvalid(
            f"{shown(url)!r} is not a store: it cannot be read; in a password write / # ? @ : and % as"
            " %2F %23 %3F %40 %3A and %25"
        ) from None


def _of_one(url: str, options: dict[str, Any]) -> redis.asyncio.Redis:
    """The client of one server."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme == "unix":
        _database(query.pop("db", ""))
        if unknown := set(query) - {"username", "password"}:
            raise AddressInvalid(f"the option {min(unknown)} is not known here")
    else:
        _port(parts.port or 1)
        _database(parts.path.removeprefix("/"))
        if query and parts.scheme != "rediss":
            raise AddressInvalid(f"the option {min(query)} is not known here; TLS options need rediss://")
        _tls(query)
    if parts.fragment:
        raise ValueError("a # that is not encoded")
    made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url, **options)
    return made


def _of_many(url: str, options: dict[str, Any]) -> list[Client]:
    """The clients of a sentinel group or a cluster."""
    security, _, kind = url.partition("://")[0].partition("+")
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    if credentials:
        user, _, password = credentials.partition(":")
        options["username"] = unquote(user) or None
        options["password"] = unquote(password) or None
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    sentinel_password = query.pop("sentinel_password", None)
    if security == "rediss":
        options["ssl"] = True
    elif query:
        raise AddressInvalid(f"the option {min(query)} is not known here; TLS options need rediss+{kind}://")
    options |= _tls(query)
    nodes = [_node(text, _DEFAULT_PORTS[kind]) for text in hosts.split(",")]
    if kind == "cluster":
        # After a failure, ask the nodes of the URL: the known nodes may belong to an old cluster.
        options["dynamic_startup_nodes"] = False
        return [redis.asyncio.RedisCluster(startup_nodes=[ClusterNode(*node) for node in nodes], **options)]
    group, _, database = parts.path.strip("/").partition("/")
    if not group:
        raise AddressInvalid("name the group of servers that the sentinels watch: .../GROUP")
    own = {k: v for k, v in options.items() if k not in ("username", "password")}
    sentinel = Sentinel(nodes, sentinel_kwargs=own | {"password": sentinel_password}, **options)  # type: ignore[no-untyped-call]
    return [sentinel.master_for(group, db=_database(database)), *sentinel.sentinels]


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """The TLS options of a query, as arguments for the client."""
    options: dict[str, Any] = {}
    for name, value in query.items():
        if name == "ssl_check_hostname":
            options[name] = value.lower() in ("true", "1", "yes")
        elif name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            raise AddressInvalid("ssl_cert_reqs must be none, optional or required")
        elif name in _TEXT_OPTIONS:
            options[name] = value
        else:
            raise AddressInvalid(f"the option {name} is not known here")
    return options


def _database(text: str) -> int:
    if text and not text.isdigit():
        raise AddressInvalid("after the host comes the number of a database, such as /0, or nothing")
    return int(text or 0)


def _node(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(default_port)
    if not host or not port.isdigit():
        raise ValueError("not HOST:PORT")
    return host.strip("[]"), _port(int(port))


def _port(number: int) -> int:
    if not 0 < number < 65536:
        raise AddressInvalid("a port is a number from 1 to 65535")
    return number
