"""Reports of engines' behaviour, replayed by the simulator in front of which a sidecar stands.

``docs/simulator.md`` has the table of reports. These tests check that the replay is what the sidecar sees.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from toolbox.ports import free_port
from toolbox.processes import Process, module

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: auto, kv_tokens: auto, concurrency: auto}
entitlements:
  - {name: only, pool: chat, tier: elastic, api_keys: [key]}
"""
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 5}),
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 5, "stream": True}),
    ("/v1/messages", CHAT),
    ("/v1/messages", CHAT | {"stream": True}),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 5}),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 5, "stream": True}),
]
POOLED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"model": "tiny", "input": ["hi", "there"]}),
    ("/rerank", {"model": "tiny", "query": "hi", "documents": ["a", "b"]}),
    ("/score", {"model": "tiny", "queries": "hi", "documents": ["a", "b"]}),
]


@dataclass
class Front:
    """A sidecar in front of a simulator."""

    url: str
    admin: str
    faults: str
    engine: str

    def post(self, path: str, body: object) -> tuple[int, bytes]:
        return fetch(self.url + path, json.dumps(body).encode(), authorization="Bearer key")

    def metric(self, pattern: str) -> float:
        """The sum of the sidecar's series whose name and labels match."""
        page = fetch(f"{self.admin}/metrics")[1].decode()
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", page, re.MULTILINE))

    @contextmanager
    def fault(self, **fields: object) -> Iterator[None]:
        fetch(f"{self.faults}/faults", json.dumps(fields).encode())
        try:
            yield
        finally:
            fetch(f"{self.faults}/faults", method="DELETE")

    def tokens(self) -> tuple[float, float]:
        """Settled input and output."""
        input_, output = (
            self.metric(rf'tokenpool_tokens_total\{{[^}}]*kind="{kind}"\}}') for kind in ("input", "output")
        )
        return input_, output

    def engine_tokens(self) -> tuple[float, float]:
        """The engine's own counts."""
        page = fetch(f"{self.engine}/metrics")[1].decode()
        found = [
            sum(float(v) for v in re.findall(rf"^vllm:{name}_tokens_total{{.*}} (\S+)$", page, re.MULTILINE))
            for name in ("prompt", "generation")
        ]
        return found[0], found[1]


def fetch(
    url: str, data: bytes | None = None, method: str | None = None, **headers: str
) -> tuple[int, bytes]:
    asked = urllib.request.Request(url, data, {"content-type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


@contextmanager
def fronted(folder: Path, *options: str) -> Iterator[Front]:
    file = folder / "pool.yaml"
    file.write_text(POOL)
    port, orders, listen, admin = (free_port() for _ in range(4))
    engine = [*module("loadgen.engine"), "--port", str(port), "--admin-port", str(orders), *options]
    sidecar = [*module("sidecar"), "run", "--config", str(file), "--upstream", f"http://127.0.0.1:{port}"]
    sidecar += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}", "--drain-timeout", "1"]
    with (
        Process("engine", engine, folder, probe=f"http://127.0.0.1:{port}/health"),
        Process("sidecar", sidecar, folder, probe=f"http://127.0.0.1:{admin}/readyz"),
    ):
        yield Front(*(f"http://127.0.0.1:{each}" for each in (listen, admin, orders, port)))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with fronted(tmp_path_factory.mktemp("front")) as made:
        yield made


def test_all_routes_are_settled_from_the_simulators_usage(front: Front) -> None:
    for path, body in (*ROUTES, *POOLED):
        before = front.tokens()
        engine = front.engine_tokens()
        assert front.post(path, body)[0] == 200, path
        seen = [after - first for after, first in zip(front.tokens(), before, strict=True)]
        made = [after - first for after, first in zip(front.engine_tokens(), engine, strict=True)]
        assert seen == made, path


@pytest.mark.parametrize("kind", ["crlf", "comments"])
def test_events_of_other_servers_are_settled(front: Front, kind: str) -> None:
    before = front.tokens()
    with front.fault(kind=kind):
        status, answer = front.post("/v1/chat/completions", CHAT | {"stream": True})

    assert status == 200
    assert b"usage" not in answer
    assert [after - first for after, first in zip(front.tokens(), before, strict=True)] == [6, 5]


def test_usage_in_two_parts_is_settled(front: Front) -> None:
    before = front.tokens()
    with front.fault(kind="split-usage"):
        assert front.post("/v1/messages", CHAT | {"stream": True})[0] == 200

    assert [after - first for after, first in zip(front.tokens(), before, strict=True)] == [6, 5]


def test_an_error_inside_a_stream_is_not_charged(front: Front) -> None:
    before = front.tokens()
    with front.fault(kind="error-event", status=504, tokens=0):
        _, answer = front.post("/v1/chat/completions", CHAT | {"stream": True})

    assert b'"code":504' in answer
    assert front.tokens() == before


def test_an_answer_without_usage_is_counted(front: Front) -> None:
    name = r"tokenpool_answers_without_usage_total(?:\{[^}]*\})?"
    before = front.metric(name)
    with front.fault(kind="no-usage"):
        assert front.post("/v1/chat/completions", CHAT)[0] == 200

    assert front.metric(name) == before + 1


def test_a_failing_metrics_page_refuses_nobody(front: Front) -> None:
    with front.fault(kind="status", path="/metrics", status=500):
        until(lambda: b"metrics" in fetch(f"{front.admin}/readyz")[1])
        assert front.post("/v1/chat/completions", CHAT)[0] == 200
    until(lambda: b"metrics" not in fetch(f"{front.admin}/readyz")[1])


def test_a_failing_health_check_makes_the_sidecar_unready(front: Front) -> None:
    with front.fault(kind="status", path="/health", status=503):
        until(lambda: fetch(f"{front.admin}/readyz")[0] == 503)
    until(lambda: fetch(f"{front.admin}/readyz")[0] == 200)


def labels(*told: str) -> list[str]:
    return [word for each in told for word in ("--cache-label", each)]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (["--data-parallel-size", "2", "--blocks", "1000"], 32_000),
        (["--data-parallel-size", "2", "--blocks", "1000", *labels("kv_cache_size_tokens=")], 32_000),
        (
            labels(
                *("block_size=528", "mamba_block_size=262144", "num_gpu_blocks=1000"),
                "kv_cache_size_tokens=",
            ),
            528_000,
        ),
        (["--encoder"], None),
    ],
)
def test_the_kv_capacity_is_read_from_each_kind_of_page(
    options: list[str], tokens: int | None, tmp_path: Path
) -> None:
    with fronted(tmp_path, *options) as front:
        path, body = POOLED[0]
        assert front.post(path, body)[0] == 200
        state = json.loads(fetch(f"{front.admin}/debug/state")[1])
        assert state["capacity"]["kv_tokens"] == tokens


def test_cached_tokens_of_an_older_release_are_read(tmp_path: Path) -> None:
    with fronted(tmp_path, "--old-metric-names") as front:
        page = fetch(f"{front.engine}/metrics")[1]
        assert b"vllm:gpu_prefix_cache_hits_total" in page
        assert front.post("/v1/chat/completions", CHAT)[0] == 200
        state = json.loads(fetch(f"{front.admin}/debug/state")[1])
        assert state["engine"]["page_usable"] is True
