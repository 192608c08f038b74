"""An injected pod, run: its containers' own commands as processes, which share a loopback as a pod's do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.certificates import certify, trusting
from tests.support.pods import container, injected, option, pod, sidecar
from toolbox.ports import free_port

POOL = """
pools:
  - {name: chat, models: ["*"], replica: {tokens_per_second: 10000, kv_tokens: auto, concurrency: 8}}
entitlements:
  - {name: a, pool: chat, tier: elastic, api_keys: [{file: KEYS/a}]}
"""
COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 3}


@contextlib.asynccontextmanager
async def running(*commands: list[str]) -> AsyncIterator[None]:
    """The processes of all containers, until they are told to stop."""
    processes = [await asyncio.create_subprocess_exec(*command) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        codes = [await asyncio.wait_for(process.wait(), 20) for process in processes]
        assert codes == [0 for _ in codes]


async def status(session: aiohttp.ClientSession, url: str) -> int:
    try:
        async with session.get(url) as response:
            return response.status
    except aiohttp.ClientError:
        return 0


@dataclass(frozen=True, slots=True)
class Running:
    """A pod whose containers run as processes; its ports."""

    service: int
    engine: int
    admin: int
    session: aiohttp.ClientSession


@contextlib.asynccontextmanager
async def running_pod(folder: Path, labels: dict[str, str], **annotations: str) -> AsyncIterator[Running]:
    """An injected pod of the engine simulator, ready."""
    service, engine_port, admin = free_port(), free_port(), free_port()
    engine = {
        "name": "engine",
        "image": "tokenpool:latest",
        "command": [sys.executable, "-m", "loadgen.engine", "--host", "0.0.0.0", "--port", str(service)],
        "ports": [{"name": "http", "containerPort": service}],
    }
    wanted = {"engine-port": str(engine_port), "admin-port": str(admin), "store-secret": "", **annotations}
    before = pod(engine, annotations={**wanted, "upstream-port": "http", "keys-secret": "keys"})
    before["metadata"]["labels"] |= labels
    after = injected(before)
    (folder / "a").write_text("a-key")
    (folder / "pool.yaml").write_text(POOL.replace("KEYS", str(folder)))
    arguments = list(sidecar(after)["args"])
    arguments[arguments.index("--config") + 1] = str(folder / "pool.yaml")
    assert option(arguments, "--upstream") == f"http://127.0.0.1:{engine_port}"
    async with (
        running(
            container(after, "engine")["command"],
            [sys.executable, "-m", "sidecar", "run", *arguments],
        ),
        aiohttp.ClientSession() as session,
        asyncio.timeout(30),
    ):
        while await status(session, f"http://127.0.0.1:{admin}/readyz") != 200:
            await asyncio.sleep(0.05)
        yield Running(service, engine_port, admin, session)


@pytest.mark.parametrize("native", ["true", "false"])
async def test_an_injected_pod_answers_at_the_sidecar_and_not_at_the_engine(
    tmp_path: Path, native: str
) -> None:
    async with running_pod(tmp_path, {}, native=native) as made:
        for key, expected in (("a-key", 200), ("wrong", 401)):
            async with made.session.post(
                f"http://127.0.0.1:{made.service}/v1/completions",
                json=COMPLETION,
                headers={"authorization": f"Bearer {key}"},
            ) as response:
                assert response.status == expected
        # The probe that a kubelet may send through the sidecar, without a key.
        assert await status(made.session, f"http://127.0.0.1:{made.service}/health") == 200
        # Another address of this machine stands for the pod's: the sidecar is there, the engine is not.
        assert await status(made.session, f"http://127.0.0.2:{made.service}/health") == 200
        assert await status(made.session, f"http://127.0.0.2:{made.engine}/health") == 0
        assert await status(made.session, f"http://127.0.0.1:{made.engine}/health") == 200
        # Nobody marked the pod as one that a router reads.
        assert await status(made.session, f"http://127.0.0.1:{made.service}/metrics") == 404


PROTOCOL = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")
"""The metrics that an endpoint picker of the Gateway API's inference extension requires of a model server."""


@pytest.mark.parametrize("native", ["true", "false"])
async def test_an_endpoint_picker_reads_the_engines_metrics_of_a_pod_that_it_is_labelled_for(
    tmp_path: Path, native: str
) -> None:
    labels = {"llm-d.ai/inference-serving": "true"}
    async with running_pod(tmp_path, labels, native=native) as made:
        async with made.session.get(f"http://127.0.0.2:{made.service}/metrics") as response:
            page = await response.text()
            assert response.status == 200
        families = {family.name: family for family in text_string_to_metric_families(page)}
        for name in PROTOCOL:
            assert families[name].type == "gauge"
            assert families[name].samples[0].value == 0
        (sample,) = families["vllm:cache_config_info"].samples
        assert sample.labels["block_size"]
        async with made.session.get(f"http://127.0.0.2:{made.service}/v1/models") as response:
            assert response.status == 200
        # Everything else still needs a key.
        async with made.session.post(
            f"http://127.0.0.2:{made.service}/v1/completions", json=COMPLETION
        ) as response:
            assert response.status == 401


STUB = """\
#!/bin/sh
host=0.0.0.0 port=8000
while [ $# -gt 0 ]; do
    case "$1" in
        --host) host="$2" ;;
        --port) port="$2" ;;
        --ssl*) echo "TLS is not the engine's any more" >&2; exit 1 ;;
    esac
    shift
done
exec PYTHON -m loadgen.engine --host "$host" --port "$port"
"""
"""A program with vLLM's name and two of its options, which runs the engine simulator."""
START = """\
# The engine, as KServe starts it.
if [ -n "$NOTHING" ]; then
  export ROCE=1
fi
eval "exec vllm serve m \\\\
  --port SERVICE \\\\
  --enable-ssl-refresh --ssl-certfile TLS/tls.crt --ssl-keyfile TLS/tls.key \\\\
  $@"
"""


async def test_a_shell_with_tls_is_moved_and_the_sidecar_serves_its_certificate(tmp_path: Path) -> None:
    service, engine_port, admin = free_port(), free_port(), free_port()
    (tmp_path / "tls").mkdir()
    cert, _ = certify(tmp_path / "tls", "engine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text(STUB.replace("PYTHON", sys.executable))
    (tmp_path / "bin" / "vllm").chmod(0o755)
    script = START.replace("SERVICE", str(service)).replace("TLS", str(tmp_path / "tls"))
    engine = {
        "name": "main",
        "image": "llm-d-cuda:1",
        "command": ["/bin/bash", "-c", script, "--"],
        "args": ["--max-num-seqs", "8"],
        "ports": [{"containerPort": service}],
        "volumeMounts": [{"name": "tls", "mountPath": str(tmp_path / "tls")}],
        "livenessProbe": {"exec": {"command": ["curl", "-k", f"https://localhost:{service}/health"]}},
        "startupProbe": {"httpGet": {"path": "/health", "port": service, "scheme": "HTTPS"}},
    }
    wanted = {"engine-port": str(engine_port), "admin-port": str(admin), "store-secret": ""}
    volumes = [{"name": "tls", "secret": {"secretName": "engine-tls"}}]
    after = injected(pod(engine, annotations=wanted, volumes=volumes))
    made = container(after, "main")
    assert made["livenessProbe"]["exec"]["command"][2] == f"http://127.0.0.1:{engine_port}/health"
    (tmp_path / "a").write_text("a-key")
    (tmp_path / "pool.yaml").write_text(POOL.replace("KEYS", str(tmp_path)))
    arguments = list(sidecar(after)["args"])
    arguments[arguments.index("--config") + 1] = str(tmp_path / "pool.yaml")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    async with (
        running(
            ["env", f"PATH={path}", *made["command"], *made["args"]],
            [sys.executable, "-m", "sidecar", "run", *arguments],
        ),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(cert))) as session,
        asyncio.timeout(30),
    ):
        while await status(session, f"http://127.0.0.1:{admin}/readyz") != 200:
            await asyncio.sleep(0.05)
        async with session.post(
            f"https://127.0.0.1:{service}/v1/completions",
            json=COMPLETION,
            headers={"authorization": "Bearer a-key"},
        ) as response:
            assert response.status == 200
        assert await status(session, f"https://127.0.0.1:{service}/health") == 200
        assert await status(session, f"http://127.0.0.2:{engine_port}/health") == 0
        probe = await asyncio.create_subprocess_exec(*made["startupProbe"]["exec"]["command"])
        assert await probe.wait() == 0
