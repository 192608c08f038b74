"""A store's address: which Redis, and how to reach it. The only place that builds Redis clients.

========================= ==================================================================
``redis://``              one server: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``
``rediss://``             the same over TLS
``unix://``               one server on this machine: ``unix://PATH[?db=DB]``
``redis+sentinel://``     the master of a group: ``//[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/GROUP[/DB]``
``redis+cluster://``      a cluster: ``//[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]``
========================= ==================================================================

``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS. TLS options are given as a query:
``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths), ``ssl_cert_reqs`` (required, none),
``ssl_check_hostname`` (true, false); sentinels' own password as ``sentinel_password``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from tokenpool.store.redis import Client, RedisStore

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_TEXT_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}


class AddressInvalid(ValueError):
    """A store's URL makes no sense; the text says why, without the password."""


def open_store(url: str, pool: str, lifetime_s: float, timeout_s: float) -> RedisStore:
    """The store at ``url``; nothing is connected yet. Raises ``AddressInvalid``.

    A call that takes longer than ``timeout_s`` fails. Nothing is retried here: whoever calls says the same
    again at its next turn.
    """
    client, *helpers = _clients(url, timeout_s)
    return RedisStore(client, pool, lifetime_s, helpers=helpers)


def check(url: str) -> None:
    """Whether a URL names a store, without connecting. Raises ``AddressInvalid``."""
    _clients(url, 1.0)


def shown(url: str) -> str:
    """A URL without its password, for logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.partition("?")[0].rpartition("@")[2]
    credentials, at, where = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0] + ':***@' if at else ''}{where.partition('?')[0]}"


def _clients(url: str, timeout_s: float) -> list[Client]:
    """The client to use, and those that it uses itself."""
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
        if "+" not in scheme:
            made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url, **common)
            return [made]
        return _of_many(url, common)
    except (ValueError, TypeError) as error:
        raise AddressInvalid(f"{shown(url)!r} is not a store: {error}") from error


def _of_many(url: str, options: dict[str, Any]) -> list[Client]:
    """Sentinels or a cluster."""
    security, _, kind = url.partition("://")[0].partition("+")
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    if credentials:
        user, _, password = credentials.partition(":")
        options["username"] = unquote(user) or None
        options["password"] = unquote(password) or None
    if security == "rediss":
        options["ssl"] = True
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    sentinel_password = query.pop("sentinel_password", None)
    for name, value in query.items():
        if name == "ssl_check_hostname":
            options[name] = value.lower() in ("true", "1", "yes")
        elif name in _TEXT_OPTIONS:
            options[name] = value
        else:
            raise ValueError(f"the option {name} is not known here")
    nodes = [_node(text, _DEFAULT_PORTS[kind]) for text in hosts.split(",")]
    if kind == "cluster":
        return [redis.asyncio.RedisCluster(startup_nodes=[ClusterNode(*node) for node in nodes], **options)]
    group, _, database = parts.path.strip("/").partition("/")
    if not group:
        raise ValueError("name the group of servers that the sentinels watch: .../GROUP")
    own = {k: v for k, v in options.items() if k not in ("username", "password")}
    sentinel = Sentinel(nodes, sentinel_kwargs=own | {"password": sentinel_password}, **options)  # type: ignore[no-untyped-call]
    return [sentinel.master_for(group, db=int(database or 0)), *sentinel.sentinels]


def _node(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(default_port)
    if not host or not port.isdigit():
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
