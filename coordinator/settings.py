"""Settings of one coordinator: the command line and the environment, validated."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime import options
from runtime.options import Addresses, Form, SettingsError
from tokenpool.planning.planner import PlannerSettings
from tokenpool.store import address


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one coordinator runs. Times are in seconds."""

    config: Path
    store: str
    listen: Addresses = Addresses.of("127.0.0.1", 9091)
    name: str | None = None
    tick: float = 0.25
    debt_gain: float = PlannerSettings().debt_gain
    leadership_timeout: float = 2.0
    lease_lifetime: float = 1.5
    store_timeout: float = 0.5
    scale_headroom: float = 0.1
    scale_spot: bool = False
    scale_up_window: float = 1.0
    scale_down_window: float = 300.0
    log_level: str = "info"
    metrics_entitlements: int = 2000


def _store(text: str, source: str) -> str:
    if text == "memory":
        raise SettingsError(
            f"{source}: memory is for a lone sidecar, which needs no coordinator; give redis://..."
        )
    try:
        address.check(text)
    except address.AddressInvalid as error:
        raise SettingsError(f"{source}: {error}") from error
    return text


_FORM = Form(
    Settings,
    {
        "config": "the pool file; all its pools are led, and all sidecars enforce it",
        "store": "where the lease store is kept: redis://...",
        "listen": "metrics, health, state and scale hints, HOST:PORT; several with commas",
        "name": "what this coordinator is called in the logs; the host's name otherwise",
        "tick": "how often limits are recomputed, s",
        "debt_gain": "how strongly service that is owed counts; 0 turns debt off",
        "leadership_timeout": "how long a leader that does not renew stays leader, s",
        "lease_lifetime": "how long what a sidecar holds outlives silence, s; the same as the sidecars'",
        "store_timeout": "how long the store may take to answer, s",
        "scale_headroom": "capacity wanted beyond what is needed, as a share of it",
        "scale_spot": "have spot demand raise the scale hint as well",
        "scale_up_window": "how long more must have been needed before the hint rises, s",
        "scale_down_window": "how long less must have been needed before the hint falls, s",
        "log_level": "debug, info, warning or error",
        "metrics_entitlements": 'entitlements with metrics of their own; others are added up as "other"',
    },
    example="tokenpool-coordinator run --config pool.yaml --store redis://127.0.0.1:6379",
    readers={
        "config": options.path,
        "store": _store,
        "listen": options.addresses,
        "debt_gain": options.not_negative,
        "name": options.matching(r"[A-Za-z0-9_.-]{1,100}", "a name of letters, digits, dots and dashes"),
        "log_level": options.one_of("debug", "info", "warning", "error"),
    },
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every option on a parser."""
    _FORM.add_arguments(parser)


def read(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from parsed arguments and the environment. Raises ``SettingsError``."""
    made = _FORM.read(arguments, environment)
    if made.leadership_timeout < 3 * made.tick:
        raise SettingsError(
            f"--leadership-timeout: {made.leadership_timeout:g} s is less than three ticks of {made.tick:g}"
            " s; another coordinator would lead after each pause. Make it longer, or --tick shorter"
        )
    return made
