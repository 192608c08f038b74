"""Runs against servers with TLS: their authorities, the client's certificate, and unusable files."""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from pathlib import Path

import pytest

from loadgen.fields import ScenarioError
from loadgen.probe import ServerUnusable, probe
from loadgen.progress import Progress
from loadgen.records import Outcome, Run, load
from loadgen.run import Order, Runner
from loadgen.scenario import Constant
from loadgen.tls import Tls
from tests.certificates import certify, openssl, serving
from tests.fakes.scripted_engine import FakeEngine, Received, unary
from tests.support.loadgen_builders import scenario, tenant

PAGE = {"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": 4}}
WORLD = scenario(tenant(process=Constant(20.0)), duration_s=0.3, drain_s=5.0, timeout_s=5.0, stream=False)


async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(unary(PAGE))


async def measured(out: Path, engine: FakeEngine, tls: Tls) -> Run:
    url = f"https://127.0.0.1:{engine.port}"
    order = Order(WORLD, [url], out, "test", states=[f"{url}/metrics"], tls=tls)
    await Runner(order, Progress(io.StringIO()), time.monotonic).run()
    return load(out)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return certify(tmp_path, "server")


async def served(files: tuple[Path, Path], *, asks: bool = False) -> FakeEngine:
    """A server with TLS; with ``asks``, it accepts clients with its own certificate only."""
    context = serving(*files)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files[0])
    engine = FakeEngine(answer=answer, tls=context)
    await engine.start()
    return engine


async def test_a_trusted_server_is_measured(tmp_path: Path, files: tuple[Path, Path]) -> None:
    engine = await served(files)
    run = await measured(tmp_path, engine, Tls(ca=files[0]))
    await engine.stop()
    assert {attempt.outcome for attempt in run.attempts} == {Outcome.SERVED}
    assert run.samples[0].kind == "engine"


async def test_an_unknown_authority_is_refused_unless_the_user_accepts_it(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    engine = await served(files)
    refused = await measured(tmp_path, engine, Tls())
    accepted = await measured(tmp_path, engine, Tls(insecure=True))
    await engine.stop()
    assert {(a.outcome, a.reason) for a in refused.attempts} == {(Outcome.BROKEN, "TLS error")}
    assert {a.outcome for a in accepted.attempts} == {Outcome.SERVED}


async def test_the_clients_certificate_is_shown(tmp_path: Path, files: tuple[Path, Path]) -> None:
    engine = await served(files, asks=True)
    without = await measured(tmp_path, engine, Tls(ca=files[0]))
    shown = await measured(tmp_path, engine, Tls(files[0], *files))
    await engine.stop()
    assert {attempt.outcome for attempt in without.attempts} == {Outcome.BROKEN}
    assert {attempt.outcome for attempt in shown.attempts} == {Outcome.SERVED}


async def test_the_probe_uses_the_same_authorities(files: tuple[Path, Path]) -> None:
    engine = await served(files)
    url = f"https://127.0.0.1:{engine.port}"
    await probe(WORLD, [url], tls=Tls(ca=files[0]).context())
    with pytest.raises(ServerUnusable, match="--tls-ca"):
        await probe(WORLD, [url], tls=Tls().context())
    await engine.stop()


def test_unusable_files_are_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    cert, key = files
    encrypted = tmp_path / "encrypted.key"
    openssl("ec", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(encrypted))
    none = tmp_path / "none.pem"
    for tls, error in (
        (Tls(ca=none), f"--tls-ca {none} cannot be used"),
        (Tls(ca=key), f"--tls-ca {key} cannot be used"),
        (Tls(cert=cert), "--tls-cert and --tls-key belong together"),
        (Tls(key=key), "--tls-cert and --tls-key belong together"),
        (Tls(cert=cert, key=none), f"--tls-key {none} cannot be used"),
        (Tls(cert=cert, key=encrypted), "of its key without a password"),
        (Tls(ca=cert, insecure=True), "--tls-ca has no effect with --tls-insecure"),
    ):
        with pytest.raises(ScenarioError) as raised:
            tls.context()
        assert error in str(raised.value)
        assert "\n" not in str(raised.value)


def test_the_default_is_that_of_the_library() -> None:
    assert Tls().context() is True
