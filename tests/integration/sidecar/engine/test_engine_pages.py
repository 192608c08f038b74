"""Serving depends on ``/health`` alone: whatever the engine's other pages answer, requests are served.

The rows E1 to E6 are public bug reports; the cases beside them are of the same kind.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import Sidecar
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import Answer, FakeEngine, Received
from tests.support.harness import POOL, admin, ask, is_whole, request, sidecar_for, until

METRICS, MODELS, HEALTH = "/metrics", "/v1/models", "/health"
QUICK = {"poll_timeout": 0.1}


def says(body: bytes, status: str = "200 OK", *lines: str) -> Answer:
    """A page with a length."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *lines]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return answer


def ends(raw: bytes) -> Answer:
    """These bytes, then the connection closes."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    return answer


def goes_on(raw: bytes, part: bytes) -> Answer:
    """These bytes, then a part again and again, as long as anybody reads."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        while not writer.is_closing():
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)

    return answer


def after(seconds: float, then: Answer) -> Answer:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await then(received, writer)

    return answer


async def silence(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def reset(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


PAGE = FakeEngine().metrics().encode()
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
UNUSABLE: dict[str, tuple[Answer, str]] = {
    "500": (says(b"Internal Server Error", "500 Internal Server Error"), "it answers 500"),
    "401": (says(b'{"error":"Unauthorized"}', "401 Unauthorized"), "it answers 401"),
    "403": (says(b"", "403 Forbidden"), "it answers 403"),
    "404": (says(b'{"detail":"Not Found"}', "404 Not Found"), "it answers 404"),
    "200 with an error's page": (says(b"<html>Bad gateway</html>\n"), "it is no metrics page"),
    "204": (says(b"", "204 No Content"), "it answers 204"),
    "a redirect to itself": (says(b"", "307 Temporary Redirect", "location: /metrics"), ""),
    "a redirect to nowhere": (says(b"", "307 Temporary Redirect", "location: http://[::1"), ""),
    "empty": (says(b""), "it is no metrics page"),
    "binary": (says(b"\x00\xff\x80\n" * 999), "it is no metrics page"),
    "JSON": (says(b'{"vllm:num_requests_running": 1}\n'), "it is no metrics page"),
    "of another program": (says(b"python_info 1\n"), "it is no metrics page"),
    "no number": (says(b"vllm:num_requests_running NaN\n"), "it is no metrics page"),
    "cut by its length": (ends(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + PAGE), ""),
    "cut by its end": (ends(b"HTTP/1.1 200 OK\r\n\r\n" + PAGE[:-9]), "it ends in the middle of a line"),
    "cut in a chunk": (ends(CHUNKED + b"%x\r\n" % len(PAGE) + PAGE[:-9]), ""),
    "no HTTP": (ends(b"SSH-2.0-OpenSSH_9.2\r\n"), ""),
    "a broken head": (ends(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), ""),
    "encoded": (
        says(gzip.compress(PAGE), "200 OK", "content-encoding: gzip"),
        "it is encoded (gzip), which was not asked for",
    ),
    "a line without an end": (goes_on(CHUNKED, fake.chunk(b"x" * 9999)), "it has a line of more than 16 KiB"),
    "no end": (goes_on(CHUNKED, fake.chunk(b"x\n" * 400_000)), ""),
    "silent": (silence, "it takes longer than 0.1 s"),
    "silent after its head": (goes_on(CHUNKED, b""), "it takes longer than 0.1 s"),
    "reset": (reset, ""),
    "closed": (ends(b""), ""),
}


async def readiness(sidecar: Sidecar) -> tuple[int, str, str]:
    status, text = await admin(sidecar, "/readyz")
    body = json.loads(text)
    return status, body["status"], " ".join(body["degraded"])


async def of_the_engine(sidecar: Sidecar) -> dict[str, Any]:
    return json.loads((await admin(sidecar, "/debug/state"))[1])["engine"]


async def metric(sidecar: Sidecar, name: str) -> float:
    _, text = await admin(sidecar, "/metrics")
    return next(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


async def serves(sidecar: Sidecar) -> None:
    """Everyone is served: guaranteed, elastic and spot."""
    for key in ("g-key", "e-key", "s-key"):
        response = await ask(sidecar, request(key=key))
        assert (key, response.status) == (key, 200)


# --- E1: the metrics page ---


@pytest.mark.parametrize("case", UNUSABLE)
async def test_e1_an_engine_without_a_usable_metrics_page_is_served_from_the_start(
    engine: FakeEngine, tmp_path: Path, case: str
) -> None:
    engine.pages[METRICS], why = UNUSABLE[case]
    async with sidecar_for(engine.port, tmp_path, **QUICK) as sidecar:
        await serves(sidecar)
        status, word, degraded = await readiness(sidecar)
        shown = await of_the_engine(sidecar)
        assert (status, word) == (200, "degraded")
        assert f"the engine's /metrics is not usable: {why}" in degraded
        assert "KV tokens have no bound: set replica.kv_tokens" in degraded
        assert (shown["up"], shown["page_usable"], shown["kv_bound"]) == (True, False, False)
        assert why in shown["page_error"]
        assert await metric(sidecar, "tokenpool_engine_page_usable") == 0
        assert await metric(sidecar, "tokenpool_engine_up") == 1
        assert is_whole(sidecar)


@pytest.mark.parametrize("case", ["500", "401", "404", "silent", "reset", "cut by its end", "no HTTP"])
async def test_e1_a_page_that_breaks_later_takes_nothing_away(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level("INFO", logger="sidecar.engine.state")
    engine.running = 9  # one more than the slots: one request of spot may wait in the engine
    async with sidecar_for(engine.port, tmp_path, **QUICK) as sidecar:
        await until(lambda: sidecar.controller.engine.room.foreign_sequences == 9)
        assert await readiness(sidecar) == (200, "ready", "")
        assert (await ask(sidecar, request(key="s-key"))).status == 429  # others fill the engine
        engine.pages[METRICS] = UNUSABLE[case][0]
        await until(lambda: not sidecar.engine.page.is_usable)
        await asyncio.sleep(0.1)
        await serves(sidecar)  # what others run is not known any more
        shown = await of_the_engine(sidecar)
        assert (shown["foreign_sequences"], shown["kv_bound"]) == (0, True)
        assert shown["running"] is shown["kv_usage"] is None  # not what they were
        assert sidecar.engine.capacity.amount().kv_tokens == 65536  # what was said of the cache stays
        assert (await readiness(sidecar))[:2] == (200, "degraded")
        del engine.pages[METRICS]
        await until(lambda: sidecar.controller.engine.room.foreign_sequences == 9)
        assert await readiness(sidecar) == (200, "ready", "")
        assert await metric(sidecar, "tokenpool_engine_page_usable") == 1
    said = [record.getMessage() for record in caplog.records if "page" in record.getMessage()]
    assert said == ["the engine's metrics page is not usable", "the engine's metrics page is usable again"]


async def test_e1_two_bad_pages_in_a_row_change_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    bad = says(b"", "500 Internal Server Error")
    pages = 0

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal pages
        pages += 1
        await (says(PAGE) if pages % 3 == 0 else bad)(received, writer)

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        engine.pages[METRICS] = answer
        await until(lambda: pages > 12 or not sidecar.engine.page.is_usable)
        assert sidecar.engine.page.is_usable


async def test_e1_of_a_late_page_only_what_does_not_change_is_used(
    engine: FakeEngine, tmp_path: Path
) -> None:
    page = PAGE.replace(b'num_requests_running{engine="0",model_name="tiny"} 0', b"num_requests_running 8")
    engine.pages[METRICS] = after(0.16, says(page))
    async with sidecar_for(engine.port, tmp_path, poll_timeout=0.1) as sidecar:
        await until(lambda: sidecar.engine.capacity.amount().kv_tokens == 65536)
        await serves(sidecar)
        shown = await of_the_engine(sidecar)
        assert (shown["kv_bound"], shown["page_usable"], shown["foreign_sequences"]) == (True, False, 0)
        assert await readiness(sidecar) == (
            200,
            "degraded",
            "the engine's /metrics is not usable: it takes longer than 0.1 s; requests are served from this"
            " sidecar's own counts",
        )


@pytest.mark.parametrize(
    "answer",
    [
        says(PAGE, "200 OK", "content-type: text/html"),
        says(PAGE, "200 OK", "content-type: application/octet-stream"),
        says(PAGE.replace(b"\n", b"\r\n")),
        says(PAGE + b"# EOF"),
        says(b"\n" * 99 + PAGE + b"vllm:num_requests_running{ 9\n"),
        ends(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE),
        ends(
            CHUNKED + b"".join(fake.chunk(PAGE[at : at + 7]) for at in range(0, len(PAGE), 7)) + b"0\r\n\r\n"
        ),
        says(b"x 1\n" * 1_000_000 + PAGE),
    ],
    ids=["HTML", "binary", "CRLF", "EOF", "a broken line", "HTTP/1.0", "small chunks", "4 MB"],
)
async def test_a_page_is_used_by_what_it_says_and_not_by_how(
    engine: FakeEngine, tmp_path: Path, answer: Answer
) -> None:
    engine.pages[METRICS] = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await until(lambda: sidecar.engine.page.is_usable)
        assert await readiness(sidecar) == (200, "ready", "")
        assert sidecar.engine.capacity.amount().kv_tokens == 65536


async def test_numbers_of_the_pool_file_bind_where_no_page_says_any(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.pages[METRICS] = UNUSABLE["404"][0]
    pool = POOL.replace("kv_tokens: auto", "kv_tokens: 12000")
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        large = {"model": "tiny", "prompt": [7] * 13_000, "max_tokens": 5}
        refused = await ask(sidecar, request(body=large))
        await serves(sidecar)
        assert "KV" not in (await readiness(sidecar))[2]
    assert (refused.status, "12000" in refused.error()["message"]) == (400, True)


async def test_without_a_kv_bound_concurrency_still_binds(engine: FakeEngine, tmp_path: Path) -> None:
    engine.pages[METRICS] = UNUSABLE["404"][0]
    engine.answer = held = fake.Held()
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        # One request of spot may wait in the engine.
        running.append(asyncio.ensure_future(ask(sidecar, request(key="s-key"))))
        await until(lambda: len(engine.received) == 9)
        shed = await ask(sidecar, request(key="s-key"))
        held.go.set()
        assert [(await each).status for each in running] == [200] * 9
        assert is_whole(sidecar)
        state = json.loads((await admin(sidecar, "/debug/state"))[1])
    assert shed.status == 429
    assert shed.headers["x-tokenpool-reason"] in ("concurrency", "engine_full")
    # A bound that there is not is no number.
    assert state["capacity"] == {"tokens_per_second": 100000, "kv_tokens": None, "concurrency": 8}
    assert state["entitlements"]["e"]["limit"]["kv_tokens"] is None


# --- the same for /v1/models ---


@pytest.mark.parametrize(
    "case",
    ["500", "401", "404", "empty", "binary", "reset", "silent", "cut by its length", "no end", "no HTTP"],
)
async def test_an_engine_whose_models_page_is_broken_is_served(
    engine: FakeEngine, tmp_path: Path, case: str
) -> None:
    engine.pages[MODELS] = UNUSABLE[case][0]
    async with sidecar_for(engine.port, tmp_path, **QUICK) as sidecar:
        await serves(sidecar)
        shown = await of_the_engine(sidecar)
        assert (await readiness(sidecar))[0] == 200
        assert shown["context_window"] is None
        assert MODELS in shown["models_error"]
        assert shown["page_usable"]
        del engine.pages[MODELS]
        await until(lambda: sidecar.engine.shape.context_window == 2048)
        assert sidecar.controller.engine.shape.context_window == 2048
        assert (await of_the_engine(sidecar))["models_error"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"data":[]}',
        b'{"data":[{"id":"m"}]}',
        b'{"data":[{"id":"m","max_model_len":null}]}',
        b'{"data":[{"id":"m","max_model_len":"2048"}]}',
        b'{"data":[{"id":"m","max_model_len":-1}]}',
        b'{"data":[{"id":"m","max_model_len":0}]}',
        b'{"data":' + b"[" * 50_000,
    ],
)
async def test_a_models_page_without_a_context_window_bounds_nothing(
    engine: FakeEngine, tmp_path: Path, body: bytes
) -> None:
    engine.pages[MODELS] = says(body)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await serves(sidecar)
        assert sidecar.controller.engine.shape.context_window is None


# --- E5: health ---


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(b"", "503 Service Unavailable"), "/health answers 503"),
        (says(b"", "500 Internal Server Error"), "/health answers 500"),
        (says(b"", "404 Not Found"), "/health answers 404"),
        (says(b"", "204 No Content"), "/health answers 204"),
        (says(b"", "302 Found", "location: /v1/models"), "/health answers 302"),
        (reset, "its last health check: "),
        (ends(b"SSH-2.0-OpenSSH_9.2\r\n"), "its last health check: "),
        (silence, "no answer to /health within 0.05 s"),
    ],
    ids=["503", "500", "404", "204", "redirect", "reset", "no HTTP", "silent"],
)
async def test_e5_an_engine_that_is_not_well_is_down_whatever_its_pages_say(
    engine: FakeEngine, tmp_path: Path, answer: Answer, why: str
) -> None:
    async with sidecar_for(engine.port, tmp_path, poll_timeout=0.05) as sidecar:
        await serves(sidecar)
        engine.pages[HEALTH] = answer
        await until(lambda: bool(sidecar.admin.problems()))
        response = await ask(sidecar, request())
        ready, page = await admin(sidecar, "/readyz")
        assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "engine_down")
        assert (ready, why in page) == (503, True)
        assert await metric(sidecar, "tokenpool_engine_up") == 0
        del engine.pages[HEALTH]
        await until(lambda: not sidecar.admin.problems())
        await serves(sidecar)
        assert sidecar.engine.restarts == 0


async def test_e5_an_engine_that_was_never_well_is_never_ready(engine: FakeEngine, tmp_path: Path) -> None:
    engine.pages[HEALTH] = says(b"", "503 Service Unavailable")
    async with sidecar_for(engine.port, tmp_path, ready=False) as sidecar:
        await until(lambda: engine.polls.count(HEALTH) > 3)
        assert (await ask(sidecar, request())).status == 503
        assert METRICS not in engine.polls  # there is nothing to refine


@pytest.mark.parametrize("answer", [goes_on(CHUNKED, fake.chunk(b"x" * 9999)), says(b'{"status":"ok"}')])
async def test_of_a_health_answer_only_the_status_counts(
    engine: FakeEngine, tmp_path: Path, answer: Answer
) -> None:
    engine.pages[HEALTH] = answer
    async with sidecar_for(engine.port, tmp_path, **QUICK) as sidecar:
        await until(lambda: engine.polls.count(HEALTH) > 5)
        await serves(sidecar)


async def test_a_busy_engine_may_answer_its_health_late(engine: FakeEngine, tmp_path: Path) -> None:
    """Nine silent checks in a row, then an answer: never down, and the metrics page is read all the while."""
    silent = 0

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal silent
        silent = (silent + 1) % 10
        await (silence if silent else says(b""))(received, writer)

    async with sidecar_for(engine.port, tmp_path, poll_timeout=0.03) as sidecar:
        engine.pages[HEALTH] = answer
        seen = [engine.polls.count(HEALTH)]
        while len(seen) < 30:
            await until(lambda: engine.polls.count(HEALTH) > seen[-1])
            seen.append(engine.polls.count(HEALTH))
            assert sidecar.controller.engine.is_up
        engine.running = 8
        await until(lambda: sidecar.controller.engine.room.foreign_sequences == 8, 0.5)


async def test_a_health_check_whose_connection_breaks_is_made_again_at_once(
    engine: FakeEngine, tmp_path: Path
) -> None:
    checks = 0

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal checks
        checks += 1
        await (reset if checks % 2 else says(b""))(received, writer)

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        engine.pages[HEALTH] = answer
        for number in range(1, 20):
            while checks < number:
                await asyncio.sleep(0.002)
            assert sidecar.controller.engine.is_up


@pytest.mark.parametrize(
    "page", [silence, goes_on(CHUNKED, fake.chunk(b"x\n" * 9999))], ids=["silent", "endless"]
)
async def test_a_slow_page_does_not_delay_the_health_verdict(
    engine: FakeEngine, tmp_path: Path, page: Answer
) -> None:
    async with sidecar_for(engine.port, tmp_path, poll_timeout=2.0) as sidecar:
        engine.pages[METRICS] = engine.pages[MODELS] = page
        polls = engine.polls.count(METRICS)
        await until(lambda: engine.polls.count(METRICS) > polls)
        engine.pages[HEALTH] = says(b"", "503 Service Unavailable")
        await until(lambda: not sidecar.controller.engine.is_up, 0.5)


async def test_an_engine_that_comes_back_without_a_page_is_another_one(tmp_path: Path) -> None:
    engine = FakeEngine()
    await engine.start()
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert sidecar.engine.capacity.amount().kv_tokens == 65536
        await engine.stop()
        await until(lambda: bool(sidecar.admin.problems()))
        returned = FakeEngine(port=engine.port)
        returned.pages[METRICS] = UNUSABLE["404"][0]
        returned.pages[MODELS] = says(b'{"data":[{"max_model_len":512}]}')
        await returned.start()
        await until(lambda: sidecar.engine.restarts == 1)
        await until(lambda: sidecar.controller.engine.shape.context_window == 512)
        assert sidecar.engine.capacity.lacks_kv_bound  # the old engine's cache says nothing of this one's
        await until(lambda: not sidecar.admin.problems())
        await serves(sidecar)
        assert sidecar.engine.restarts == 1
        await returned.stop()


# --- E2, E3, E4, E6 through the whole sidecar ---


def page(*infos: str, more: str = "") -> Answer:
    lines = ["process_start_time_seconds 1.0", 'vllm:num_requests_running{engine="0"} 0.0']
    lines += [f"vllm:cache_config_info{{{info}}} 1.0" for info in infos]
    return says("\n".join([*lines, more, ""]).encode())


EMBED = {"model": "tiny", "input": ["a", "b"]}


@pytest.mark.parametrize("kv_tokens", ["auto", "30000", "{auto: 30000}"])
async def test_e2_an_engine_without_a_kv_cache_has_no_kv_bound(
    engine: FakeEngine, tmp_path: Path, kv_tokens: str
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}))

    engine.answer = answer
    engine.pages[METRICS] = page('block_size="16",num_gpu_blocks="1"')
    pool = POOL.replace("kv_tokens: auto", f"kv_tokens: {kv_tokens}")
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        for key in ("g-key", "e-key", "s-key"):
            assert (await ask(sidecar, request("/v1/embeddings", EMBED, key=key))).status == 200
        assert await readiness(sidecar) == (200, "ready", "")
        shown = json.loads((await admin(sidecar, "/debug/state"))[1])["capacity"]["kv_tokens"]
    assert shown == (30_000 if kv_tokens == "30000" else None)


@pytest.mark.parametrize("blocks", [4000, 1000])
async def test_e3_a_guarantee_may_use_the_caches_of_all_engines(
    engine: FakeEngine, tmp_path: Path, blocks: int
) -> None:
    engine.pages[METRICS] = page(
        *(
            f'engine="{n}",block_size="16",num_gpu_blocks="{blocks}",kv_cache_size_tokens="16000"'
            for n in range(4)
        )
    )
    engine.pages[MODELS] = says(b'{"data":[{"max_model_len":65536}]}')
    pool = POOL.replace("kv_tokens: 10000", "kv_tokens: 40000")
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        assert sidecar.engine.capacity.amount().kv_tokens == 64_000
        large = {"model": "tiny", "prompt": [7] * 39_000, "max_tokens": 5}
        assert (await ask(sidecar, request(body=large))).status == 200


async def test_e4_a_hybrid_engines_cache_is_not_taken_for_another(engine: FakeEngine, tmp_path: Path) -> None:
    engine.pages[METRICS] = page('block_size="528",mamba_block_size="262144",num_gpu_blocks="1000"')
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert sidecar.engine.capacity.amount().kv_tokens == 528_000
        assert sidecar.controller.engine.shape.block_size == 528
        await serves(sidecar)


@pytest.mark.parametrize("name", ["vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"])
async def test_e6_cached_tokens_are_not_counted_as_computed(
    engine: FakeEngine, tmp_path: Path, name: str
) -> None:
    engine.pages[METRICS] = page(
        'block_size="16",num_gpu_blocks="4096"', more=f"vllm:prompt_tokens_total 100\n{name} 90"
    )
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        last = sidecar.engine.last_page
        assert last is not None
        assert (last.prompt_tokens, last.cached_tokens) == (100, 90)
