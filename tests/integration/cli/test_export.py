"""``tokenpool export``: each record reaches the webhook or the file at least once, with its own id."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from cli import export
from cli.__main__ import main
from coordinator.usage.pages import SETTLED_S, UsagePages
from tests.fakes.usage_store import MemoryUsageStore
from tests.support.usage import NOW, november
from tokenpool.usage.record import UsageRecord


@dataclass
class Webhook:
    """Takes batches, after the answers that a test says."""

    answers: list[int] = field(default_factory=list)
    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def post(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        status = self.answers.pop(0) if self.answers else 204
        if status < 300:
            assert request.content_type == "application/cloudevents-batch+json"
            self.batches.append(await request.json())
        return web.Response(status=status)

    @property
    def ids(self) -> list[str]:
        return [event["id"] for batch in self.batches for event in batch]


@dataclass
class World:
    """A coordinator's pages, and a webhook, in one server."""

    store: MemoryUsageStore
    webhook: Webhook
    now: float = NOW
    url: str = ""

    async def run(self, *arguments: str, status: int = 0) -> None:
        assert await asyncio.to_thread(main, ["export", "--url", self.url, *arguments]) == status


@asynccontextmanager
async def world(records: Sequence[UsageRecord] = ()) -> AsyncIterator[World]:
    made = World(MemoryUsageStore(), Webhook())
    await made.store.add(list(records) or november())
    application = web.Application()
    UsagePages(lambda: made.store, dict, lambda: made.now).add_to(application)
    application.router.add_post("/hook", made.webhook.post)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "FIRST_PAUSE_S", 0.0)


async def test_a_webhook_gets_the_records_of_the_period_as_events() -> None:
    async with world() as made:
        await made.run("--to", f"{made.url}/hook", "--period", "this-month")

    assert made.webhook.ids == ["r1", "r2", "r3"]
    first = made.webhook.batches[0][0]
    assert (first["specversion"], first["type"], first["subject"]) == ("1.0", "io.tokenpool.usage.v1", "acme")
    assert (first["source"], first["time"]) == ("/tokenpool/pools/chat", "2026-11-05T10:00:00Z")
    assert first["data"]["output_tokens"] == 500_000


async def test_without_a_period_it_is_yesterday(capsys: pytest.CaptureFixture[str]) -> None:
    async with world([replace(november()[0], time=NOW - 86400), november()[1]]) as made:
        await made.run("--to", f"{made.url}/hook", "--json")

    assert made.webhook.ids == ["r1"]
    assert json.loads(capsys.readouterr().out)["records"] == 1


async def test_headers_are_sent_and_may_be_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer secret\n")
    async with world() as made:
        await made.run(
            *("--to", f"{made.url}/hook", "--period", "this-month"),
            *("--header", f"authorization: @{tmp_path / 'token'}", "--header", "x-tenant: a: b"),
        )

    assert made.webhook.headers[0]["authorization"] == "Bearer secret"
    assert made.webhook.headers[0]["x-tenant"] == "a: b"


async def test_a_batch_that_is_not_taken_is_sent_again() -> None:
    async with world() as made:
        made.webhook.answers = [503, 429, 500]
        await made.run("--to", f"{made.url}/hook", "--period", "this-month")

    assert made.webhook.ids == ["r1", "r2", "r3"]


async def test_a_refusal_ends_the_run_with_the_number_that_was_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "BATCH", 2)
    async with world() as made:
        made.webhook.answers = [200, 403]
        await made.run("--to", f"{made.url}/hook", "--period", "this-month", status=2)

    error = capsys.readouterr().err
    assert "/hook answers 403" in error
    assert "2 records were taken; run the command again" in error


async def test_a_webhook_that_stays_down_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    async with world() as made:
        made.webhook.answers = [500] * export.ATTEMPTS
        await made.run("--to", f"{made.url}/hook", "--period", "this-month", status=2)

    assert made.webhook.answers == []
    assert "0 records were taken" in capsys.readouterr().err


async def test_a_file_is_a_batch_of_events(tmp_path: Path) -> None:
    target = tmp_path / "usage.json"
    async with world() as made:
        await made.run("--to", str(target), "--period", "this-month")
        await made.run("--to", str(tmp_path / "empty.json"), "--period", "today")

    assert [event["id"] for event in json.loads(target.read_text())] == ["r1", "r2", "r3"]
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    assert not list(tmp_path.glob("*.part"))


async def test_a_device_is_written_and_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    async with world() as made:
        await made.run("--to", str(link), "--period", "this-month")

    assert link.is_symlink()
    assert len(json.loads(target.read_text())) == 3
    said = capsys.readouterr()
    assert "3 records exported" in said.err  # the output may be the device
    assert not said.out


async def test_a_header_that_http_forbids_is_explained_without_its_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with world() as made:
        given = ("--to", f"{made.url}/hook", "--period", "this-month")
        await made.run(*given, "--header", "authorization: Bearer secret\r\nx", status=2)

    said = capsys.readouterr().err
    assert "correct the token or --header" in said
    assert "secret" not in said


async def test_simulate_reads_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, pool = tmp_path / "usage.csv", tmp_path / "pool.yaml"
    pool.write_text(
        "pools:\n- {name: chat, models: [llama], replica: {tokens_per_second: 1000, concurrency: 4}}\n"
        "entitlements:\n- {name: acme, pool: chat, tier: elastic}\n- {name: beta, pool: chat, tier: spot}\n"
    )
    records = [replace(each, input_tokens=100, cached_tokens=0, output_tokens=10) for each in november()]
    async with world(records) as made:
        await made.run("--to", str(target), "--period", "this-month", "--format", "csv")

    with target.open() as lines:
        assert [row["id"] for row in csv.DictReader(lines)] == ["r1", "r2", "r3"]
    capsys.readouterr()
    # A quiet day takes seconds, because leases are renewed: only the first requests are replayed.
    target.write_text("".join(target.read_text().splitlines(keepends=True)[:2]))
    assert await asyncio.to_thread(main, ["simulate", str(pool), "--records", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == 0


async def test_simulate_reads_a_period_from_the_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        "pools:\n- {name: chat, models: [llama], replica: {tokens_per_second: 1000, concurrency: 4}}\n"
        "entitlements:\n- {name: acme, pool: chat, tier: elastic}\n"
    )
    records = [
        replace(
            november()[0],
            id=f"r{number}",
            time=NOW - 86400 + number,
            input_tokens=100,
            cached_tokens=0,
            output_tokens=10,
        )
        for number in range(5)
    ]
    async with world(records) as made:
        given = ["simulate", str(pool), "--url", made.url]
        assert await asyncio.to_thread(main, [*given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["requests"] == 5
        assert await asyncio.to_thread(main, [*given, "--period", "last-month"]) == 2
        assert "no request for pool 'chat'" in capsys.readouterr().err
        assert await asyncio.to_thread(main, [*given, "--records", "f", "--period", "today"]) == 2
        assert "give no period with it" in capsys.readouterr().err


async def test_a_state_finds_late_records_and_repeats_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with world([november()[2]]) as made:
        made.store.stored_at = {"r3": NOW - 1000}
        given = ("--to", f"{made.url}/hook", "--state", str(state))
        await made.run(*given)
        assert made.webhook.ids == ["r3"]

        made.store.now = made.now = NOW + 1000
        await made.store.add([november()[0]])  # settled days ago
        await made.run(*given)
        assert made.webhook.ids == ["r3"]  # a transaction that began before may still end

        made.now += SETTLED_S + 1
        await made.run(*given)
        await made.run(*given)
    assert made.webhook.ids == ["r3", "r1"]


async def test_a_failed_run_leaves_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with world() as made:
        made.webhook.answers = [403]
        await made.run("--to", f"{made.url}/hook", "--state", str(state), status=2)
        assert not state.exists()
        await made.run("--to", f"{made.url}/hook", "--state", str(state))

    assert sorted(made.webhook.ids) == ["r1", "r2", "r3", "r4"]


async def test_many_records_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.usage_store.RECORDS_AT_ONCE", 3)
    records = [replace(november()[0], id=f"r{number:03}") for number in range(250)]
    async with world(records) as made:
        await made.run("--to", f"{made.url}/hook", "--period", "this-month")

    assert made.webhook.ids == [each.id for each in records]
    assert [len(batch) for batch in made.webhook.batches] == [100, 100, 50]


async def test_an_answer_that_ends_early_is_no_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.fakes.usage_store.RECORDS_AT_ONCE", 1)
    async with world() as made:
        made.store.breaks_after = 2
        await made.run("--to", str(tmp_path / "usage.json"), "--period", "this-month", status=2)

    assert "run the command again" in capsys.readouterr().err
    assert not (tmp_path / "usage.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "http://h/x", "--format", "csv"], "--format csv is for files"),
        (["--to", "http://user@h/x"], "is not http://HOST/PATH"),
        (["--to", "http://h:70000/x"], "is not http://HOST/PATH"),
        (["--to", "http://[::1/x"], "is not http://HOST/PATH"),
        (["--to", "http://h/x", "--header", "nothing"], "has no colon"),
        (["--to", "f", "--state", "s", "--period", "today"], "give no period"),
    ],
)
def test_a_wrong_option_is_explained(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 2

    assert words in capsys.readouterr().err


def test_a_foreign_state_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_text("{}")

    assert main(["export", "--to", "f", "--state", str(tmp_path / "s")]) == 2

    assert "not written by 'tokenpool export'" in capsys.readouterr().err
