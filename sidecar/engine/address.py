"""The address of the engine: where it listens, and how the sidecar and the engine identify themselves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.followed import FollowedFiles
from runtime.options import Origin, SettingsError
from runtime.tls import client_context
from sidecar.settings import Settings

HEALTH, METRICS, MODELS = "/health", "/metrics", "/v1/models"
"""The engine's pages that the sidecar polls."""


@dataclass(slots=True)
class EngineAddress:
    """The address of the engine, and the data that authenticates it.

    Only ``followed`` changes it. Requests, polls and new connections use the current values.
    """

    origin: Origin
    context: ssl.SSLContext | None = None
    """The authorities to trust and the certificate to present; ``None`` without TLS."""
    name: str | None = None
    """The name that the engine's certificate must have."""
    key: str | None = field(default=None, repr=False)
    """The API key that the engine itself asks for."""


def engine_address(settings: Settings) -> EngineAddress:
    """The address that requests and polls share. Raises ``SettingsError``; ``OSError`` for the key file."""
    origin = settings.upstream
    key = _key(settings.upstream_key_file) if settings.upstream_key_file is not None else None
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


def _key(path: Path) -> str:
    """The key in a file. It must fit into a header. Raises ``SettingsError`` and ``OSError``."""
    key = path.read_text(encoding="utf-8", errors="replace").strip()
    if not key or not key.isascii() or not key.isprintable():
        problem = "holds more than one line of ASCII" if key else "holds no key"
        raise SettingsError(f"--upstream-key-file {path} {problem}; write the engine's API key into it")
    return key


def followed(address: EngineAddress, settings: Settings, changed: Callable[[], None]) -> FollowedFiles:
    """The files of an address, which change it when they change.

    Requests that run keep their connection. New connections use the new authorities and certificate.
    ``changed`` is called after each change.
    """
    names = ("upstream_key_file", "upstream_tls_ca", "upstream_tls_cert", "upstream_tls_key")
    paths = tuple(path for name in names if (path := getattr(settings, name)) is not None)

    async def put_in_force() -> tuple[Path, ...]:
        new = await asyncio.to_thread(engine_address, settings)
        address.context, address.key = new.context, new.key
        changed()
        return paths

    return FollowedFiles("engine", paths, put_in_force)
