"""compose.yaml under test: brought up with stand-in images, looked at, broken, taken down."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker.models.containers import Container

from demo.engine import free_port
from tests.e2e.containers import standins
from tests.e2e.containers.engine import ContainerEngine

PROJECT = "tokenpooltest"
IMAGE = "tokenpool:local"
"""What compose.yaml calls our image."""
PARTS = (
    *("redis", "coordinator-1", "coordinator-2", "pod-1", "pod-2"),
    *("engine-1", "engine-2", "sidecar-1", "sidecar-2", "front", "prometheus"),
)
"""All but Grafana, which Debian does not have, and loadgen, which runs by itself."""
BUILD_S, UP_S, READY_S, DOWN_S = 900, 180, 420, 180
KEY = "checkout-key"


@dataclass
class Answer:
    """What came back from the front."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stack:
    """The services of one compose project."""

    engine: ContainerEngine
    lent: Path | None = None
    """A compose file that lends the engines a vLLM that is installed here; else their image is built."""
    front_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        """What names images and ports; everything else is as by default."""
        lent = {"VLLM_IMAGE": standins.PARTS} if self.lent is not None else {}
        return lent | {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "PYTHON_IMAGE": standins.PYTHON,
            "REDIS_IMAGE": standins.PARTS,
            "FRONT_IMAGE": standins.PARTS,
            "PROMETHEUS_IMAGE": standins.PARTS,
            "FRONT_PORT": str(self.front_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
        }

    def compose(self, *arguments: str, timeout: float) -> str:
        """Run docker-compose on it; its output."""
        files = ["compose.yaml"] if self.lent is None else ["compose.yaml", str(self.lent)]
        named = [part for file in files for part in ("--file", file)]
        return self.engine.compose(*named, *arguments, environment=self.environment, timeout=timeout)

    def build(self) -> None:
        """Build all images that are needed."""
        self.build_ours()
        if self.lent is None:
            self.compose("build", "engine-1", timeout=BUILD_S)

    def build_ours(self) -> None:
        """Build the image of sidecar, coordinator and loadgen."""
        self.compose("build", "sidecar-1", timeout=BUILD_S)

    def up(self) -> None:
        """Start every part, and wait until all are healthy."""
        self.compose("up", "--detach", "--no-build", *PARTS, timeout=UP_S)
        self.until_healthy(*PARTS)

    def down(self) -> None:
        """Take everything away."""
        self.compose("down", "--volumes", "--timeout", "5", timeout=DOWN_S)

    def container(self, service: str) -> Container:
        """The container of a service."""
        wanted = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
        found = self.engine.client.containers.list(
            all=True, filters={"label": [*wanted, "com.docker.compose.oneoff=False"]}
        )
        assert len(found) == 1, (service, found)
        return found[0]

    def health(self, service: str) -> str:
        """What the health check of a service last said."""
        state = self.container(service).attrs["State"]
        return str(state["Health"]["Status"]) if state["Running"] else str(state["Status"])

    def until_healthy(self, *services: str) -> None:
        """Wait for services; what is wrong is in the failure's text."""
        until(lambda: all(map(self.is_healthy, services)), READY_S, self.state, every_s=1.0)

    def is_healthy(self, service: str) -> bool:
        """Whether its health check last said so."""
        return self.health(service) == "healthy"

    def state(self) -> str:
        """How every part is, and the last lines of those that are not well."""
        lines = []
        for service in PARTS:
            health = self.health(service)
            lines.append(f"{service}: {health}")
            if health != "healthy":
                lines.append(self.container(service).logs(tail=15).decode(errors="replace"))
                checks = self.container(service).attrs["State"].get("Health", {}).get("Log") or [{}]
                lines.append(str(checks[-1].get("Output")))
        return "\n".join(lines)

    def address(self, service: str, network: str = "lease_store") -> str:
        """Where a service is on one of the networks; this machine can reach it there."""
        networks = self.container(service).attrs["NetworkSettings"]["Networks"]
        return str(networks[f"{PROJECT}_{network}"]["IPAddress"])

    def page(self, service: str, port: int, path: str) -> Any:
        """A JSON page of a service's admin port, which is not published."""
        with urllib.request.urlopen(f"http://{self.address(service)}:{port}{path}", timeout=5) as response:
            return json.load(response)

    def is_ready(self, service: str, port: int) -> bool:
        """Whether a service says that it is ready, now."""
        try:
            return bool(self.page(service, port, "/readyz"))
        except (urllib.error.URLError, OSError):
            return False

    def leaders(self, *coordinators: str) -> list[str]:
        """Which of some coordinators lead."""
        return [
            name for name in coordinators if self.page(name, 9091, "/debug/state")["pools"]["chat"]["leads"]
        ]

    def ask(self, key: str | None = KEY, **fields: object) -> Answer:
        """One completion through the front port."""
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "ignore_eos": True} | fields
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.front_port}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, response.read(), _lower(response.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), _lower(error.headers))

    def prometheus(self, path: str) -> Any:
        """What Prometheus says to a question."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}{path}", timeout=10) as response:
            return json.load(response)["data"]


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def until(
    condition: Callable[[], bool], seconds: float, why: Callable[[], object] = str, *, every_s: float = 0.1
) -> float:
    """Wait until a condition holds; how long that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, why()
        time.sleep(every_s)
    return time.monotonic() - started
