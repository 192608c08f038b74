"""The spans of a real vLLM join the trace of the sidecar's caller, below the sidecar's span of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from pathlib import Path

import pytest

from demo import install_engine
from demo.vllm_process import VllmProcess
from tests.e2e.vllm.conftest import POOL, Sidecar, running_sidecar
from toolbox.collector import collecting

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {
    "content-type": "application/json",
    "authorization": "Bearer elastic-key",
    "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
}
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def chat(sidecar: Sidecar) -> int:
    url = f"{sidecar.url}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(BODY).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()
        return int(response.status)


async def test_the_spans_of_vllm_are_below_the_span_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not install_engine.is_installed():
        pytest.fail(f"the real engine is not installed: run 'make engine'; {install_engine.HELP}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    async with collecting() as collector:
        extra = ("--otlp-traces-endpoint", f"{collector.url}/v1/traces")
        engine = VllmProcess(log=tmp_path / "engine.log", max_model_len=512, extra=extra)
        with contextlib.ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, engine)
            options = ("--otlp-endpoint", collector.url)
            front = running_sidecar(engine.url, tmp_path, POOL, *options)
            sidecar = await asyncio.to_thread(stack.enter_context, front)
            assert await asyncio.to_thread(chat, sidecar) == 200
            async with asyncio.timeout(20):
                while len(collector.of(TRACE_ID)) < 5:
                    await asyncio.sleep(0.05)
            await asyncio.to_thread(stack.close)
    spans = {span.name: span for span in collector.of(TRACE_ID)}
    assert {"POST /v1/chat/completions", "authenticate", "price", "chat tiny", "llm_request"} <= spans.keys()
    engine_span, relayed = spans["llm_request"], spans["chat tiny"]
    assert engine_span.parent == relayed.id
    assert engine_span.attributes["gen_ai.usage.completion_tokens"] == 4
    assert relayed.attributes["gen_ai.usage.output_tokens"] == 4
