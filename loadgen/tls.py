"""TLS of connections to servers: the authorities that are trusted, and the client's own certificate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from loadgen.fields import ScenarioError


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of PEM certificates. It crosses process boundaries, unlike an ``SSLContext``."""

    ca: Path | None = None
    """The authorities of servers, instead of the system's."""
    cert: Path | None = None
    """The client's certificate, for servers that ask for one."""
    key: Path | None = None
    """The private key of the certificate."""
    insecure: bool = False
    """Whether any certificate of a server is accepted."""

    def context(self) -> ssl.SSLContext | bool:
        """The context for aiohttp: ``True`` is its default. Raises ``ScenarioError`` for an unusable file."""
        if self == Tls():
            return True
        if (self.cert is None) != (self.key is None):
            raise ScenarioError("--tls-cert and --tls-key belong together; give both")
        if self.insecure and self.ca is not None:
            raise ScenarioError("--tls-ca has no effect with --tls-insecure; give one of them")
        context = self._trusting()
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.cert is not None and self.key is not None:
            try:
                # Without the password callback, an encrypted key would ask for a password on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                raise ScenarioError(
                    f"--tls-cert {self.cert} and --tls-key {self.key} cannot be used ({error}); "
                    "give PEM files of one certificate and of its key without a password"
                ) from None
        return context

    def _trusting(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ScenarioError(
                f"--tls-ca {self.ca} cannot be used ({error}); give a PEM file of certificates"
            ) from None
