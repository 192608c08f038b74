"""Routers in Rust from PyPI: the vLLM router and the Shepherd Model Gateway."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from experiments.peers.environment import program
from experiments.peers.system import Place, Proxy, filled
from experiments.peers.tenants import ELASTIC, GUARANTEED, GUARANTEED_SLOTS, SLOTS, SPOT, TENANTS
from toolbox.ports import free_port
from toolbox.processes import NotReady, Process

READY_S = 60.0


@contextlib.contextmanager
def vllm_router(place: Place) -> Iterator[Proxy]:
    """The vLLM router: one queue in front of a token bucket of requests."""
    port = free_port()
    options = {
        "host": "127.0.0.1",
        "port": port,
        "worker-urls": f"http://127.0.0.1:{place.upstream}",
        "policy": "round_robin",
        "max-concurrent-requests": SLOTS,
        "rate-limit-tokens-per-second": max(round(place.capacity.requests_per_s), 1),
        "queue-size": 2 * SLOTS,
        "queue-timeout-secs": 10,
        "prometheus-port": free_port(),
        "log-level": "warning",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    health = f"http://127.0.0.1:{port}/health"
    with Process(
        "vllm-router", [program("vllm-router", place.home), *flags], place.folder, probe=health
    ) as process:
        yield Proxy(port, process)


SMG_CLASSES = {GUARANTEED: "interactive", ELASTIC: "default", SPOT: "bulk"}


def smg_file() -> str:
    """SMG's configuration of priorities."""
    policies = "\n".join(
        f'  "auth:{tenant.name}": {{max_class: {SMG_CLASSES[tenant.tier]}}}' for tenant in TENANTS
    )
    return filled("smg-priority.yaml", guaranteed_slots=GUARANTEED_SLOTS, policies=policies)


@contextlib.contextmanager
def smg(place: Place) -> Iterator[Proxy]:
    """The Shepherd Model Gateway with its priority scheduler, which knows the engine's slots."""
    port, metrics, file = free_port(), free_port(), place.folder / "smg-priority.yaml"
    file.write_text(smg_file())
    admin = secrets.token_hex(16)
    command = [program("smg", place.home), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics), "--log-level", "error"]
    command += ["--priority-scheduler-enabled", "--priority-scheduler-config", str(file)]
    command += ["--max-concurrent-requests", str(SLOTS), "--policy", "round_robin"]
    command += ["--control-plane-api-keys", f"peers:peers:admin:{admin}"]
    for tenant in TENANTS:
        command += ["--tenant-api-key", f"{tenant.name}:{tenant.key}"]
    with Process("smg", command, place.folder, probe=port) as process:
        _add_worker(f"http://127.0.0.1:{port}/workers", place.upstream, admin)
        yield Proxy(port, process)


def _add_worker(url: str, upstream: int, key: str) -> None:
    """Add the engine with its number of slots. Raises ``NotReady``."""
    worker = {
        "url": f"http://127.0.0.1:{upstream}",
        "labels": {"max_running_requests": str(SLOTS)},
    }
    _asked(url, key, json.dumps(worker).encode())
    deadline = time.monotonic() + READY_S
    while not any(worker["status"] == "ready" for worker in json.loads(_asked(url, key))["workers"]):
        if time.monotonic() > deadline:
            raise NotReady(f"smg did not accept the engine within {READY_S:g} s")
        time.sleep(0.1)


def _asked(url: str, key: str, body: bytes | None = None) -> bytes:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError) as error:
        raise NotReady(f"smg's {url} failed: {error}") from None
