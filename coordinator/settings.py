"""Settings of one coordinator: the command line and the environment, validated."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from runtime import options
from runtime.options import Addresses, SettingsError, option
from tokenpool.planning.planner import PlannerSettings
from tokenpool.store import address

EXAMPLE = "tokenpool-coordinator run --config pool.yaml --store redis://127.0.0.1:6379"


def _store(text: str, source: str) -> str:
    if text == "memory":
        raise SettingsError(
            f"{source}: memory is for a lone sidecar, which needs no coordinator; give a redis:// URL"
        )
    try:
        address.check(text)
    except address.AddressInvalid as error:
        raise SettingsError(f"{source}: {error}") from error
    return text


def _usage_store(text: str, source: str) -> str:
    # Imported here: most coordinators have no usage store.
    from coordinator.usage.database import DatabaseInvalid, database  # noqa: PLC0415

    try:
        database(text)
    except DatabaseInvalid as error:
        raise SettingsError(f"{source}: {error}") from error
    return text


def _namespaces(text: str, source: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",")))
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise SettingsError(f"{source}: {name!r} is not a namespace; give names with commas between them")
    return names


_name = options.matching(r"[A-Za-z0-9_.-]{1,100}", "a name of letters, digits, dots and dashes")


@options.record
class Settings:
    """The settings of one coordinator. Times are in seconds."""

    config: Path | None = option(
        "the pool file, or a folder of *.yaml files; the coordinator leads all its pools, and all sidecars"
        " enforce it. Required without --entitlements-from",
        default=None,
    )
    store: str | None = option(
        "the lease store: redis://...; this or --store-file is required", default=None, read=_store
    )
    store_file: Path | None = option(
        "file with the URL of the lease store; read again when it changes", default=None
    )
    store_password_file: Path | None = option(
        "file with the password for the lease store's URL, which then has none; read again when it changes",
        default=None,
    )
    listen: Addresses = option(
        "addresses for metrics, health, state and scale hints, HOST:PORT; several with commas",
        default=Addresses.of("127.0.0.1", 9091),
    )
    tls_cert: Path | None = option(
        "PEM file with the certificate and its chain, for TLS on the addresses of --listen; read again when"
        " it changes",
        default=None,
    )
    tls_key: Path | None = option("PEM file with the certificate's private key", default=None)
    usage_store: str | None = option(
        "the usage store, for pools with usage_records: postgresql://... (the extra tokenpool[postgres]), or"
        " for a lone coordinator the path of a SQLite file; by default /var/lib/tokenpool/usage.db",
        default=None,
        read=_usage_store,
    )
    usage_store_file: Path | None = option(
        "file with the URL of the usage store, in place of --usage-store; read again for each connection",
        default=None,
    )
    usage_keep_days: int = option(
        "days for which the usage store keeps records, at least 2; their sums stay", default=400
    )
    entitlements_from: str | None = option(
        "also read pools and entitlements from TokenPool and Entitlement resources, and write their status:"
        " kubernetes. Needs the extra tokenpool[kubernetes]",
        default=None,
        read=options.one_of("kubernetes"),
    )
    entitlements_namespaces: tuple[str, ...] | None = option(
        "namespaces of these resources, separated by commas; by default the namespace of the pod",
        default=None,
        read=_namespaces,
    )
    administrator_tokens: Path | None = option(
        "file with administrators' tokens, one line NAME TOKEN each: turns on the API for credentials on the"
        " admin port, which keeps them in the usage store's database; read again when it changes",
        default=None,
    )
    name: str | None = option(
        "name of this coordinator in the logs; by default the name of the host", default=None, read=_name
    )
    tick: float = option("interval between two computations of the limits, s", default=0.25)
    debt_gain: float = option(
        "effect of debt on limits; 0 turns debt off",
        default=PlannerSettings().debt_gain,
        read=options.not_negative,
    )
    leadership_timeout: float = option(
        "time until a leader that does not renew its leadership loses it, s", default=2.0
    )
    lease_lifetime: float = option(
        "time until an unrenewed lease of a sidecar expires, s; the same as the sidecars'", default=1.5
    )
    store_timeout: float = option("time limit for an answer of the store, s", default=0.5)
    scale_headroom: float = option("spare capacity, as a part of the needed capacity", default=0.1)
    scale_spot: bool = option("let spot demand raise the scale hint, too", default=False)
    scale_up_window: float = option(
        "time for which more replicas must be needed before the hint rises, s", default=1.0
    )
    scale_down_window: float = option(
        "time for which fewer replicas must be needed before the hint falls, s", default=300.0
    )
    log_level: str = option("debug, info, warning or error", default="info", read=options.log_level)
    metrics_entitlements: int = option(
        'number of entitlements with metrics of their own; the sum of the others is "other"', default=2000
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every option on a parser."""
    options.add_arguments(parser, Settings)


def read(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from parsed arguments and the environment. Raises ``SettingsError``."""
    made = options.read(Settings, arguments, environment, example=EXAMPLE)
    if made.store is None and made.store_file is None:
        raise SettingsError(f"--store must be given, e.g. {EXAMPLE}; or give --store-file")
    if made.store is not None and made.store_file is not None:
        raise SettingsError("--store and --store-file are both given; remove one of them")
    options.check_pair("--tls-cert", made.tls_cert, "--tls-key", made.tls_key)
    if made.usage_store is not None and made.usage_store_file is not None:
        raise SettingsError("--usage-store and --usage-store-file are both given; remove one of them")
    if made.usage_keep_days < 2:
        raise SettingsError(
            f"--usage-keep-days: {made.usage_keep_days} is less than 2; a record that comes twice would count"
            " twice"
        )
    if made.config is None and made.entitlements_from is None:
        raise SettingsError(f"--config must be given, e.g. {EXAMPLE}; or give --entitlements-from kubernetes")
    if made.entitlements_namespaces is not None and made.entitlements_from is None:
        raise SettingsError("--entitlements-namespaces: give --entitlements-from kubernetes, too")
    if made.leadership_timeout < 3 * made.tick:
        raise SettingsError(
            f"--leadership-timeout: {made.leadership_timeout:g} s is less than three ticks of {made.tick:g}"
            " s; another coordinator would lead after each pause. Make it longer, or --tick shorter"
        )
    return made
