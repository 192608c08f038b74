"""Unusual pages of a real vLLM: data parallel, and an encoder-only model.

Each test starts an engine of its own and ends it.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from demo import install_engine
from demo.vllm_process import VllmProcess
from tests.e2e.vllm.conftest import POOL, Sidecar, running_sidecar


@pytest.fixture(autouse=True)
def installed() -> None:
    if not install_engine.is_installed():
        pytest.fail(f"the real engine is not installed: run 'make engine'; {install_engine.HELP}")


def ask(sidecar: Sidecar, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Send one request. Raises for any status but 200."""
    request = urllib.request.Request(
        sidecar.url + path,
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


KEYS = ("guaranteed-key", "elastic-key", "spot-key")


def test_e3_the_kv_capacity_of_two_data_parallel_engines_is_their_sum(tmp_path: Path) -> None:
    options = ("--data-parallel-size", "2")
    with VllmProcess(log=tmp_path / "engine.log", max_model_len=512, extra=options) as engine:
        told = {
            labels["engine"]: int(labels["kv_cache_size_tokens"])
            for line in get(f"{engine.url}/metrics").splitlines()
            if line.startswith("vllm:cache_config_info{")
            and (labels := dict(re.findall(r'(\w+)="([^"]*)"', line)))
        }
        assert set(told) == {"0", "1"}
        with running_sidecar(engine.url, tmp_path) as sidecar:
            for key in KEYS * 2:
                body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
                assert ask(sidecar, "/v1/chat/completions", body, key)["usage"]["completion_tokens"] <= 4
            assert sidecar.state()["capacity"]["kv_tokens"] == sum(told.values())
            assert json.loads(get(f"{sidecar.admin}/readyz")) == {
                "status": "ready",
                "problems": [],
                "degraded": [],
            }
            sidecar.until_whole()


def test_e2_an_encoder_only_engine_has_no_kv_bound(tmp_path: Path) -> None:
    with VllmProcess(log=tmp_path / "engine.log", model="encoder", max_model_len=512) as engine:
        assert 'num_gpu_blocks="1"' in get(f"{engine.url}/metrics")
        pool = POOL.replace("models: [tiny]", "models: [encoder]")
        with running_sidecar(engine.url, tmp_path, pool) as sidecar:
            for key in KEYS:
                answer = ask(sidecar, "/v1/embeddings", {"model": "encoder", "input": ["a", "b"]}, key)
                assert len(answer["data"]) == 2
            state = sidecar.state()
            assert state["capacity"]["kv_tokens"] is None
            assert state["engine"]["kv_bound"] is True
            assert json.loads(get(f"{sidecar.admin}/readyz"))["status"] == "ready"
            sidecar.until_whole()
        numbered = pool.replace("kv_tokens: auto", "kv_tokens: 20000")
        with running_sidecar(engine.url, tmp_path, numbered) as sidecar:
            ask(sidecar, "/v1/embeddings", {"model": "encoder", "input": ["a", "b"]}, "spot-key")
            assert sidecar.state()["capacity"]["kv_tokens"] == 20_000
