"""The end of a certificate's validity, in certificates that openssl makes."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.validity import not_after
from tests.certificates import certify, openssl

DAY = 86400


def test_the_end_is_that_of_the_certificate(tmp_path: Path) -> None:
    cert, _ = certify(tmp_path, "a")
    end = not_after(cert.read_text())
    assert end is not None
    assert abs(end - time.time() - 2 * DAY) < 300


@pytest.mark.parametrize("days", [3_000, 12_000])
def test_both_forms_of_a_time_are_read(tmp_path: Path, days: int) -> None:
    """Until 2049 the year has two digits, later four."""
    key, cert = tmp_path / "k", tmp_path / "c"
    command = f"req -x509 -newkey rsa:2048 -nodes -subj /CN=a -days {days}"
    openssl(*command.split(), "-keyout", str(key), "-out", str(cert))
    end = not_after("text before\n" + cert.read_text())
    assert end is not None
    assert abs(end - time.time() - days * DAY) < 300


def test_the_first_certificate_of_a_chain_counts(tmp_path: Path) -> None:
    first, _ = certify(tmp_path, "a")
    text = first.read_text()
    assert not_after(text + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") == not_after(
        text
    )


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----"]
)
def test_a_text_without_a_certificate_has_no_end(text: str) -> None:
    assert not_after(text) is None


@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused_without_an_error(data: bytes) -> None:
    assert not_after(ssl.DER_cert_to_PEM_cert(data)) is None
