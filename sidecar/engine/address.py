"""The address of the engine: where it listens, and how the sidecar and the engine identify themselves."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from runtime.options import Origin
from runtime.tls import client_context
from sidecar.settings import Settings

HEALTH, METRICS, MODELS = "/health", "/metrics", "/v1/models"
"""The engine's pages that the sidecar polls."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """The address of the engine, and the data that authenticates it."""

    origin: Origin
    context: ssl.SSLContext | None = None
    """The authorities to trust and the certificate to present; ``None`` without TLS."""
    name: str | None = None
    """The name that the engine's certificate must have."""
    key: str | None = field(default=None, repr=False)
    """The API key that the engine itself asks for."""


def engine_address(settings: Settings) -> EngineAddress:
    """The address that requests and polls share. Raises ``SettingsError``; ``OSError`` for the key file."""
    origin, key = settings.upstream, None
    if settings.upstream_key_file is not None:
        key = settings.upstream_key_file.read_text().strip()
    if not origin.tls:
        return EngineAddress(origin, key=key)
    cert, private_key = settings.upstream_tls_cert, settings.upstream_tls_key
    context = client_context(
        settings.upstream_tls_ca,
        (cert, private_key) if cert is not None and private_key is not None else None,
        ca_option="--upstream-tls-ca",
        pair_options="--upstream-tls-cert and --upstream-tls-key",
    )
    return EngineAddress(origin, context, settings.upstream_tls_name or origin.host, key)
