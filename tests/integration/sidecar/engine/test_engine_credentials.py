"""The engine's key and TLS files: they change while requests are served."""

from __future__ import annotations

from pathlib import Path

from runtime.options import Origin
from sidecar.app import Sidecar
from tests.certificates import certify, serving
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import admin, ask, connected, read_response, request, sidecar_for, until


async def check(sidecar: Sidecar) -> None:
    for files in sidecar.credentials.files:
        await files.watch.check()


async def test_a_new_key_is_sent_at_once_also_with_a_cached_head_and_by_polls(
    engine: FakeEngine, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    async with (
        sidecar_for(engine.port, tmp_path, upstream_key_file=key) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        for number, content in enumerate(("first", "first", "second", "second")):
            key.write_text(content)
            await check(sidecar)
            writer.write(request())
            assert (await read_response(reader)).status == 200
            assert engine.received[number].headers["authorization"] == f"Bearer {content}"
        await until(lambda: "Bearer second" in engine.polled_with)


async def test_an_unusable_key_leaves_the_old_one_and_degrades(engine: FakeEngine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    async with sidecar_for(engine.port, tmp_path, upstream_key_file=key) as sidecar:
        key.write_text("two\nlines\n")
        await check(sidecar)
        assert (await ask(sidecar, request())).status == 200
        assert engine.received[0].headers["authorization"] == "Bearer first"
        status, text = await admin(sidecar, "/readyz")
        assert status == 200
        assert "degraded" in text
        assert f"--upstream-key-file {key} holds more than one line" in text
        assert (
            'tokenpool_credentials_current{of="engine",pool="chat"} 0.0'
            in (await admin(sidecar, "/metrics"))[1]
        )
        key.write_text("second")
        await check(sidecar)
        assert (
            'tokenpool_credentials_current{of="engine",pool="chat"} 1.0'
            in (await admin(sidecar, "/metrics"))[1]
        )


async def test_a_renewed_authority_is_used_for_new_connections(tmp_path: Path) -> None:
    """The engine's certificate and the authority to trust change together."""
    old, new, authority = tmp_path / "old", tmp_path / "new", tmp_path / "ca.pem"
    for folder in (old, new):
        folder.mkdir()
    first, second = certify(old, "engine"), certify(new, "engine")
    authority.write_bytes(first[0].read_bytes())
    context = serving(*first)
    engine = FakeEngine(tls=context)
    await engine.start()
    options = {
        "upstream": Origin("127.0.0.1", engine.port, tls=True),
        "upstream_tls_ca": authority,
        "upstream_tls_name": "engine",
    }
    try:
        async with sidecar_for(engine.port, tmp_path, **options) as sidecar:
            assert (await ask(sidecar, request())).status == 200
            authority.write_text("no certificate")
            await check(sidecar)
            assert (await ask(sidecar, request())).status == 200
            context.load_cert_chain(*second)
            authority.write_bytes(second[0].read_bytes())
            await check(sidecar)
            sidecar._upstream.close()  # the engine's restart
            assert (await ask(sidecar, request())).status == 200
            await until(lambda: not sidecar.admin.problems())
    finally:
        await engine.stop()
