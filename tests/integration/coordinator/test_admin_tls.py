"""TLS on the admin port of a coordinator, and the command line as its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cli.__main__ import main
from coordinator.app import Coordinator
from coordinator.settings import Settings
from runtime.options import Addresses, SettingsError
from tests.certificates import certify, trusting
from toolbox.redis import RedisProcess

POOL = """
pools:
  - {name: chat, models: [tiny], replica: {tokens_per_second: 1000, kv_tokens: 1000, concurrency: 4}}
entitlements:
  - {name: search, pool: chat, tier: elastic, api_keys: [key]}
"""


def settings(folder: Path, store: str, cert: Path, key: Path) -> Settings:
    (folder / "pool.yaml").write_text(POOL)
    return Settings(
        config=folder / "pool.yaml",
        store=store,
        listen=Addresses.of("127.0.0.1", 0),
        tls_cert=cert,
        tls_key=key,
    )


@pytest_asyncio.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    redis = RedisProcess(tmp_path).start()
    redis.wait_ready(10)
    try:
        made = Coordinator(settings(tmp_path, redis.url, *certify(tmp_path, "coordinator")))
        await made.start()
        yield made
        await made.stop()
    finally:
        redis.kill()


async def test_all_pages_are_served_over_tls(coordinator: Coordinator, tmp_path: Path) -> None:
    address = f"127.0.0.1:{coordinator.listens_on.port}"
    connector = aiohttp.TCPConnector(ssl=trusting(tmp_path / "tls.crt"))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(f"https://{address}/metrics") as response:
            text = await response.text()
        assert response.status == 200
        assert "tokenpool_certificate_current 1.0" in text
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address}/healthz")


async def test_a_new_certificate_is_used_and_a_wrong_one_is_reported(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    certificate = coordinator.certificate
    assert certificate is not None
    before = certificate.not_after
    certify(tmp_path, "coordinator", days=5)
    await certificate.reload()
    assert certificate.not_after != before
    assert coordinator._degraded() == []

    (tmp_path / "tls.key").write_text("no key")
    await certificate.reload()

    [problem] = coordinator._degraded()
    assert "--tls-key" in problem


async def test_the_commands_trust_the_authorities_that_are_named(
    coordinator: Coordinator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["top", "--once", "--url", f"https://127.0.0.1:{coordinator.listens_on.port}"]
    assert await asyncio.to_thread(main, words) == 2
    assert "is not trusted" in (said := capsys.readouterr().err)
    assert "set SSL_CERT_FILE to a PEM file of its authorities" in said

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
    assert await asyncio.to_thread(main, words) == 0
    assert "search" in capsys.readouterr().out


def test_files_that_are_no_certificate_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(SettingsError, match=r"--tls-cert .*x and --tls-key .*x cannot be loaded"):
        Coordinator(settings(tmp_path, "redis://127.0.0.1:1", tmp_path / "x", tmp_path / "x"))
