"""``tokenpool keys`` against the API of a coordinator with a real lease store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from cli import keys
from cli.__main__ import main
from coordinator.app import Coordinator
from coordinator.settings import Settings
from runtime.options import Addresses
from toolbox.redis import RedisProcess

TOKEN = "0123456789abcdef-alice"
POOL = """
pools:
  - {name: chat, models: [tiny], replica: {tokens_per_second: 1000, kv_tokens: 1000, concurrency: 4}}
entitlements:
  - {name: search, pool: chat, tier: elastic}
  - {name: batch, pool: chat, tier: spot}
"""


@pytest_asyncio.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "tokens").write_text(f"alice {TOKEN}\n")
    monkeypatch.setenv(keys.TOKEN, TOKEN)
    redis = RedisProcess(tmp_path).start()
    redis.wait_ready(10)
    try:
        coordinator = Coordinator(
            Settings(
                config=tmp_path / "pool.yaml",
                store=redis.url,
                listen=Addresses.of("127.0.0.1", 0),
                usage_store=str(tmp_path / "usage.db"),
                administrator_tokens=tmp_path / "tokens",
            )
        )
        await coordinator.start()
        yield f"http://{coordinator.listens_on}"
        await coordinator.stop()
    finally:
        redis.kill()


async def run(url: str, *arguments: str, status: int = 0) -> None:
    command, *rest = arguments
    assert await asyncio.to_thread(main, ["keys", command, "--url", url, *rest]) == status


async def shown(url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    await run(url, *arguments, "--json")
    return json.loads(capsys.readouterr().out)


async def test_a_key_is_issued_and_shown_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = await shown(url, capsys, "issue", "search", "--id", "k1", "--expires-in", "90d", "--note", "blue")

    assert made["key"].startswith("tp_")
    assert made["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert (made["id"], made["entitlement"], made["created_by"], made["note"]) == (
        "k1",
        "search",
        "alice",
        "blue",
    )
    later = await shown(url, capsys, "show", "k1")
    assert "key" not in later
    assert later["state"] == "active"


async def test_the_key_may_go_to_a_file(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "search.key"
    await run(url, "issue", "search", "--key-file", str(target))

    assert target.read_text().startswith("tp_")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text().strip() not in capsys.readouterr().out
    await run(url, "issue", "search", "--key-file", str(target), status=2)
    assert "exists; name a new file" in capsys.readouterr().err


async def test_a_key_is_rotated_with_an_overlap(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await shown(url, capsys, "issue", "search", "--id", "old", "--concurrency", "2")

    new = await shown(url, capsys, "rotate", "old", "--new-id", "new", "--overlap", "1h")

    assert (new["replaces"], new["concurrency"], new["state"]) == ("old", 2, "active")
    old = await shown(url, capsys, "show", "old")
    assert (old["state"], old["expires_at"] is not None) == ("active", True)


async def test_a_revoked_key_stays_in_the_list(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await shown(url, capsys, "issue", "search", "--id", "a")
    await shown(url, capsys, "issue", "batch", "--id", "b")
    await run(url, "revoke", "a")
    capsys.readouterr()

    await run(url, "list")

    heads, first, second = capsys.readouterr().out.splitlines()
    assert heads.split()[:3] == ["id", "entitlement", "state"]
    assert first.split()[:3] == ["a", "search", "revoked"]
    assert second.split()[:3] == ["b", "batch", "active"]
    active = await shown(url, capsys, "list", "--state", "active")
    assert [each["id"] for each in active] == ["b"]
    assert await shown(url, capsys, "list", "--entitlement", "search", "--state", "active") == []


async def test_all_changes_are_listed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await shown(url, capsys, "issue", "search", "--id", "a")
    await run(url, "revoke", "a")
    capsys.readouterr()

    await run(url, "changes")

    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1:] for line in lines] == [
        ["issued", "a", "search", "chat", "alice"],
        ["revoked", "a", "search", "chat", "alice"],
    ]


async def test_nothing_is_said_to_be_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await run(url, "list")

    assert capsys.readouterr().out == "none\n"


async def test_the_coordinators_words_are_passed_on(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await run(url, "show", "none", status=2)
    await run(url, "issue", "nobody", status=2)

    errors = capsys.readouterr().err
    assert "none" in errors
    assert "nobody" in errors


async def test_a_wrong_token_is_explained(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong").write_text("bob wrong-token\n")

    await run(url, "list", "--token-file", str(tmp_path / "wrong"), status=2)

    assert "send an administrator's token" in capsys.readouterr().err


async def test_a_token_file_of_a_coordinator_may_be_used(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.TOKEN)

    await run(url, "list", "--token-file", str(tmp_path / "tokens"))


def test_without_a_token_the_option_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(keys.TOKEN, raising=False)

    assert main(["keys", "list"]) == 2

    assert "give --token-file, or set TOKENPOOL_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize("time", ["90", "d", "-1d", "1w"])
def test_a_time_needs_its_unit(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "issue", "search", f"--expires-in={time}"])

    assert "is not a time such as 90d" in capsys.readouterr().err


async def test_a_change_is_sent_again_with_the_same_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A coordinator may answer 503 for a moment. The repeated request must not make a second key."""
    monkeypatch.setattr(keys, "PAUSE_S", 0.0)
    monkeypatch.setenv(keys.TOKEN, TOKEN)
    seen: list[tuple[str, Any]] = []

    async def put(request: web.Request) -> web.Response:
        seen.append((request.path, await request.json()))
        if len(seen) < 3:
            return web.json_response({"error": "send it again"}, status=503)
        return web.json_response({"id": "k", "entitlement": "search"}, status=201)

    application = web.Application()
    application.router.add_put("/v1/credentials/{id}", put)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        await run(f"http://127.0.0.1:{runner.addresses[0][1]}", "issue", "search", "--json")
    finally:
        await runner.cleanup()

    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    key = json.loads(capsys.readouterr().out)["key"]
    assert seen[0][1]["sha256"] == hashlib.sha256(key.encode()).hexdigest()


async def test_a_key_whose_answer_was_lost_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keys, "PAUSE_S", 0.0)
    monkeypatch.setenv(keys.TOKEN, TOKEN)
    seen: list[str] = []

    async def put(request: web.Request) -> web.Response:
        seen.append(request.path)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    application = web.Application()
    application.router.add_put("/v1/credentials/{id}", put)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        await run(f"http://127.0.0.1:{runner.addresses[0][1]}", "issue", "search", "--id", "ci", status=2)
    finally:
        await runner.cleanup()

    assert seen == ["/v1/credentials/ci"] * keys.ATTEMPTS
    assert "but it is lost; run tokenpool keys revoke ci" in capsys.readouterr().err
