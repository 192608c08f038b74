"""TLS for any process: a server's certificate that may change at run time, and the context of a client.

Messages name the options of the files. Every server has ``--tls-cert`` and ``--tls-key``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from runtime.filewatch import FileWatch
from runtime.options import SettingsError
from runtime.validity import not_after

log = logging.getLogger(__name__)


class Certificate:
    """A server's certificate in force. New connections get the newest one that could be loaded."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.paths = (cert, key)
        self.watch = FileWatch(self.paths, self.reload)
        self.context = _server_context()
        self.not_after: float | None = None
        """End of the validity of the certificate in force, Unix time in seconds; ``None`` if unknown."""
        self.problem: str | None = None
        """The reason why the files on disk are not in force; ``None`` if they are in force."""
        try:
            _load(self.context, cert, key)
            self.not_after = _end_of(cert)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(self._unfit(error)) from error

    async def reload(self) -> None:
        """Read the files again. If certificate and key do not match (yet), the certificate in force stays."""
        try:
            # A separate context is loaded first, because a wrong key must not stay in the live one. A thread
            # does this, so that a slow file system blocks no request. The live context changes in one step.
            await asyncio.to_thread(_try, *self.paths)
            _load(self.context, *self.paths)
            self.not_after = await asyncio.to_thread(_end_of, self.paths[0])
        except (OSError, ssl.SSLError) as error:
            self.problem = self._unfit(error)
            log.error("the certificate cannot be read; the old one stays in force: %s", error)
            return
        self.problem = None
        log.info("the certificate is in force", extra={"cert": str(self.paths[0])})

    def metrics(self) -> Iterator[Metric]:
        """The metrics of the certificate, for Prometheus."""
        yield GaugeMetricFamily(
            "tokenpool_certificate_current",
            "Whether the certificate on disk is the one in force.",
            value=float(self.problem is None),
        )
        end = GaugeMetricFamily(
            "tokenpool_certificate_not_after_seconds",
            "End of the validity of the certificate in force, Unix time, s.",
        )
        if self.not_after is not None:
            end.add_metric((), self.not_after)
        yield end

    def _unfit(self, error: Exception) -> str:
        cert, key = self.paths
        return f"--tls-cert {cert} and --tls-key {key} cannot be loaded: {error}"


def _server_context() -> ssl.SSLContext:
    return _modern(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(
    ca: Path | None, pair: tuple[Path, Path] | None, *, ca_option: str, pair_options: str
) -> ssl.SSLContext:
    """A client's context: the authorities that it trusts, and its own certificate.

    Without ``ca`` the system's authorities are trusted. The options' names are for messages. Raises
    ``SettingsError``.
    """
    try:
        context = _modern(ssl.create_default_context(cafile=ca))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{ca_option} {ca} cannot be loaded: {error}; give a PEM file of the authorities to trust"
        ) from error
    if pair is not None:
        try:
            _load(context, *pair)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"{pair_options} {pair[0]}, {pair[1]} cannot be loaded: {error}") from error
    return context


def _end_of(cert: Path) -> float | None:
    return not_after(cert.read_text(encoding="ascii", errors="replace"))


def _try(cert: Path, key: Path) -> None:
    _load(_server_context(), cert, key)


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    # With a dummy password an encrypted key is an error. Without one, OpenSSL asks the terminal.
    context.load_cert_chain(cert, key, password="-")
