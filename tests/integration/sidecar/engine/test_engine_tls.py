"""An engine that speaks TLS: requests and polls go to it if it is the engine, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.settings import Origin, SettingsError
from tests.certificates import certify, serving
from tests.fakes import engine as fake
from tests.fakes.engine import FakeEngine, Received
from tests.support.harness import (
    STREAM,
    admin,
    ask,
    connected,
    is_whole,
    read_response,
    request,
    settings_of,
    sidecar_for,
    until,
)


@contextlib.asynccontextmanager
async def engine_with(tls: ssl.SSLContext | None) -> AsyncIterator[FakeEngine]:
    """A scripted engine behind TLS."""
    engine = FakeEngine(tls=tls)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def sidecar_to(engine: FakeEngine, folder: Path, **options: Any) -> AsyncIterator[Sidecar]:
    """A sidecar in front of an https engine."""
    upstream = Origin("127.0.0.1", engine.port, tls=True)
    async with sidecar_for(engine.port, folder, upstream=upstream, **options) as sidecar:
        yield sidecar


async def test_requests_and_polls_go_over_tls(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "engine")
    async with (
        engine_with(serving(cert, key)) as engine,
        sidecar_to(engine, tmp_path, upstream_tls_ca=cert) as sidecar,
    ):
        async with connected(sidecar) as (reader, writer):
            for _ in range(5):
                writer.write(request())
                assert (await read_response(reader)).status == 200
        assert len(sidecar._upstream._open) == 1
        engine.answer = fake.answer_stream
        streamed = await ask(sidecar, request("/v1/chat/completions", STREAM))
        assert sidecar.watcher.status.context_window == 2048
        assert is_whole(sidecar)
    assert streamed.body.endswith(fake.DONE)
    assert engine.received[0].headers["host"] == f"127.0.0.1:{engine.port}"


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_only_a_goodbye_ends_an_answer_without_a_length(tmp_path: Path, says_goodbye: bool) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}")
        await writer.drain()
        if says_goodbye:
            writer.close()
        else:
            writer.transport.abort()

    cert, key = certify(tmp_path, "engine")
    async with (
        engine_with(serving(cert, key)) as engine,
        sidecar_to(engine, tmp_path, upstream_tls_ca=cert) as sidecar,
    ):
        engine.answer = answer
        if says_goodbye:
            assert (await ask(sidecar, request())).body == b"{}"
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
                await ask(sidecar, request())
        ending = "finished" if says_goodbye else "upstream_error"
        assert sidecar.telemetry.outcomes("g") == {ending: 1}


async def test_the_name_in_the_certificate_may_be_another_than_the_address(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "engine", address="DNS:engine.internal")
    async with (
        engine_with(serving(cert, key)) as engine,
        sidecar_to(engine, tmp_path, upstream_tls_ca=cert, upstream_tls_name="engine.internal") as sidecar,
    ):
        assert (await ask(sidecar, request())).status == 200


async def test_an_engine_that_wants_to_know_us_is_shown_our_certificate(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    our_cert, our_key = certify(ours, "sidecar")
    cert, key = certify(tmp_path, "engine")
    wary = serving(cert, key)
    wary.verify_mode = ssl.CERT_REQUIRED
    wary.load_verify_locations(our_cert)
    shown = {"upstream_tls_cert": our_cert, "upstream_tls_key": our_key}
    async with engine_with(wary) as engine:
        async with sidecar_to(engine, tmp_path, upstream_tls_ca=cert, **shown) as sidecar:
            assert (await ask(sidecar, request())).status == 200
        async with sidecar_to(engine, tmp_path, upstream_tls_ca=cert, ready=False) as sidecar:
            await until(lambda: sidecar.watcher.status.error is not None)
            assert (await ask(sidecar, request())).status == 503


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("stranger", "certificate verify failed"),
        ("other name", "IP address mismatch"),
        ("no TLS", "no answer|no connection within 0.2 s"),
    ],
)
async def test_an_engine_that_cannot_be_trusted_is_down_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flaw: str, reason: str
) -> None:
    address = "DNS:engine.internal" if flaw == "other name" else "IP:127.0.0.1"
    cert, key = certify(tmp_path, "engine", address=address)
    options: dict[str, Any] = {} if flaw == "stranger" else {"upstream_tls_ca": cert}
    if flaw == "no TLS":
        options |= {"poll_timeout": 0.2, "connect_timeout": 0.2}
    async with (
        engine_with(None if flaw == "no TLS" else serving(cert, key)) as engine,
        # One poll and no more, so that a request tries by itself.
        sidecar_to(engine, tmp_path, ready=False, poll_interval=60.0, **options) as sidecar,
    ):
        await until(lambda: sidecar.watcher.status.error is not None)
        _, state = await admin(sidecar, "/debug/state")
        sidecar.controller.engine.is_up = True
        response = await ask(sidecar, request("/v1/models", method="GET"))
        assert is_whole(sidecar)
        assert not sidecar.controller.engine.is_up
    said = [vars(record)["error"] for record in caplog.records if "error" in vars(record)]
    assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "engine_down")
    assert len(said) == 2
    for text in (*said, state):
        assert re.search(reason, text)
    assert engine.received == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("https://h:1 --upstream-tls-cert a", "--upstream-tls-cert is given without --upstream-tls-key"),
        ("http://h:1 --upstream-tls-ca a", "--upstream-tls-ca needs an https --upstream, not http://h:1"),
        ("http://h --upstream-tls-name a", "--upstream-tls-name needs an https --upstream, not http://h:80"),
        ("https://h --upstream-tls-name a/b", "--upstream-tls-name: 'a/b' is not a host's name or address"),
        ("https://h/v1", "--upstream: 'https://h/v1' is not http://HOST:PORT or https://HOST:PORT"),
    ],
)
def test_wrong_options_are_named(arguments: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(f"--upstream {arguments}")


def test_an_engine_without_a_port_has_the_schemes() -> None:
    assert settings_of("--upstream https://engine").upstream == Origin("engine", 443, tls=True)
    assert settings_of("--upstream http://engine/").upstream == Origin("engine", 80)
    assert settings_of("--upstream https://[::1]:8").upstream.url == "https://[::1]:8"


@pytest.mark.parametrize("content", [None, "not a certificate"])
async def test_authorities_that_cannot_be_read_are_named_at_the_start(
    tmp_path: Path, content: str | None
) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(SettingsError, match=r"--upstream-tls-ca .*ca\.pem cannot be loaded: .*; give a PEM"):
        async with sidecar_to(FakeEngine(port=1), tmp_path, upstream_tls_ca=ca):
            pass


async def test_a_certificate_to_show_that_cannot_be_read_is_named_at_the_start(tmp_path: Path) -> None:
    files = {"upstream_tls_cert": tmp_path / "no.crt", "upstream_tls_key": tmp_path / "no.key"}
    with pytest.raises(
        SettingsError, match=r"--upstream-tls-cert and --upstream-tls-key .*no\.crt, .*no\.key"
    ):
        async with sidecar_to(FakeEngine(port=1), tmp_path, **files):
            pass
