"""LiteLLM's proxy: reservations by priority, or fixed limits for each key."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping

from experiments.peers.environment import FILES, program
from experiments.peers.system import Capacity, Place, Proxy, filled
from experiments.peers.tenants import (
    ELASTIC,
    GUARANTEED,
    GUARANTEED_SHARE,
    SLOTS,
    SPOT,
    TENANTS,
    elastic_share,
)
from toolbox.ports import free_port
from toolbox.processes import Process

WINDOW_S = 5
"""The window of all limits, in seconds. With the default, 60, a flood could use a minute's tokens at once."""
RESERVATIONS = {GUARANTEED: 0.5, ELASTIC: 0.4, SPOT: 0.1}
"""The part of the model's tokens that LiteLLM reserves for each tier."""


def reservations() -> dict[str, float]:
    """LiteLLM's reservation for each tenant: those of the elastic ones by weight."""
    return {
        tenant.name: round(
            RESERVATIONS[tenant.tier] * (elastic_share(tenant) if tenant.tier == ELASTIC else 1.0), 4
        )
        for tenant in TENANTS
    }


def litellm_keys(capacity: Capacity, *, are_fixed: bool) -> dict[str, dict[str, object]]:
    """The fields of each key: its priority, or its fixed limits."""
    if not are_fixed:
        return {tenant.key: {"metadata": {"priority": tenant.name}} for tenant in TENANTS}
    keys: dict[str, dict[str, object]] = {}
    for tenant in TENANTS:
        if tenant.tier == GUARANTEED:
            keys[tenant.key] = {}
            continue
        share = elastic_share(tenant) if tenant.tier == ELASTIC else 1 - GUARANTEED_SHARE
        keys[tenant.key] = {
            "max_parallel_requests": max(round(SLOTS * share), 1),
            "tpm_limit": round(capacity.tokens_per_s * WINDOW_S * share),
        }
    return keys


def _litellm(place: Place, name: str, keys: Mapping[str, object], **values: object) -> Iterator[Proxy]:
    port = free_port()
    file = place.folder / "litellm.yaml"
    file.write_text(filled(name, upstream=place.upstream, **values))
    (place.folder / "keys.json").write_text(json.dumps(keys, indent=1))
    shutil.copy(FILES / "custom_auth.py", place.folder)
    command = [
        program("litellm", place.home),
        "--config",
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_RATE_LIMIT_WINDOW_SIZE": str(WINDOW_S),
    }
    process = Process(
        "litellm",
        [*command, "--telemetry", "False"],
        place.folder,
        probe=f"http://127.0.0.1:{port}/health/liveliness",
        environment=environment,
    )
    with process:
        yield Proxy(port, process)


@contextlib.contextmanager
def litellm_reservations(place: Place) -> Iterator[Proxy]:
    """LiteLLM with reservations by priority (``dynamic_rate_limiter_v3``)."""
    keys = litellm_keys(place.capacity, are_fixed=False)
    tokens = round(place.capacity.tokens_per_s * WINDOW_S)
    yield from _litellm(
        place,
        "litellm-reservations.yaml",
        keys,
        window_tokens=tokens,
        reservations=json.dumps(reservations()),
    )


@contextlib.contextmanager
def litellm_limits(place: Place) -> Iterator[Proxy]:
    """LiteLLM with fixed limits for each key."""
    yield from _litellm(place, "litellm-limits.yaml", litellm_keys(place.capacity, are_fixed=True))
