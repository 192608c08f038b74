"""One real vLLM for all tests of this folder, and a sidecar process in front of it."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo import install_engine
from demo.vllm_process import VllmProcess
from toolbox.ports import free_port
from toolbox.processes import Process, module

SLOTS = 8
POOL = f"""
pools:
  - name: chat
    models: [tiny]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {SLOTS}}}
entitlements:
  - name: guaranteed
    pool: chat
    tier: guaranteed
    guarantee: {{tokens_per_second: 2000, kv_tokens: 16384, concurrency: 4}}
    api_keys: [guaranteed-key]
  - {{name: elastic, pool: chat, tier: elastic, api_keys: [elastic-key]}}
  - {{name: spot, pool: chat, tier: spot, api_keys: [spot-key]}}
  - name: narrow
    pool: chat
    tier: elastic
    ceiling: {{concurrency: 1}}
    slo: {{ttft_ms: 50}}  # its requests wait at most 50 ms in the queue
    api_keys: [narrow-key]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest: everything here needs the real engine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@dataclass
class Sidecar:
    """A sidecar process."""

    url: str
    admin: str

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin}/debug/state", timeout=5) as response:
            return json.load(response)

    def is_whole(self) -> bool:
        state = self.state()
        idle = {"kv_tokens": 0, "concurrency": 0}
        return state["in_flight"] == 0 and all(e["in_use"] == idle for e in state["entitlements"].values())

    def until_whole(self, seconds: float = 10.0) -> None:
        """Wait until the ledger is empty and the engine is idle."""
        deadline = time.monotonic() + seconds
        while not (self.is_whole() and self.state()["engine"]["running"] == 0):
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.05)


@contextlib.contextmanager
def running_sidecar(upstream: str, folder: Path, pool: str = POOL, *options: str) -> Iterator[Sidecar]:
    """A sidecar process in front of an engine, ready."""
    file = folder / "pool.yaml"
    file.write_text(pool)
    listen, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [*module("sidecar"), "run", "--config", str(file), "--upstream", upstream]
    command += ["--listen", listen, "--admin", admin, "--drain-timeout", "2", *options]
    with Process("sidecar", command, folder, probe=f"http://{admin}/readyz"):
        yield Sidecar(f"http://{listen}", f"http://{admin}")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    """A real vLLM with eight slots."""
    if not install_engine.is_installed():
        pytest.fail(f"the real engine is not installed: run 'make engine'; {install_engine.HELP}")
    log = tmp_path_factory.mktemp("vllm") / "engine.log"
    with VllmProcess(log=log, max_num_seqs=SLOTS) as engine:
        yield engine


@pytest.fixture(scope="session")
def front(vllm: VllmProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar in front of the vLLM."""
    with running_sidecar(vllm.url, tmp_path_factory.mktemp("front")) as sidecar:
        yield sidecar
