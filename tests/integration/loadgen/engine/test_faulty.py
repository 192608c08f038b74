"""Faults on loopback: pages, streams, stalls, restarts, and the simulator's own routes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from loadgen.engine.__main__ import main
from loadgen.engine.admin import Admin
from loadgen.engine.faults import Fault, Kind, parse_fault
from loadgen.engine.model import Costs, Model
from loadgen.engine.process import Process
from tests.integration.loadgen.engine.simulated import HELD, Client, in_background, simulated
from toolbox.ports import free_port

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 4}),
    ("/v1/messages", CHAT),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4}),
]


def inject(client: Client, *texts: str) -> None:
    for text in texts:
        client.process.inject(parse_fault(text))


async def test_pages_can_fail_while_others_work() -> None:
    async with simulated() as client:
        inject(client, "status:path=/metrics,status=500", "status:path=/health,status=503")

        assert await client.get("/metrics") == (500, "Internal Server Error")
        assert (await client.get("/health"))[0] == 503
        assert (await client.post("/v1/completions", prompt="x"))[0] == 200


async def test_a_share_of_the_requests_fails_with_vllms_error() -> None:
    async with simulated() as client:
        inject(client, "status:status=503,share=0.5")
        answers = [await client.post("/v1/completions", prompt="x", max_tokens=1) for _ in range(20)]

    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    error = next(answer["error"] for status, answer in answers if status == 503)
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)


async def test_a_page_can_be_late_until_its_fault_ends() -> None:
    async with simulated() as client:
        inject(client, "delay:path=/metrics,seconds=60")
        late = asyncio.create_task(client.get("/metrics"))
        async with in_background(late):
            assert (await client.get("/health"))[0] == 200
            assert not late.done()
        client.process.faults.clear()
        assert (await client.get("/metrics"))[0] == 200


async def test_a_page_hangs_until_its_fault_ends() -> None:
    async with simulated() as client:
        number = client.process.inject(parse_fault("hang:path=/health"))
        held = asyncio.create_task(client.get("/health"))
        assert (await client.get("/metrics"))[0] == 200
        assert not held.done()
        client.process.faults.remove(number)
        assert (await asyncio.wait_for(held, 10))[0] == 200


async def test_a_broken_page_is_cut_in_its_middle() -> None:
    async with simulated() as client:
        whole = (await client.get("/v1/models"))[1]
        inject(client, "broken:path=/v1/models")
        status, half = await client.get("/v1/models")

    assert (status, half) == (200, whole[: len(whole) // 2])


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_stream_ends_with_an_error_event(path: str, body: dict[str, Any]) -> None:
    async with simulated() as client:
        inject(client, "error-event:tokens=2,status=504")
        raw = await client.raw(path, **body)
        status, answer = await client.post(path, **body)
        await client.until(running=0)

    assert b"EngineCore encountered an issue" in raw
    assert raw.count(b'"the "') == raw.count(b'"pool "') == 1
    assert b'finish_reason":"length' not in raw
    assert (status, answer["error"]["code"]) == (504, 504)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_stream_is_cut(path: str, body: dict[str, Any]) -> None:
    async with simulated() as client:
        inject(client, "cut:tokens=2")
        async with client.session.post(
            client.url + path, json={"model": "tiny", "stream": True, **body}
        ) as got:
            assert got.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.post(path, **body)
        await client.until(running=0)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_streams_have_the_bytes_of_other_servers(path: str, body: dict[str, Any]) -> None:
    async with simulated() as client:
        inject(client, "crlf", "comments")
        raw = await client.raw(path, **body)

    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert raw.count(b": keep-alive\r\n\r\n") >= 4


async def test_answers_are_compressed_without_a_request_for_it() -> None:
    async with simulated() as client:
        inject(client, "gzip")
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            for streams in (True, False):
                asked = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "stream": streams}
                async with session.post(client.url + "/v1/completions", json=asked) as response:
                    assert response.headers["content-encoding"] == "gzip"
                    text = gzip.decompress(await response.read()).decode()
                assert ("[DONE]" in text) == streams


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_answers_have_no_usage(path: str, body: dict[str, Any]) -> None:
    async with simulated() as client:
        inject(client, "no-usage")
        raw = await client.raw(path, **body)
        _, answer = await client.post(path, **body)

    assert b"usage" not in raw
    assert "usage" not in answer


async def test_a_messages_stream_splits_its_usage() -> None:
    async with simulated() as client:
        inject(client, "split-usage")
        events = await client.events("/v1/messages", **CHAT)

    start, delta = events[0], events[-2]
    assert start["message"]["usage"].keys() == {"input_tokens"}
    assert delta["usage"] == {"output_tokens": 4}


async def test_no_token_leaves_a_stalled_engine() -> None:
    async with simulated(costs=Costs(step_s=0.001)) as client:
        client.process.cores.stall(60.0)
        asked = client.begin()
        async with in_background(asked):
            await client.until(running=1)
            assert (await client.get("/health"))[0] == 200
            assert client.scheduler.statistics.generation_tokens == 0
            assert not asked.done()


async def test_a_stall_ends_by_itself() -> None:
    async with simulated() as client:
        inject(client, "stall:seconds=0.05")
        assert (await client.post("/v1/completions", prompt="x"))[0] == 200


async def test_a_restart_loses_requests_and_counters_and_keeps_the_port() -> None:
    async with simulated() as client:
        await client.post("/v1/completions", prompt="x", max_tokens=3)
        client.process.cores.stall(60.0)
        running = client.begin()
        await client.until(running=1)
        inject(client, "restart:seconds=0.05")
        with pytest.raises(aiohttp.ClientConnectionError):
            await running
        async with asyncio.timeout(10):
            while client.process.restarts == 0:
                await asyncio.sleep(0.005)
        page = (await client.get("/metrics"))[1]

        assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 0.0' in page
        assert (await client.post("/v1/completions", prompt="x"))[0] == 200


async def test_nobody_listens_during_a_restart() -> None:
    async with simulated() as client:
        inject(client, "restart:seconds=60")
        async with asyncio.timeout(10):
            while client.process.is_up:
                await asyncio.sleep(0.005)
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get("/health")


async def test_a_port_that_is_taken_during_a_restart_ends_the_engine() -> None:
    process = Process(Model())
    async with process.running():
        process.inject(parse_fault("restart:seconds=2"))
        async with asyncio.timeout(10):
            while (taken := _taken(process.address)) is None:
                await asyncio.sleep(0.005)
            with taken, pytest.raises(OSError, match="address"):
                await process.wait()


def _taken(address: tuple[str, int]) -> socket.socket | None:
    """A listener on an address, if it is free."""
    try:
        return socket.create_server(address)
    except OSError:
        return None


@contextlib.asynccontextmanager
async def administered(client: Client) -> AsyncIterator[str]:
    site = web.AppRunner(Admin(client.process).application(), access_log=None)
    await site.setup()
    await web.TCPSite(site, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{site.addresses[0][1]}"
    finally:
        await site.cleanup()


async def test_faults_are_added_listed_and_removed_at_run_time() -> None:
    async with simulated() as client, administered(client) as url:
        fault = {"kind": "status", "path": "/health", "status": 503}
        async with client.session.post(f"{url}/faults", json=fault) as response:
            assert (response.status, await response.json()) == (201, {"id": 1})
        assert (await client.get("/health"))[0] == 503
        async with client.session.get(f"{url}/faults") as response:
            (shown,) = await response.json()
        async with client.session.delete(f"{url}/faults/1") as response:
            assert response.status == 204
        assert (await client.get("/health"))[0] == 200
        async with client.session.delete(f"{url}/faults/1") as response:
            assert response.status == 404
            assert "there is no fault 1" in await response.text()
        async with client.session.delete(f"{url}/faults") as response:
            assert response.status == 204

    assert (shown["id"], shown["active"], shown["status"]) == (1, True, 503)


@pytest.mark.parametrize("number", ["0", "-1", "9" * 5000, "x", "1.0", "%C2%B2", "\u0661"])
async def test_a_fault_that_is_not_there_cannot_be_removed(number: str) -> None:
    async with simulated() as client, administered(client) as url:
        client.process.inject(Fault(Kind.GZIP))
        async with client.session.delete(URL(f"{url}/faults/{number}", encoded="%" in number)) as response:
            assert response.status == 404
            assert "there is no fault" in (await response.json())["error"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"kind": "stall", "seconds": 1e999}', "seconds is inf; it must be 1e+06 at most"),
        (b"[]", "the body is not an object"),
        (b"{}", "kind is missing"),
        (b'{"kind": "cut", "tokens": -1}', "tokens is -1"),
    ],
)
async def test_the_error_of_an_invalid_fault_names_the_problem(raw: bytes, words: str) -> None:
    async with (
        simulated() as client,
        administered(client) as url,
        client.session.post(f"{url}/faults", data=raw) as response,
    ):
        assert response.status == 400
        assert words in (await response.json())["error"]


async def test_the_state_has_the_load_and_the_pace() -> None:
    async with simulated(costs=HELD, slots=1) as client, administered(client) as url:
        asked = [client.begin(), client.begin()]
        async with in_background(*asked):
            await client.until(running=1, waiting=1)
            async with client.session.get(f"{url}/state") as response:
                state = json.loads(await response.text())

    assert (state["is_up"], state["restarts"], state["running"], state["waiting"]) == (True, 0, 1, 1)
    assert state["pace"]["late_windows"] == 0


def test_a_taken_port_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1

    assert "loadgen engine: cannot listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fault", "fire"], "kind is 'fire'"),
        (["--port", "65536"], "65536 is not a port: give a whole number from 0 to 65535"),
        (["--admin-port", "-1"], "-1 is not a port"),
        (["--cache-label", "x"], "--cache-label 'x' is not NAME=VALUE"),
        (["--cache-label", "a-b=1"], "is not NAME=VALUE"),
        (["--lora-modules", "tiny"], "give distinct names"),
    ],
)
def test_invalid_options_are_usage_errors(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--port", str(free_port()), *arguments])

    assert caught.value.code == 2
    assert words in capsys.readouterr().err
