"""TLS on the proxied port: real handshakes on loopback, and everything that may go wrong with one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtime.options import SettingsError
from sidecar.app import Sidecar
from tests.certificates import certify, trusting
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import (
    STREAM,
    admin,
    ask,
    connected,
    is_whole,
    read_chunks,
    read_response,
    request,
    settings_of,
    sidecar_for,
    until,
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Options of a sidecar that speaks TLS."""
    cert, key = certify(tmp_path, "first")
    return {"tls_cert": cert, "tls_key": key}


@pytest_asyncio.fixture
async def failures() -> list[dict[str, Any]]:
    """What the event loop would have printed a traceback of."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    return seen


async def shown_name(sidecar: Sidecar, tls: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection is shown."""
    async with connected(sidecar, tls) as (_, writer):
        return str(writer.get_extra_info("peercert")["subject"][0][0][1])


async def test_requests_and_streams_pass_over_tls(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    tls = trusting(files["tls_cert"])
    large = request(body={"model": "tiny", "prompt": "hi", "max_tokens": 5, "user": "x" * 260_000})
    async with sidecar_for(engine.port, tmp_path, **files) as sidecar:
        async with connected(sidecar, tls) as (reader, writer):
            for raw in (large, request(), request()):
                writer.write(raw)
                assert (await read_response(reader)).status == 200
        engine.answer = fake.answer_stream
        streamed = await ask(sidecar, request("/v1/chat/completions", STREAM), tls=tls)
        await until(lambda: not sidecar.manager.connections)
        assert is_whole(sidecar)
    assert streamed.body.endswith(fake.DONE)
    assert len(engine.received[0].body) > 250_000


async def test_a_refused_request_is_answered_and_the_connection_ends(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, **files) as sidecar,
        connected(sidecar, trusting(files["tls_cert"])) as (reader, writer),
    ):
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + request())
        assert (await read_response(reader)).status == 400
        async with asyncio.timeout(1):
            assert await reader.read() == b""
        await until(lambda: not sidecar.manager.connections)


async def test_a_client_without_close_notify_does_not_delay_the_close(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    options = {"idle_timeout": 0.05, "head_timeout": 0.05}
    async with (
        sidecar_for(engine.port, tmp_path, **files, **options) as sidecar,
        connected(sidecar, trusting(files["tls_cert"])) as (reader, writer),
    ):
        writer.write(request())
        assert (await read_response(reader)).status == 200
        writer.transport.pause_reading()
        await until(lambda: not sidecar.manager.connections)


async def test_a_renewed_certificate_is_for_new_connections_and_cuts_none(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    go_on = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
        await go_on.wait()
        writer.write(fake.chunk(fake.DONE) + b"0\r\n\r\n")

    engine.answer = answer
    old = trusting(files["tls_cert"])
    async with (
        sidecar_for(engine.port, tmp_path, **files) as sidecar,
        connected(sidecar, old) as (reader, writer),
    ):
        writer.write(request("/v1/chat/completions", STREAM))
        await reader.readuntil(b"\r\n\r\n")
        certify(tmp_path, "second")
        assert sidecar.certificate is not None
        await sidecar.certificate.watch.check()
        assert await shown_name(sidecar, trusting(files["tls_cert"])) == "second"
        go_on.set()
        assert b"".join([part async for part in read_chunks(reader)]).endswith(fake.DONE)
        certify(tmp_path, "third")
        sidecar.reload()
        async with asyncio.timeout(10):
            name = ""
            while name != "third":
                with contextlib.suppress(ssl.SSLError):  # the second, until the third is read
                    name = await shown_name(sidecar, trusting(files["tls_cert"]))


async def test_a_pair_that_does_not_fit_leaves_the_old_in_force_and_is_told(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, stranger = certify(other, "other")
    good = files["tls_key"].read_bytes()
    tls = trusting(files["tls_cert"])
    async with sidecar_for(engine.port, tmp_path, **files) as sidecar:
        assert sidecar.certificate is not None
        for wrong in (stranger.read_bytes(), b"", good[:100]):
            files["tls_key"].write_bytes(wrong)
            await sidecar.certificate.watch.check()
            assert await shown_name(sidecar, tls) == "first"
            status, text = await admin(sidecar, "/readyz")
            assert (status, json.loads(text)["status"]) == (200, "degraded")
            assert f"--tls-cert {files['tls_cert']}" in text
        _, metrics = await admin(sidecar, "/metrics")
        files["tls_key"].write_bytes(good)
        await sidecar.certificate.watch.check()
        _, text = await admin(sidecar, "/readyz")
        _, repaired = await admin(sidecar, "/metrics")
    assert "the old one stays in force" in caplog.text
    assert 'tokenpool_certificate_current{pool="chat"} 0.0' in metrics
    assert 'tokenpool_certificate_current{pool="chat"} 1.0' in repaired
    assert json.loads(text)["status"] == "ready"


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_without_end_counts_and_is_bounded(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path], said: bytes, failures: list[dict[str, Any]]
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, **files, tls_handshake_timeout=0.2) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        writer.write(said)
        await until(lambda: len(sidecar.manager.connections) == 1)
        assert await reader.read() == b""
        await until(lambda: not sidecar.manager.connections)
        _, metrics = await admin(sidecar, "/metrics")
    assert 'tokenpool_handshakes_failed_total{pool="chat"} 1.0' in metrics
    assert failures == []


@pytest.mark.parametrize("said", [request(), b"\x00" * 100, b"\x16\x03\x01\x00\x05hello"])
async def test_a_connection_without_tls_is_closed_without_an_answer(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path], said: bytes, failures: list[dict[str, Any]]
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, **files) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        writer.write(said)
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read()
        await until(lambda: not sidecar.manager.connections)
        assert await shown_name(sidecar, trusting(files["tls_cert"])) == "first"
    assert failures == []
    assert engine.received == []


async def test_a_client_that_disconnects_in_the_handshake_is_not_counted(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path], failures: list[dict[str, Any]]
) -> None:
    async with sidecar_for(engine.port, tmp_path, **files) as sidecar:
        for ends in ("close", "abort"):
            async with connected(sidecar) as (_, writer):
                writer.write(b"\x16\x03\x01\x02\x00\x01")
                await until(lambda: len(sidecar.manager.connections) == 1)
                getattr(writer.transport, ends)()
                await until(lambda: not sidecar.manager.connections)
    assert failures == []


async def test_draining_does_not_wait_for_handshakes(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path], failures: list[dict[str, Any]]
) -> None:
    async with sidecar_for(engine.port, tmp_path, **files) as sidecar, connected(sidecar) as (reader, _):
        await until(lambda: len(sidecar.manager.connections) == 1)
        async with asyncio.timeout(1):
            await sidecar.stop()
            assert await reader.read() == b""
    assert failures == []


async def test_beyond_the_most_connections_there_is_no_handshake(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    engine.answer = held = fake.Held()
    tls = trusting(files["tls_cert"])
    async with sidecar_for(engine.port, tmp_path, **files, max_connections=1) as sidecar:
        busy = asyncio.ensure_future(ask(sidecar, request(), tls=tls))
        await until(lambda: bool(engine.received))
        with pytest.raises(ConnectionError):
            await shown_name(sidecar, tls)
        assert len(sidecar.manager.connections) == 1
        held.go.set()
        assert (await busy).status == 200


async def test_tls_before_1_2_is_refused(engine: FakeEngine, tmp_path: Path, files: dict[str, Path]) -> None:
    old = trusting(files["tls_cert"])
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with sidecar_for(engine.port, tmp_path, **files) as sidecar:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown_name(sidecar, old)


async def test_a_slow_reader_over_tls_holds_the_engine_back(
    engine: FakeEngine, tmp_path: Path, files: dict[str, Path]
) -> None:
    sent = 0

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(fake.STREAM_HEAD)
        for _ in range(1000):
            writer.write(fake.chunk(b"data: " + b"x" * 60_000 + b"\n\n"))
            sent += 1
            await writer.drain()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, write_timeout=0.2, **files) as sidecar:
        async with connected(sidecar, trusting(files["tls_cert"])) as (_, writer):
            writer.transport.pause_reading()
            writer.write(request("/v1/chat/completions", STREAM))
            # A client that never reads is disconnected; 60 MB are never buffered.
            await until(lambda: sidecar.telemetry.outcomes("g") == {"client_gone": 1})
            assert sent < 500
        assert is_whole(sidecar)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--tls-cert a", "--tls-cert is given without --tls-key"),
        ("--tls-key a", "--tls-key is given without --tls-cert"),
        ("--tls-handshake-timeout 0", "--tls-handshake-timeout: '0' is not a number above 0"),
    ],
)
def test_wrong_options_are_named(arguments: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(f"--upstream http://127.0.0.1:1 {arguments}")


async def test_certificate_files_that_cannot_be_read_are_named(engine: FakeEngine, tmp_path: Path) -> None:
    options = {"tls_cert": tmp_path / "no.crt", "tls_key": tmp_path / "no.key"}
    with pytest.raises(SettingsError, match=r"--tls-cert .*no\.crt and --tls-key .*no\.key cannot be loaded"):
        async with sidecar_for(engine.port, tmp_path, **options):
            pass
