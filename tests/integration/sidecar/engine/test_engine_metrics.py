"""The engine's metrics page, its models and its LoRA routes can be used through the sidecar.

The reader of the page here follows the model server protocol of the Gateway API's inference extension
(docs/proposals/003-model-server-protocol). The endpoint pickers of the extension and of llm-d choose a
replica by it.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.app import Sidecar
from sidecar.engine.metrics_page import MOST_PAGE_BYTES
from sidecar.engine.metrics_relay import MOST_READERS
from tests.fakes.scripted_engine import Answer, FakeEngine, Received
from tests.support.harness import POOL, Response, ask, request, sidecar_for, until

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 5.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql, chat",waiting_lora_adapters="legal"} 1.8e+09
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0
"""
OLDER = PAGE.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
EXPOSED = {"expose_engine_metrics": True}
ADMINISTERED = POOL + "administrator_keys: [root-key, 'sha256:" + "0" * 64 + "']\n"
LORA = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
ADAPTER = {"lora_name": "sql", "lora_path": "/adapters/sql"}


def page(
    text: str = PAGE, *, status: str = "200 OK", seen: list[Received] | None = None, more: str = ""
) -> Answer:
    """The engine's answer to a reader of its metrics page."""
    content = text.encode()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        if seen is not None:
            seen.append(received)
        lines = (f"HTTP/1.1 {status}", f"content-type: {CONTENT_TYPE}", f"content-length: {len(content)}")
        head = "\r\n".join(lines) + f"\r\n{more}\r\n"
        writer.write(head.encode() + content)

    return answer


async def scrape(
    sidecar: Sidecar, query: str = "", method: str = "GET", **headers: str
) -> tuple[int, str, bytes]:
    """Read the engine's page on the admin port: status, content type, and bytes as sent."""
    url = f"http://{sidecar.admin_on}/engine/metrics{query}"
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.request(method, url, headers=headers) as response,
    ):
        return response.status, response.headers.get("content-type", ""), await response.read()


async def get(sidecar: Sidecar, path: str, key: str | None = None, **headers: str) -> Response:
    return await ask(sidecar, request(path, key=key, method="GET", headers=headers))


# --- the admin port ---


async def test_the_page_keeps_its_bytes_and_its_type(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        engine.pages["/metrics"] = page()
        assert await scrape(sidecar) == (200, CONTENT_TYPE, PAGE.encode())
        assert await scrape(sidecar, method="HEAD") == (200, CONTENT_TYPE, b"")


async def test_the_reader_and_the_engine_agree_on_format_and_selection(
    engine: FakeEngine, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("engine-key\n")
    seen: list[Received] = []
    async with sidecar_for(engine.port, tmp_path, upstream_key_file=key) as sidecar:
        engine.pages["/metrics?name%5B%5D=up"] = page("zipped", seen=seen, more="content-encoding: gzip\r\n")
        accept = "application/openmetrics-text;version=1.0.0"
        found = await scrape(sidecar, "?name[]=up", accept=accept, **{"accept-encoding": "gzip"})

    assert found == (200, CONTENT_TYPE, b"zipped")
    headers = seen[0].headers
    assert (headers["accept"], headers["accept-encoding"]) == (accept, "gzip")
    assert headers["authorization"] == "Bearer engine-key"


async def test_a_failure_of_the_page_affects_the_scraper_and_no_request(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with sidecar_for(engine.port, tmp_path, poll_timeout=0.02) as sidecar:
        engine.pages["/metrics"] = page("broken", status="500 Internal Server Error")
        assert await scrape(sidecar) == (500, CONTENT_TYPE, b"broken")
        engine.pages["/metrics"] = silent
        status, _, text = await scrape(sidecar)
        assert (status, text) == (
            502,
            b"the engine's metrics page cannot be read: it takes longer than 0.2 s\n",
        )
        engine.pages["/metrics"] = page("x" * (MOST_PAGE_BYTES + 1))
        assert (await scrape(sidecar))[::2] == (
            502,
            b"the engine's metrics page cannot be read: it is larger than 8 MiB\n",
        )
        assert (await ask(sidecar, request())).status == 200


async def test_a_page_that_ends_early_is_not_served_as_a_whole_one(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
            await writer.drain()

    async def short(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        writer.close()

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for answer in (endless, short):
            engine.pages["/metrics"] = answer
            with pytest.raises(aiohttp.ClientError):
                await scrape(sidecar)


async def test_an_engine_that_does_not_answer_is_named(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await engine.stop()
        status, _, text = await scrape(sidecar)

    assert status == 502
    assert text.startswith(b"the engine's metrics page cannot be read: ")


async def test_the_number_of_readers_is_bounded(engine: FakeEngine, tmp_path: Path) -> None:
    go, seen = asyncio.Event(), itertools.count(1)
    waiting = 0

    async def held(received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting = next(seen)
        await go.wait()
        await page()(received, writer)

    async with sidecar_for(engine.port, tmp_path, poll_interval=30.0) as sidecar:
        engine.pages["/metrics"] = held
        reading = [asyncio.ensure_future(scrape(sidecar)) for _ in range(MOST_READERS)]
        await until(lambda: waiting >= MOST_READERS)
        assert (await scrape(sidecar))[0] == 503
        go.set()
        assert [status for status, _, _ in await asyncio.gather(*reading)] == [200] * MOST_READERS
        assert (await scrape(sidecar))[0] == 200


# --- the tenants' port ---


async def test_nothing_is_exposed_by_default(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await get(sidecar, "/metrics")).status == 404
        assert (await get(sidecar, "/metrics", key="g-key")).status == 404
        assert (await get(sidecar, "/v1/models")).status == 401
        assert (await get(sidecar, "/v1/models", key="g-key")).status == 200


async def test_the_option_exposes_two_pages_and_nothing_else(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, **EXPOSED) as sidecar:
        engine.pages["/metrics"] = page()
        found = await get(sidecar, "/metrics")
        assert (found.status, found.headers["content-type"]) == (200, CONTENT_TYPE)
        assert found.body == PAGE.encode()
        assert (await get(sidecar, "/v1/models")).status == 200
        assert (await get(sidecar, "/v1/models", key="e-key")).status == 200
        assert (await get(sidecar, "/v1/models", key="wrong")).status == 401
        assert (await ask(sidecar, request("/metrics"))).status == 405
        assert (await ask(sidecar, request(key=None))).status == 401
        for path in ("/metrics/", "/engine/metrics", "/v1/models/tiny", *LORA):
            assert (await get(sidecar, path)).status == 404


@dataclass
class Endpoint:
    """The state of a model server, as an endpoint picker of the inference extension reads it."""

    waiting: float
    running: float
    kv_usage: float
    block_size: int
    blocks: int
    max_lora: int
    running_adapters: set[str]
    waiting_adapters: set[str]


def picked(text: str) -> Endpoint:
    """Read a page by the protocol's names. The newest series of ``vllm:lora_requests_info`` counts."""
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    usage = found.get("vllm:kv_cache_usage_perc") or found["vllm:gpu_cache_usage_perc"]
    lora = max(found["vllm:lora_requests_info"], key=lambda sample: sample.value).labels
    cache = found["vllm:cache_config_info"][0].labels

    def adapters(label: str) -> set[str]:
        return {name.strip() for name in lora[label].split(",") if name.strip()}

    return Endpoint(
        found["vllm:num_requests_waiting"][0].value,
        found["vllm:num_requests_running"][0].value,
        usage[0].value,
        int(cache["block_size"]),
        int(cache["num_gpu_blocks"]),
        int(lora["max_lora"]),
        adapters("running_lora_adapters"),
        adapters("waiting_lora_adapters"),
    )


@pytest.mark.parametrize("text", [PAGE, OLDER], ids=["vLLM", "an older vLLM"])
async def test_an_endpoint_picker_reads_the_engine_through_the_sidecar(
    engine: FakeEngine, tmp_path: Path, text: str
) -> None:
    async with sidecar_for(engine.port, tmp_path, **EXPOSED) as sidecar:
        engine.pages["/metrics"] = page(text)
        pages = [(await get(sidecar, "/metrics")).body, (await scrape(sidecar))[2]]

    expected = Endpoint(3, 5, 0.25, 16, 4096, 4, {"sql", "chat"}, {"legal"})
    assert [picked(each.decode()) for each in pages] == [expected, expected]


# --- LoRA adapters ---


async def test_without_administrators_the_lora_routes_do_not_exist(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, **EXPOSED) as sidecar:
        for path, key in itertools.product(LORA, (None, "g-key")):
            assert (await ask(sidecar, request(path, ADAPTER, key=key))).status == 404
    assert engine.received == []


async def test_an_administrator_loads_and_unloads_adapters(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=ADMINISTERED) as sidecar:
        for path in LORA:
            assert (await ask(sidecar, request(path, ADAPTER, key="root-key"))).status == 200
            assert engine.received[-1].json() == ADAPTER
            assert "authorization" not in engine.received[-1].headers
        assert (await get(sidecar, LORA[0], key="root-key")).status == 405


async def test_only_an_administrators_key_is_accepted(engine: FakeEngine, tmp_path: Path) -> None:
    both = {"x-api-key": "g-key"}
    async with sidecar_for(
        engine.port, tmp_path, pool=ADMINISTERED + "anonymous: e\n", identity_header="x-who"
    ) as sidecar:
        for path in LORA:
            for key, headers in (
                (None, {}),
                ("g-key", {}),
                ("wrong", {}),
                ("root-key", both),
                (None, {"x-who": "administrator"}),
                (None, {"x-who": "g"}),
            ):
                refused = await ask(sidecar, request(path, ADAPTER, key=key, headers=headers))
                assert (refused.status, refused.headers["x-tokenpool-reason"]) == (401, "unknown_key")
                assert "administrator" in refused.error()["message"]
        assert (await ask(sidecar, request(key="root-key"))).status == 401
    assert engine.received == []


async def test_a_changed_pool_file_changes_the_administrators(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=ADMINISTERED) as sidecar:
        (tmp_path / "pool.yaml").write_text(ADMINISTERED.replace("root-key", "new-key"))
        sidecar.reload()
        await until(lambda: sidecar.controller.epoch > 1)

        assert (await ask(sidecar, request(LORA[0], ADAPTER, key="root-key"))).status == 401
        assert (await ask(sidecar, request(LORA[0], ADAPTER, key="new-key"))).status == 200


# --- the headers of routers ---


@pytest.mark.parametrize(("key", "name", "tier"), [("g-key", "g", "guaranteed"), ("s-key", "s", "spot")])
async def test_fairness_and_objective_follow_from_the_entitlement(
    engine: FakeEngine, tmp_path: Path, key: str, name: str, tier: str
) -> None:
    own = {
        "x-llm-d-inference-fairness-id": "random",
        "X-Gateway-Inference-Objective": "vip",
        "x-gateway-inference_fairness-id": "random",
        "x-llm-d-slo-ttft-ms": "100",
    }
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request(key=key, headers=own))

    headers = [line.partition(": ") for line in engine.received[0].raw_head.decode().split("\r\n")[1:]]
    assert sorted((head, value) for head, _, value in headers if "inference" in head) == [
        ("x-gateway-inference-fairness-id", name),
        ("x-gateway-inference-objective", tier),
        ("x-llm-d-inference-fairness-id", name),
        ("x-llm-d-inference-objective", tier),
    ]
    assert engine.received[0].headers["x-llm-d-slo-ttft-ms"] == "100"


async def test_a_request_without_an_entitlement_has_neither(engine: FakeEngine, tmp_path: Path) -> None:
    own = {"x-llm-d-inference-fairness-id": "mine", "x-test": "not a poll"}
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await get(sidecar, "/health", **own)

    assert "inference" not in engine.received[0].raw_head.decode()
