"""The settings of one sidecar, from the command line and the environment, validated.

The promises to tenants are in the pool file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from runtime import options
from runtime.options import Address, Addresses, Origin, SettingsError, option
from tokenpool.planning.planner import PlannerSettings

__all__ = ["Address", "Addresses", "Origin", "Settings", "SettingsError", "add_arguments", "read"]

MEMORY = "memory"
MOST_WORKERS = 64
"""More processes relay more events than one engine makes."""
EXAMPLE = "tokenpool-sidecar run --config pool.yaml --upstream http://127.0.0.1:8000"


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


def _otlp(text: str, source: str) -> str:
    match = re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", text)
    if match is None:
        raise SettingsError(
            f"{source}: {text!r} is not the URL of a collector, such as http://collector:4318"
        )
    return text if (match[1] or "/") != "/" else f"{text.rstrip('/')}/v1/traces"


def _workers(text: str, source: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_WORKERS:
        raise SettingsError(f"{source}: {text!r} is not a number of processes from 1 to {MOST_WORKERS}")
    return int(text)


_name = options.matching(r"[A-Za-z0-9_.-]{1,100}", "a name of letters, digits, dots and dashes")
_header = options.matching(r"[A-Za-z0-9_-]+", "a header name, such as x-tenant-id")
_host = options.matching(r"[A-Za-z0-9._:-]{1,253}", "a host's name or address")


@options.record
class Settings:
    """The settings of one sidecar. Times are in seconds, sizes in bytes."""

    config: Path | None = option(
        "the pool file, or a folder of *.yaml files that are merged; optional with a lease store and --pool:"
        " then the file that a coordinator publishes is used",
        default=None,
    )
    upstream: Origin = option("the engine, http://HOST:PORT or https://HOST:PORT")
    listen: Addresses = option(
        "addresses for tenants, HOST:PORT; several with commas; [::] serves IPv4, too",
        default=Addresses.of("127.0.0.1", 8080),
    )
    admin: Addresses = option(
        "addresses for metrics, health and state, HOST:PORT; keep them away from tenants",
        default=Addresses.of("127.0.0.1", 9090),
    )
    pool: str | None = option("the engine's pool; required if the pool file has several", default=None)
    store: str = option(
        "the lease store: memory (a lone sidecar plans for itself) or redis://...",
        default=MEMORY,
        read=_store,
    )
    store_file: Path | None = option(
        "file with the URL of the lease store, in place of --store; read again when it changes", default=None
    )
    store_password_file: Path | None = option(
        "file with the password for the lease store's URL, which then has none; read again when it changes",
        default=None,
    )
    store_timeout: float = option("time limit for an answer of the store, s", default=0.5)
    lease_lifetime: float = option(
        "time until an unrenewed lease expires, s; at least three ticks", default=1.5
    )
    handover: str = option(
        "hand requests over to replicas with room: on, or off where a router in front places requests",
        default="on",
        read=options.one_of("on", "off"),
    )
    prefix_affinity: str = option(
        "with handover, prefer the replica that has the prompt's beginning in its prefix cache: on or off",
        default="on",
        read=options.one_of("on", "off"),
    )
    peer: Addresses | None = option(
        "addresses for the other sidecars of the pool, HOST:PORT; by default a free port of the address"
        " that faces the store",
        default=None,
    )
    usage_spool: Path = option(
        "folder for usage records that the usage store does not have yet; it should survive a restart of the"
        " container",
        default=Path("/var/spool/tokenpool"),
    )
    usage_spool_bytes: int = option(
        "size limit of these records, bytes; more are dropped and counted", default=64 * 1024 * 1024
    )
    expose_engine_metrics: bool = option(
        "serve the engine's /metrics and /v1/models on the tenants' port without a key, for routers and"
        " scrapers: true or false",
        default=False,
    )
    workers: int = option(
        "processes that share the port, the engine and the limits; one process relays some 30,000 events/s",
        default=1,
        read=_workers,
    )
    name: str | None = option(
        "name of this sidecar in the lease store; by default the name of the host", default=None, read=_name
    )
    engine_priority: str = option(
        "send each request's priority to the engine: auto (unless it refuses), on or off",
        default="auto",
        read=options.one_of("auto", "on", "off"),
    )
    slo_feedback: bool = option(
        "reserve slots from spot and bursts while guaranteed requests miss their ttft_ms: true or false",
        default=True,
    )
    queue_timeout_guaranteed: float = option(
        "time limit in the admission queue for guaranteed tenants, s; 0: no queue",
        default=2.0,
        read=options.not_negative,
    )
    queue_timeout_elastic: float = option(
        "the same for elastic tenants, s; a shorter slo.ttft_ms shortens each",
        default=1.0,
        read=options.not_negative,
    )
    queue_timeout_spot: float = option("the same for spot tenants, s", default=0.0, read=options.not_negative)
    identity_header: str | None = option(
        "request header that names the entitlement; only behind a gateway that sets it",
        default=None,
        read=_header,
    )
    tls_cert: Path | None = option(
        "PEM file with the certificate and its chain, for TLS to tenants; read again when it changes",
        default=None,
    )
    tls_key: Path | None = option("PEM file with the certificate's private key", default=None)
    tls_handshake_timeout: float = option("time limit for a TLS handshake, s", default=10.0)
    upstream_key_file: Path | None = option(
        "file with the engine's own API key; read again when it changes, as are the --upstream-tls files",
        default=None,
    )
    upstream_tls_ca: Path | None = option(
        "PEM file with the authorities to trust for an https engine; by default the system's", default=None
    )
    upstream_tls_cert: Path | None = option(
        "PEM file with the sidecar's certificate for an https engine", default=None
    )
    upstream_tls_key: Path | None = option("PEM file with that certificate's private key", default=None)
    upstream_tls_name: str | None = option(
        "name in an https engine's certificate; by default the host of --upstream", default=None, read=_host
    )
    log_level: str = option("debug, info, warning or error", default="info", read=options.log_level)
    log_requests: bool = option("log one line for each request (never prompts or keys)", default=False)
    otlp_endpoint: str | None = option(
        "URL of an OTLP/HTTP collector, for traces; without a path, /v1/traces is added",
        default=None,
        read=_otlp,
    )
    metrics_entitlements: int = option(
        'number of entitlements with metrics of their own; the sum of the others is "other"', default=400
    )
    tick: float = option(
        "interval between two computations of the limits, and between two messages to the store, s",
        default=0.25,
    )
    debt_gain: float = option(
        "effect of debt on limits (a lone sidecar); 0 turns debt off",
        default=PlannerSettings().debt_gain,
        read=options.not_negative,
    )
    poll_interval: float = option("interval between two reads of the engine's metrics, s", default=0.25)
    poll_timeout: float = option("time limit for the engine's answer to a poll, s", default=1.0)
    drain_timeout: float = option("time limit for running requests after SIGTERM, s", default=30.0)
    head_timeout: float = option("time limit for receiving a request head, s", default=10.0)
    body_timeout: float = option("time limit for receiving a request body, s", default=60.0)
    idle_timeout: float = option("time until an idle client connection is closed, s", default=75.0)
    write_timeout: float = option(
        "time until a client that reads nothing of its response is disconnected, s", default=60.0
    )
    connect_timeout: float = option("time limit for a connection to the engine, s", default=2.0)
    upstream_timeout: float = option("time limit for the engine's silence during a request, s", default=600.0)
    max_head_bytes: int = option("size limit of a request head, bytes", default=32 * 1024)
    max_body_bytes: int = option("size limit of a request body, bytes", default=16 * 1024 * 1024)
    max_connections: int | None = option(
        "limit of client connections; by default 10000, or fewer if the memory limit has no room for them",
        default=None,
    )
    max_buffered_bytes: int | None = option(
        "size limit of all requests and unread responses in memory, bytes; by default 256 MiB, or less if the"
        " memory limit has no room for them",
        default=None,
    )
    entitlement_share: float = option(
        "one entitlement's part of the free connections and buffered bytes, 0 to 1",
        default=0.5,
        read=options.share,
    )
    unidentified_share: float = option(
        "the same for all connections without an accepted request, 0 to 1", default=0.25, read=options.share
    )
    unmetered_rate: float = option(
        "refusals and unpriced responses per second and entitlement; more are delayed", default=500.0
    )
    large_body_rate: int = option(
        "bytes per second and entitlement of bodies of at least 16 KiB", default=4 * 1024 * 1024
    )

    @property
    def has_store(self) -> bool:
        """Whether this sidecar shares its pool with others."""
        return self.store != MEMORY or self.store_file is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every option on a parser."""
    options.add_arguments(parser, Settings)


def read(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from parsed arguments and the environment. Raises ``SettingsError``."""
    made = options.read(Settings, arguments, environment, example=EXAMPLE)
    if made.lease_lifetime < 3 * made.tick:
        raise SettingsError(
            f"--lease-lifetime: {made.lease_lifetime:g} s is less than three ticks of {made.tick:g} s; a"
            " lease would expire between two messages. Make it longer, or --tick shorter"
        )
    if made.config is None and not made.has_store:
        raise SettingsError(f"--config must be given, e.g. {EXAMPLE}; or --store and --pool")
    if made.config is None and made.pool is None:
        raise SettingsError("--pool must be given without --config: name a pool of the published pool file")
    if made.store_file is not None and made.store != MEMORY:
        raise SettingsError("--store and --store-file are both given; remove one of them")
    if made.store_password_file is not None and not made.has_store:
        raise SettingsError("--store-password-file needs --store redis://... or --store-file")
    options.check_pair("--tls-cert", made.tls_cert, "--tls-key", made.tls_key)
    options.check_pair(
        "--upstream-tls-cert", made.upstream_tls_cert, "--upstream-tls-key", made.upstream_tls_key
    )
    buffered = None if made.max_buffered_bytes is None else made.max_buffered_bytes // made.workers
    if buffered is not None and made.entitlement_share * buffered <= made.max_body_bytes:
        of_each = f" (of each of {made.workers} workers)" if made.workers > 1 else ""
        raise SettingsError(
            f"--max-buffered-bytes: {made.entitlement_share:g} of {buffered} bytes{of_each}, the share"
            f" of one entitlement, has no room for a body of --max-body-bytes {made.max_body_bytes}"
        )
    for name in ("upstream_tls_ca", "upstream_tls_cert", "upstream_tls_name"):
        if getattr(made, name) is not None and not made.upstream.tls:
            raise SettingsError(f"{options.flag(name)} needs an https --upstream, not {made.upstream.url}")
    return made
