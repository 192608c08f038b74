"""Settings of one sidecar: the command line and the environment, validated.

What the operator promised to tenants is not here but in the pool file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime import options
from runtime.options import Address, Addresses, Form, Origin, SettingsError
from tokenpool.planning.planner import PlannerSettings

__all__ = ["Address", "Addresses", "Origin", "Settings", "SettingsError", "add_arguments", "read"]

MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one sidecar runs. Times are in seconds, sizes in bytes."""

    config: Path
    upstream: Origin
    listen: Addresses = Addresses.of("127.0.0.1", 8080)
    admin: Addresses = Addresses.of("127.0.0.1", 9090)
    pool: str | None = None
    store: str = MEMORY
    store_timeout: float = 0.5
    lease_lifetime: float = 1.5
    name: str | None = None
    engine_priority: str = "auto"
    slo_feedback: bool = True
    queue_timeout_guaranteed: float = 2.0
    queue_timeout_elastic: float = 1.0
    queue_timeout_spot: float = 0.0
    identity_header: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_handshake_timeout: float = 10.0
    upstream_key_file: Path | None = None
    upstream_tls_ca: Path | None = None
    upstream_tls_cert: Path | None = None
    upstream_tls_key: Path | None = None
    upstream_tls_name: str | None = None
    log_level: str = "info"
    log_requests: bool = False
    metrics_entitlements: int = 400
    tick: float = 0.25
    debt_gain: float = PlannerSettings().debt_gain
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
    max_body_bytes: int = 16 * 1024 * 1024
    max_connections: int = 10_000
    max_buffered_bytes: int = 256 * 1024 * 1024
    entitlement_share: float = 0.5
    unidentified_share: float = 0.25
    unmetered_rate: float = 500.0
    large_body_rate: int = 4 * 1024 * 1024


def _store(text: str, source: str) -> str:
    if text == MEMORY:
        return text
    # Imported here: a lone sidecar needs no client of Redis.
    from tokenpool.store import address  # noqa: PLC0415

    try:
        address.check(text)
    except address.AddressInvalid as error:
        raise SettingsError(f"{source}: {error}") from error
    return text


_FORM = Form(
    Settings,
    {
        "config": "the pool file",
        "upstream": "the engine, http://HOST:PORT or https://HOST:PORT",
        "listen": "where tenants connect, HOST:PORT; several with commas; [::] serves IPv4, too",
        "admin": "metrics, health and state, HOST:PORT; keep it away from tenants",
        "pool": "the pool that this engine belongs to; needed where the file has several",
        "store": "where the lease store is kept: memory (a lone sidecar plans for itself) or redis://...",
        "store_timeout": "how long the store may take to answer, s",
        "lease_lifetime": "how long what is held of a limit outlives silence, s; several times the tick",
        "name": "what this sidecar is called in the lease store; the host's name otherwise",
        "engine_priority": "send each request's priority to the engine: auto (unless it refuses), on or off",
        "slo_feedback": "reserve slots from spot and bursts while guaranteed requests miss their ttft_ms",
        "queue_timeout_guaranteed": "how long a guaranteed tenant's request may wait for room, s; 0 = not",
        "queue_timeout_elastic": "the same for elastic tenants, s; slo.ttft_ms shortens each",
        "queue_timeout_spot": "the same for spot tenants, s",
        "identity_header": "trust this request header, set by a gateway in front, to name the entitlement",
        "tls_cert": "speak TLS to tenants: the certificate and its chain, PEM; read again when it changes",
        "tls_key": "its private key, PEM",
        "tls_handshake_timeout": "how long a TLS handshake may take, s",
        "upstream_key_file": "a file with the API key that the engine itself asks for",
        "upstream_tls_ca": "the authorities that vouch for an https engine, PEM; the system's otherwise",
        "upstream_tls_cert": "the certificate to show to an https engine, PEM",
        "upstream_tls_key": "its private key, PEM",
        "upstream_tls_name": "the name in an https engine's certificate, where --upstream has another",
        "log_level": "debug, info, warning or error",
        "log_requests": "log one line for each request (never prompts or keys)",
        "metrics_entitlements": 'entitlements with metrics of their own; others are added up as "other"',
        "tick": "how often limits are recomputed, and the lease store is spoken to, s",
        "debt_gain": "how strongly service that is owed counts (a lone sidecar); 0 turns debt off",
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
        "max_buffered_bytes": "requests and unread answers in memory, all together",
        "entitlement_share": "the part of these two that one entitlement may have of what others leave",
        "unidentified_share": "the same for all connections that no accepted request has identified",
        "unmetered_rate": "refusals and answers without a price per second and entitlement; more are delayed",
        "large_body_rate": "bytes per second and entitlement of bodies from 16 KiB on",
    },
    example="tokenpool-sidecar run --config pool.yaml --upstream http://127.0.0.1:8000",
    readers={
        "config": options.path,
        "tls_cert": options.path,
        "tls_key": options.path,
        "upstream_key_file": options.path,
        "upstream_tls_ca": options.path,
        "upstream_tls_cert": options.path,
        "upstream_tls_key": options.path,
        "upstream_tls_name": options.matching(r"[A-Za-z0-9._:-]{1,253}", "a host's name or address"),
        "upstream": options.upstream,
        "listen": options.addresses,
        "admin": options.addresses,
        "store": _store,
        "name": options.matching(r"[A-Za-z0-9_.-]{1,100}", "a name of letters, digits, dots and dashes"),
        "debt_gain": options.not_negative,
        "engine_priority": options.one_of("auto", "on", "off"),
        "queue_timeout_guaranteed": options.not_negative,
        "queue_timeout_elastic": options.not_negative,
        "queue_timeout_spot": options.not_negative,
        "entitlement_share": options.share,
        "unidentified_share": options.share,
        "identity_header": options.matching(r"[A-Za-z0-9_-]+", "a header name, such as x-tenant-id"),
        "log_level": options.one_of("debug", "info", "warning", "error"),
    },
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every option on a parser."""
    _FORM.add_arguments(parser)


def read(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from parsed arguments and the environment. Raises ``SettingsError``."""
    made = _FORM.read(arguments, environment)
    if made.lease_lifetime < 3 * made.tick:
        raise SettingsError(
            f"--lease-lifetime: {made.lease_lifetime:g} s is less than three ticks of {made.tick:g} s; a"
            " lease would expire between two messages. Make it longer, or --tick shorter"
        )
    _go_together("--tls-cert", made.tls_cert, "--tls-key", made.tls_key)
    _go_together("--upstream-tls-cert", made.upstream_tls_cert, "--upstream-tls-key", made.upstream_tls_key)
    if made.entitlement_share * made.max_buffered_bytes <= made.max_body_bytes:
        raise SettingsError(
            f"--max-buffered-bytes: {made.entitlement_share:g} of {made.max_buffered_bytes} bytes, the share"
            f" of one entitlement, has no room for a body of --max-body-bytes {made.max_body_bytes}"
        )
    for name in ("upstream_tls_ca", "upstream_tls_cert", "upstream_tls_name"):
        if getattr(made, name) is not None and not made.upstream.tls:
            raise SettingsError(f"{options.option(name)} needs an https --upstream, not {made.upstream.url}")
    return made


def _go_together(one: str, first: Path | None, other: str, second: Path | None) -> None:
    if (first is None) != (second is None):
        missing, given = (one, other) if first is None else (other, one)
        raise SettingsError(f"{given} is given without {missing}; a certificate and its key go together")
