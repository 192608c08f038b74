"""Certificates for tests, made by the ``openssl`` program; tests that need one are skipped without it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def certify(folder: Path, name: str, *, address: str = "IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, in the files that cert-manager's Secret has."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    command = (
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days {days} -subj /CN={name}"
        f" -addext subjectAltName={address}"
    )
    openssl(*command.split(), "-keyout", str(key), "-out", str(cert))
    return cert, key


def openssl(*arguments: str) -> None:
    """Run the program."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed, and certificates come from nowhere else")
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60)


def serving(cert: Path, key: Path) -> ssl.SSLContext:
    """A server that shows this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


def trusting(cert: Path) -> ssl.SSLContext:
    """A client that trusts this certificate and nothing else."""
    return ssl.create_default_context(cafile=str(cert))
