"""Settings of one sidecar: the command line and the environment, validated.

What the operator promised to tenants is not here but in the pool file. Every option ``--some-option`` may
also be given as ``TOKENPOOL_SOME_OPTION``; the command line wins.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple


class SettingsError(ValueError):
    """An option is missing or makes no sense; the text names it and the fix."""


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one sidecar runs. Times are in seconds, sizes in bytes."""

    config: Path
    upstream: Address
    listen: Address = Address("127.0.0.1", 8080)
    admin: Address = Address("127.0.0.1", 9090)
    pool: str | None = None
    store: str = "memory"
    identity_header: str | None = None
    upstream_key_file: Path | None = None
    log_level: str = "info"
    log_requests: bool = False
    tick: float = 0.25
    poll_interval: float = 0.25
    poll_timeout: float = 1.0
    drain_timeout: float = 30.0
    head_timeout: float = 10.0
    body_timeout: float = 60.0
    idle_timeout: float = 75.0
    write_timeout: float = 60.0
    connect_timeout: float = 2.0
    upstream_timeout: float = 600.0
    max_head_bytes: int = 32 * 1024
    max_body_bytes: int = 32 * 1024 * 1024
    max_connections: int = 10_000


_HELP = {
    "config": "the pool file",
    "upstream": "the engine, http://HOST:PORT",
    "listen": "where tenants connect, HOST:PORT",
    "admin": "metrics, health and state, HOST:PORT; keep it away from tenants",
    "pool": "the pool that this engine belongs to; needed where the file has several",
    "store": "where the books are kept: memory (a lone sidecar plans for itself)",
    "identity_header": "trust this request header, set by a gateway in front, to name the entitlement",
    "upstream_key_file": "a file with the API key that the engine itself asks for",
    "log_level": "debug, info, warning or error",
    "log_requests": "log one line for each request (never prompts or keys)",
    "tick": "how often limits are recomputed, s",
    "poll_interval": "how often the engine's metrics are read, s",
    "poll_timeout": "how long the engine may take to answer a poll, s",
    "drain_timeout": "how long running requests may go on after SIGTERM, s",
    "head_timeout": "how long a client may take to send a request head, s",
    "body_timeout": "how long a client may take to send a request body, s",
    "idle_timeout": "how long a client connection may be idle, s",
    "write_timeout": "how long a client may leave a response unread, s",
    "connect_timeout": "how long a connection to the engine may take, s",
    "upstream_timeout": "how long the engine may be silent during a request, s",
    "max_head_bytes": "the largest request head",
    "max_body_bytes": "the largest request body",
    "max_connections": "client connections at once",
}
_CHOICES = {"store": ("memory",), "log_level": ("debug", "info", "warning", "error")}
_FLAGS = frozenset({"log_requests"})
_REQUIRED = ("config", "upstream")


def option(field: str) -> str:
    """The command-line spelling of a field."""
    return "--" + field.replace("_", "-")


def variable(field: str) -> str:
    """The environment's spelling of a field."""
    return "TOKENPOOL_" + field.upper()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every option on a parser; defaults and the environment are applied by ``read``."""
    defaults = {f.name: f.default for f in fields(Settings)}
    for name, text in _HELP.items():
        shown = "" if name in _REQUIRED or defaults[name] is None else f" [{defaults[name]}]"
        explained = f"{text}{shown} ({variable(name)})"
        if name in _FLAGS:
            parser.add_argument(option(name), action="store_const", const="true", help=explained)
        else:
            parser.add_argument(option(name), help=explained, metavar="X")


def read(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from parsed arguments and the environment. Raises ``SettingsError``."""
    given: dict[str, object] = {}
    for field in fields(Settings):
        text = getattr(arguments, field.name)
        source = option(field.name)
        if text is None and environment.get(variable(field.name)):
            text, source = environment[variable(field.name)], variable(field.name)
        if text is not None:
            given[field.name] = _convert(field.name, text, source)
    missing = [option(name) for name in _REQUIRED if name not in given]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} must be given, e.g. tokenpool-sidecar run --config pool.yaml"
            " --upstream http://127.0.0.1:8000"
        )
    return Settings(**given)  # type: ignore[arg-type]  # _convert gives each field its own type


def _convert(name: str, text: str, source: str) -> object:
    if name in _CHOICES and text not in _CHOICES[name]:
        raise SettingsError(f"{source}: {text!r} is not one of {', '.join(_CHOICES[name])}")
    if name in ("listen", "admin"):
        return parse_address(text, source)
    if name == "upstream":
        return parse_upstream(text, source)
    if name in ("config", "upstream_key_file"):
        return Path(text)
    if name in _FLAGS:
        return _boolean(text, source)
    if name == "identity_header" and not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise SettingsError(f"{source}: {text!r} is not a header name, such as x-tenant-id")
    if name.startswith("max_"):
        return int(_positive(text, source, whole=True))
    default = next(f.default for f in fields(Settings) if f.name == name)
    return _positive(text, source) if isinstance(default, float) else text


def parse_address(text: str, source: str) -> Address:
    """``HOST:PORT``, ``[V6]:PORT`` or ``:PORT`` (all interfaces)."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"{source}: {text!r} is not HOST:PORT, such as 127.0.0.1:8080")
    return Address(host or "0.0.0.0", int(port))


def parse_upstream(text: str, source: str) -> Address:
    """``http://HOST:PORT`` of the engine, without a path."""
    match = re.fullmatch(r"http://([^/?#@]+)/?", text)
    if match is None:
        raise SettingsError(
            f"{source}: {text!r} is not http://HOST:PORT; the engine is next door, so plain HTTP and no path"
        )
    authority = match[1]
    if not re.search(r":\d+$", authority):
        authority += ":80"
    return parse_address(authority, source)


def _boolean(text: str, source: str) -> bool:
    lowered = text.lower()
    if lowered not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise SettingsError(f"{source}: {text!r} is neither true nor false")
    return lowered in ("1", "true", "yes", "on")


def _positive(text: str, source: str, *, whole: bool = False) -> float:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        kind = "whole number" if whole else "number"
        raise SettingsError(f"{source}: {text!r} is not a {kind} above 0")
    return number
