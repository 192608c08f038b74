"""compose.yaml under test, with stand-in images: start, state, failures and removal."""

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

from tests.e2e.containers import standins
from tests.e2e.containers.docker_daemon import ContainerEngine
from toolbox.ports import free_port

PROJECT = "tokenpooltest"
IMAGE = "tokenpool:local"
"""The name of this project's image in compose.yaml."""
PARTS = (
    *("redis", "coordinator-1", "coordinator-2", "pod-1", "pod-2"),
    *("engine-1", "engine-2", "sidecar-1", "sidecar-2", "front", "prometheus"),
)
"""All services but Grafana, which Debian does not have, and loadgen, which runs separately."""
BUILD_S, UP_S, READY_S, DOWN_S = 900, 180, 420, 180
KEY = "checkout-key"


@dataclass
class Answer:
    """A response of the front port."""

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
    """A compose file that mounts an installed vLLM; ``None`` builds the engines' image."""
    front_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        """The variables for images and ports. All others have their defaults."""
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
        """Run docker-compose on the project, and return its output."""
        files = ["compose.yaml"] if self.lent is None else ["compose.yaml", str(self.lent)]
        named = [part for file in files for part in ("--file", file)]
        return self.engine.compose(*named, *arguments, environment=self.environment, timeout=timeout)

    def build(self) -> None:
        """Build all needed images: that of sidecar, coordinator and loadgen, and that of the engine.

        The first is compiled as for users, but without optimizations, which takes less time.
        """
        self.compose("build", "--build-arg", "OPTIMIZE=0", "pod-1", timeout=BUILD_S)
        if self.lent is None:
            self.compose("build", "engine-1", timeout=BUILD_S)

    def up(self) -> None:
        """Start every part, and wait until all are healthy."""
        self.compose("up", "--detach", "--no-build", *PARTS, timeout=UP_S)
        self.until_healthy(*PARTS)

    def down(self) -> None:
        """Remove all containers, networks and volumes."""
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
        """The last result of a service's health check."""
        state = self.container(service).attrs["State"]
        return str(state["Health"]["Status"]) if state["Running"] else str(state["Status"])

    def until_healthy(self, *services: str) -> None:
        """Wait for services. The text of a failure has the state of all services."""
        until(lambda: all(map(self.is_healthy, services)), READY_S, self.state, every_s=1.0)

    def is_healthy(self, service: str) -> bool:
        """Whether the last health check succeeded."""
        return self.health(service) == "healthy"

    def state(self) -> str:
        """The state of every service, with the last log lines of unhealthy ones."""
        lines = []
        for service in PARTS:
            health = self.health(service)
            lines.append(f"{service}: {health}")
            if health != "healthy":
                lines.append(self.container(service).logs(tail=15).decode(errors="replace"))
                checks = self.container(service).attrs["State"].get("Health", {}).get("Log") or [{}]
                lines.append(str(checks[-1].get("Output")))
        return "\n".join(lines)

    def address(self, service: str, network: str = "store") -> str:
        """The address of a service on one of the networks, reachable from this machine."""
        networks = self.container(service).attrs["NetworkSettings"]["Networks"]
        return str(networks[f"{PROJECT}_{network}"]["IPAddress"])

    def page(self, service: str, port: int, path: str) -> Any:
        """A JSON page of a service's admin port, which is not published."""
        with urllib.request.urlopen(f"http://{self.address(service)}:{port}{path}", timeout=5) as response:
            return json.load(response)

    def is_ready(self, service: str, port: int) -> bool:
        """Whether a service is ready now."""
        try:
            return bool(self.page(service, port, "/readyz"))
        except (urllib.error.URLError, OSError):
            return False

    def leaders(self, *coordinators: str) -> list[str]:
        """The coordinators that lead."""
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
        """The result of a Prometheus query."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}{path}", timeout=10) as response:
            return json.load(response)["data"]


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def until(
    condition: Callable[[], bool], seconds: float, why: Callable[[], object] = str, *, every_s: float = 0.1
) -> float:
    """Wait until a condition holds, and return the seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, why()
        time.sleep(every_s)
    return time.monotonic() - started
