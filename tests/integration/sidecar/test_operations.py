"""Operations: the engine watcher, reloads of the pool file, the admin port, the process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric

from runtime.logs import JsonFormatter
from sidecar.app import raise_open_files
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import POOL, admin, ask, is_whole, read_response, request, sidecar_for, until
from toolbox.ports import free_port


async def test_the_state_page_shows_the_data_of_decisions(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request())
        status, text = await admin(sidecar, "/debug/state")
    state = json.loads(text)
    entry = state["entitlements"]["g"]
    assert status == 200
    assert state["pool"] == "chat"
    assert state["capacity"] == {"tokens_per_second": 100000, "kv_tokens": 65536, "concurrency": 8}
    assert state["engine"]["up"] is True
    assert state["engine"]["context_window"] == 2048
    assert entry["tier"] == "guaranteed"
    assert set(entry["limit"]) == set(entry["demand"]) == {"tokens_per_second", "kv_tokens", "concurrency"}
    assert entry["in_use"] == {"kv_tokens": 0, "concurrency": 0}
    assert isinstance(entry["level"], float)
    assert entry["debt"] == 0
    learned = {
        "tokens_per_byte": 0.25,
        "tokens_per_prompt": 0.0,
        "expected_output": 256,
        "coverage": 1.0,
        "is_certified": False,
    }
    assert set(entry["learned"]["overall"]) == set(learned)
    assert entry["learned"]["targets"] == [
        {"route": "/v1/completions", "model": "tiny", **entry["learned"]["overall"]}
    ]
    assert entry["learned"]["prefixes"] == 0
    assert state["entitlements"]["e"]["learned"] == {
        "overall": learned,
        "targets": [],
        "prefixes": 0,
        "experts": {"known": 0, "certified": 0, "candidates": 0},
        "coverage": 1.0,
        "reserved_ratio": 0.0,
    }


async def test_metrics_count_and_measure(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = fake.answer_stream
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        await ask(sidecar, request("/v1/chat/completions", body))
        await ask(sidecar, request(key="wrong"))
        _, text = await admin(sidecar, "/metrics")
    for line in (
        'tokenpool_requests_total{entitlement="g",pool="chat",outcome="finished",tier="guaranteed"} 1.0',
        'tokenpool_requests_total{entitlement="none",pool="chat",outcome="unknown_key",tier="none"} 1.0',
        'tokenpool_tokens_total{entitlement="g",pool="chat",kind="input"} 10.0',
        'tokenpool_tokens_total{entitlement="g",pool="chat",kind="output"} 5.0',
        'tokenpool_reserved{dimension="concurrency",entitlement="g",pool="chat"} 0.0',
        'tokenpool_limit{dimension="concurrency",entitlement="g",pool="chat"} 8.0',
        'tokenpool_debt{entitlement="g",pool="chat"} 0.0',
        'tokenpool_time_to_first_token_seconds_count{entitlement="g",pool="chat"} 1.0',
        'tokenpool_overhead_seconds_count{pool="chat"} 1.0',
        'tokenpool_estimate_ratio_count{entitlement="g",pool="chat",kind="input"} 1.0',
        'tokenpool_estimate_ratio_count{entitlement="g",pool="chat",kind="output"} 1.0',
        'tokenpool_outgrown_reservations_total{entitlement="g",pool="chat"} 0.0',
        'tokenpool_engine_up{pool="chat"} 1.0',
    ):
        assert line in text


async def test_requests_that_outgrow_their_reservation_are_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary(usage={"prompt_tokens": 10, "completion_tokens": 300}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        await ask(sidecar, request("/v1/chat/completions", body))
        _, text = await admin(sidecar, "/metrics")
    assert 'tokenpool_outgrown_reservations_total{entitlement="g",pool="chat"} 1.0' in text
    assert 'tokenpool_estimate_ratio_bucket{entitlement="g",pool="chat",kind="output",le="0.9"} 1.0' in text


async def test_a_prefix_in_the_engines_cache_is_not_charged_until_the_engine_restarts(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        details = {"prompt_tokens_details": {"cached_tokens": 272}}
        usage = {"prompt_tokens": 300, "completion_tokens": 5}
        writer.write(fake.unary({"choices": [], "usage": {**usage, **details}}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for _ in range(2):
            await ask(sidecar, request(body={"model": "tiny", "prompt": "x" * 1200, "max_tokens": 5}))
        pricers = {name: account.pricer for name, account in sidecar.controller.accounts.items()}
        assert {name: pricer.experts.cached_prefixes for name, pricer in pricers.items()} == {
            "g": 1,
            "e": 0,
            "s": 0,
        }
        engine.started_at = 2.0
        await until(lambda: pricers["g"].experts.cached_prefixes == 0)


async def test_an_engine_that_is_down_is_refused_at_once(tmp_path: Path) -> None:
    async with sidecar_for(free_port(), tmp_path, ready=False) as sidecar:
        response = await ask(sidecar, request(), seconds=1)
        ready, why = await admin(sidecar, "/readyz")
        alive, _ = await admin(sidecar, "/healthz")
    assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "engine_down")
    assert response.headers["retry-after"] == "1"
    assert (ready, alive) == (503, 200)
    assert "the engine does not answer" in why


async def test_an_engine_restart_is_noticed(tmp_path: Path) -> None:
    engine = FakeEngine()
    await engine.start()
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await ask(sidecar, request())).status == 200
        await engine.stop()
        assert (await ask(sidecar, request())).status == 503
        await until(lambda: bool(sidecar.admin.problems()))
        returned = FakeEngine(port=engine.port, started_at=2.0)
        await returned.start()
        await until(lambda: not sidecar.admin.problems())
        assert (await ask(sidecar, request())).status == 200
        await until(lambda: sidecar.engine.restarts == 1)  # its metrics page tells, a little later
        assert is_whole(sidecar)
        await returned.stop()


async def test_a_mute_engine_is_stale_then_down(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, poll_timeout=0.02) as sidecar:
        engine.is_mute = True
        await until(lambda: not sidecar.engine.page.is_usable)
        assert (await ask(sidecar, request())).status == 200  # busy with metrics is not dead
        await until(lambda: not sidecar.controller.engine.is_up)
        assert (await ask(sidecar, request())).status == 503
        engine.is_mute = False
        await until(lambda: sidecar.controller.engine.is_up)
        assert (await ask(sidecar, request())).status == 200


async def test_foreign_load_and_the_engines_queue_reduce_the_room_for_spot(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.running, engine.waiting = 8, 1
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await until(lambda: sidecar.controller.engine.room.foreign_sequences == 9)
        spot = await ask(sidecar, request(key="s-key"))
        guaranteed = await ask(sidecar, request())
        engine.running, engine.waiting = 3, 2  # it queues: three is all that it runs
        await until(lambda: sidecar.controller.engine.room.slots == 3)
        queued = await ask(sidecar, request(key="s-key"))
        engine.running = engine.waiting = 0
        await until(lambda: sidecar.controller.engine.room.foreign_sequences == 0)
        free = await ask(sidecar, request(key="s-key"))
    assert (spot.status, spot.headers["x-tokenpool-reason"]) == (429, "engine_full")
    assert "limit of the engine 9, in use 9" in spot.error()["message"]
    assert (guaranteed.status, queued.status, free.status) == (200, 429, 200)


async def test_a_changed_pool_file_is_put_in_force(engine: FakeEngine, tmp_path: Path) -> None:
    gate_opens = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await gate_opens.wait()
        await fake.answer_unary(request, writer)

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        running = asyncio.ensure_future(ask(sidecar, request(key="e-key")))
        await until(lambda: bool(engine.received))
        changed = POOL.replace("[e-key]", "[new-key]").replace("name: s,", "name: t,")
        sidecar.settings.config.write_text(changed)
        await sidecar.pool_file_watcher.check()
        gate_opens.set()
        assert (await running).status == 200  # what ran goes on, and is settled
        assert is_whole(sidecar)
        old = await ask(sidecar, request(key="e-key"))
        new = await ask(sidecar, request(key="new-key"))
        gone = await ask(sidecar, request(key="t-key"))
        _, metrics = await admin(sidecar, "/metrics")
    assert (old.status, new.status, gone.status) == (401, 200, 401)
    assert 'tokenpool_config_reloads_total{pool="chat",result="ok"} 1.0' in metrics


async def test_an_invalid_pool_file_leaves_the_old_in_force(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for text in (
            POOL.replace("tier: spot", "tier: sport"),
            "",
            "{",
            POOL.replace("name: chat", "name: x"),
        ):
            sidecar.settings.config.write_text(text)
            await sidecar.pool_file_watcher.check()
            assert (await ask(sidecar, request())).status == 200
        sidecar.settings.config.unlink()
        await sidecar.pool_file_watcher.check()
        assert (await ask(sidecar, request())).status == 200
        _, metrics = await admin(sidecar, "/metrics")
        sidecar.settings.config.write_text(POOL)
        await sidecar.pool_file_watcher.check()
        assert sidecar.telemetry.config_is_current
    assert 'tokenpool_config_reloads_total{pool="chat",result="invalid"} 5.0' in metrics
    assert 'tokenpool_config_current{pool="chat"} 0.0' in metrics
    assert "did you mean 'spot'?" in caplog.text


async def test_key_files_and_variables_are_read_and_watched(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    monkeypatch.setenv("TEST_TENANT_KEY", "from-env")
    pool = POOL.replace("[e-key]", f"[{{file: {key}}}, {{env: TEST_TENANT_KEY}}]")
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        assert (await ask(sidecar, request(key="first"))).status == 200
        assert (await ask(sidecar, request(key="from-env"))).status == 200
        key.write_text("second-key\n")
        await sidecar.pool_file_watcher.check()
        assert (await ask(sidecar, request(key="first"))).status == 401
        assert (await ask(sidecar, request(key="second-key"))).status == 200
        key.unlink()
        await sidecar.pool_file_watcher.check()
        assert (await ask(sidecar, request(key="second-key"))).status == 200


async def test_the_engine_gets_its_own_key_and_never_a_tenants(engine: FakeEngine, tmp_path: Path) -> None:
    key = tmp_path / "engine-key"
    key.write_text("engine-secret\n")
    async with sidecar_for(engine.port, tmp_path, upstream_key_file=key) as sidecar:
        await ask(sidecar, request())
    assert engine.received[0].headers["authorization"] == "Bearer engine-secret"


async def test_connections_beyond_the_limit_are_refused_with_the_reason(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = fake.Held()
    limits = {"max_connections": 3, "entitlement_share": 1.0}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar:
        busy = []
        for count in range(1, 4):
            busy.append(asyncio.ensure_future(ask(sidecar, request())))
            await until(lambda n=count: len(engine.received) == n)  # type: ignore[misc]
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port)
        refused = await read_response(reader)
        writer.close()
        held.go.set()
        assert [(await each).status for each in busy] == [200] * 3
        await until(lambda: not sidecar.manager.connections)
        assert (await ask(sidecar, request())).status == 200
    assert (refused.status, refused.headers["x-tokenpool-reason"]) == (503, "too_many_connections")


async def test_idle_connections_are_closed(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, idle_timeout=0.05, head_timeout=0.05) as sidecar:
        fresh_reader, fresh = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port)
        writer.write(request())
        assert (await read_response(reader)).status == 200
        assert await asyncio.wait_for(reader.read(), 3) == b""
        assert await asyncio.wait_for(fresh_reader.read(), 3) == b""
        writer.close()
        fresh.close()


def start(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar", *arguments],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "--upstream must be given"),
        (["run", "--upstream", "http://h:1"], "--config must be given"),
        (["run", "--config", "p", "--upstream", "ftp://x"], "--upstream: 'ftp://x' is not http://HOST:PORT"),
        (["run", "--config", "nowhere.yaml", "--upstream", "http://127.0.0.1:1"], "nowhere.yaml"),
        (
            ["run", "--config", "p", "--upstream", "http://h:1", "--listen", "x"],
            "--listen: 'x' is not HOST:PORT",
        ),
        (["run", "--config", "p", "--upstream", "http://h:1", "--tick", "0"], "--tick: '0' is not a number"),
        (
            ["run", "--config", "p", "--upstream", "http://h:1", "--store", "x"],
            "'x' is not a store: give memory",
        ),
        (["check", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], words: str) -> None:
    process = start(arguments)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert words in errors
    assert "Traceback" not in errors


def test_check_explains_a_file_and_names_lines_of_a_bad_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(POOL)
    bad.write_text(POOL.replace("tier: spot", "tire: spot"))
    explained = start(["check", str(good)])
    refused = start(["check", str(bad)])
    text, _ = explained.communicate(timeout=20)
    _, errors = refused.communicate(timeout=20)
    assert (explained.returncode, refused.returncode) == (0, 2)
    assert "guarantee  10000 tokens_per_second, 10000 kv_tokens, 4 concurrency" in text
    assert "bad.yaml:13: entitlements[2].tire is not a known field; did you mean 'tier'?" in errors
    assert "g-key" not in text


async def test_a_process_runs_reloads_and_drains(engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(POOL)
    listen, admin_port = free_port(), free_port()
    environment = {
        "TOKENPOOL_CONFIG": str(file),
        "TOKENPOOL_UPSTREAM": f"http://127.0.0.1:{engine.port}",
        "TOKENPOOL_LISTEN": f"127.0.0.1:{listen}",
        "TOKENPOOL_ADMIN": f"127.0.0.1:{admin_port}",
    }
    process = start(["run"], environment)

    async def status(raw: bytes) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", listen)
        writer.write(raw)
        response = await read_response(reader)
        writer.close()
        return response.status

    async def answers() -> int:
        try:
            return await status(request())
        except OSError:
            return 0

    try:
        async with asyncio.timeout(15):
            while await answers() != 200:
                await asyncio.sleep(0.05)
            file.write_text(POOL.replace("[g-key]", "[other]"))
            process.send_signal(signal.SIGHUP)
            while await answers() != 401:
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {"listening", "draining", "stopped"} <= {line["message"] for line in lines}
    assert "g-key" not in errors


def test_log_lines_are_json() -> None:
    record = logging.LogRecord("a", logging.WARNING, "", 0, "said %s", ("so",), None)
    record.extra_field = 1
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"], line["extra_field"]) == ("warning", "said so", 1)


async def test_each_request_is_logged_if_the_option_is_on_and_never_its_text(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sidecar.access")
    async with sidecar_for(engine.port, tmp_path, log_requests=True) as sidecar:
        await ask(sidecar, request(body={"model": "tiny", "prompt": "hush-hush", "max_tokens": 5}))
        await ask(sidecar, request("/v1/models", method="GET"))
        await ask(sidecar, request(key="wrong-key"))
    lines = [vars(record) for record in caplog.records if record.getMessage() == "request"]
    assert [(line["entitlement"], line["outcome"]) for line in lines] == [
        ("g", "finished"),
        ("g", "finished"),
        (None, "unknown_key"),
    ]
    assert (lines[0]["input_tokens"], lines[0]["output_tokens"]) == (10, 5)
    key_id = hashlib.sha256(b"g-key").hexdigest()[:8]
    assert [line["credential"] for line in lines] == [key_id, key_id, None]
    shown = "".join(JsonFormatter().format(record) for record in caplog.records)
    assert "hush-hush" not in shown
    assert "g-key" not in shown
    assert "wrong-key" not in shown


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_open_files(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Extra:
    """A part of the sidecar with a metric of its own."""

    def metrics(self) -> Iterator[Metric]:
        metric = Metric("extra", "Something.", "gauge")
        metric.add_sample("extra", {"a": 'b"c'}, 2.0)
        yield metric


async def test_metrics_of_other_parts_are_on_the_page(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        sidecar.admin.sources.append(Extra())
        _, page = await admin(sidecar, "/metrics")

    assert 'extra{a="b\\"c",pool="chat"} 2.0' in page
