"""``tokenpool keys`` against the API of a coordinator."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from cli.__main__ import main
from cli.keys import ROWS
from coordinator.credentials.administrators import Administrators
from coordinator.credentials.api import CredentialApi
from coordinator.credentials.database import SqlCredentials, StoredCredential
from coordinator.credentials.keeper import Keeper
from coordinator.usage.database import database
from tests.fakes.memory_store import MemoryStore
from tokenpool.credentials import CredentialRecord

TOKEN = "0123456789abcdef-alice"
NOW = 1_700_000_000.0


class Leader:
    """A pool with one entitlement."""

    def __init__(self) -> None:
        self.store = MemoryStore(1.5, lambda: NOW)
        self.epoch = 1

    def has(self, entitlement: str) -> bool:
        return entitlement == "a"


class Command:
    """Runs the command line against one coordinator."""

    def __init__(self, url: str, stored: SqlCredentials, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self.stored = stored
        self._capsys = capsys
        self.failures: list[int] = []
        """The statuses with which the next requests are answered."""

    async def __call__(self, action: str, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Returns standard output and standard error."""
        self._capsys.readouterr()
        command = ["keys", action, "--url", self.url, *arguments]
        assert await asyncio.to_thread(main, command) == status
        said = self._capsys.readouterr()
        return said.out, said.err


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPOOL_TOKEN", TOKEN)


@pytest_asyncio.fixture
async def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Command]:
    (tmp_path / "tokens").write_text(f"alice {TOKEN}\n")
    stored, leader = SqlCredentials(database(str(tmp_path / "usage.db"))), Leader()
    keeper = Keeper(lambda: {"chat": leader}, stored, lambda: NOW, lambda: NOW)
    command = Command("", stored, capsys)

    @web.middleware
    async def failing(request: web.Request, handler: object) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)  # type: ignore[operator]
        return web.Response(status=command.failures.pop(0)) if command.failures else response

    application = web.Application(middlewares=[failing])
    CredentialApi(keeper, Administrators(tmp_path / "tokens"), lambda: NOW).add_to(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    command.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield command
    await runner.cleanup()
    await stored.close()


async def rows(keys: Command, action: str, *arguments: str) -> list[dict[str, object]]:
    out, _ = await keys(action, "--json", *arguments)
    found: list[dict[str, object]] = json.loads(out)
    return found


async def test_an_issued_key_is_printed_alone(keys: Command) -> None:
    arguments = ("--id", "ci", "--expires", "90d", "--concurrency", "2", "--note", "ci jobs")
    out, err = await keys("issue", "a", *arguments)

    assert "key ci of a, valid until 2024-02-12T22:13:20.000Z" in err
    [made] = await rows(keys, "list")
    assert made["sha256"] == hashlib.sha256(out.strip().encode()).hexdigest()
    assert (made["concurrency"], made["note"], made["created_by"]) == (2, "ci jobs", "alice")
    table, _ = await keys("list", "--state", "active", "--entitlement", "a", "--pool", "chat")
    assert table.splitlines()[1].split()[:3] == ["ci", "a", "active"]
    assert await rows(keys, "list", "--state", "revoked") == []


async def test_a_key_is_rotated_and_revoked(keys: Command) -> None:
    await keys("issue", "a", "--id", "old")
    out, _ = await keys("rotate", "old", "--id", "new", "--overlap", "1h", "--json")
    assert json.loads(out)["key"].startswith("tp_")
    out, _ = await keys("revoke", "new")
    assert out == "key new of a is revoked since 2023-11-14T22:13:20.000Z\n"

    found = {each["id"]: (each["state"], each["expires_at"]) for each in await rows(keys, "list")}
    assert found == {"old": ("active", "2023-11-14T23:13:20.000Z"), "new": ("revoked", None)}
    changes = [(each["credential"], each["change"]) for each in await rows(keys, "changes")]
    assert sorted(changes) == [("new", "issued"), ("new", "revoked"), ("old", "issued"), ("old", "rotated")]
    table, _ = await keys("changes")
    assert table.splitlines()[0].split() == ["time", "administrator", "change", "id", "entitlement", "pool"]


async def test_a_request_whose_answer_is_lost_is_repeated(keys: Command) -> None:
    keys.failures = [503]
    out, _ = await keys("issue", "a", "--id", "k", "--expires", "2030-01-01T00:00:00Z")

    [made] = await rows(keys, "list")
    assert made["sha256"] == hashlib.sha256(out.strip().encode()).hexdigest()
    keys.failures = [503, 503]
    _, err = await keys("revoke", "k", status=2)
    assert "answers 503" in err


async def test_long_lists_are_read_in_pages(keys: Command) -> None:
    names = [f"k{number:04}" for number in range(2 * ROWS + 1)]
    records = [
        CredentialRecord(id=each, entitlement="a", digest=each.encode(), created_at=NOW) for each in names
    ]
    await keys.stored.write([StoredCredential("chat", 7, each) for each in records])

    assert [each["id"] for each in await rows(keys, "list")] == names
    assert [each["credential"] for each in await rows(keys, "changes")] == names


async def test_failures_are_explained(keys: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = await keys("issue", "z", status=2)
    assert "there is no entitlement 'z'" in err
    _, err = await keys("revoke", "none", status=2)
    assert "there is no credential 'none'" in err
    _, err = await keys("issue", "a", "--expires", "soon", status=2)
    assert "expires_at is 'soon'" in err
    (tmp_path / "wrong").write_text("someone-elses-token")
    _, err = await keys("list", "--token-file", str(tmp_path / "wrong"), status=2)
    assert "send an administrator's token" in err
    out, _ = await keys("list", "--token-file", str(tmp_path / "tokens"))
    assert out.startswith("id")
    monkeypatch.delenv("TOKENPOOL_TOKEN")
    _, err = await keys("list", status=2)
    assert "give --token-file, or set TOKENPOOL_TOKEN" in err


@pytest.mark.parametrize("text", ["1", "h", "1w", "-1h", "1.5h"])
def test_a_wrong_overlap_is_explained(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "rotate", "old", "--overlap", text])
    assert "--overlap" in capsys.readouterr().err
