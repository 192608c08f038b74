"""A user's pod, injected by the command that prints patched manifests, and run by podman."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.containers import podman
from tests.e2e.containers.conftest import timed
from tests.e2e.containers.docker_daemon import ROOT, NoEngine
from tests.e2e.containers.podman import Podman
from tests.e2e.containers.stack import IMAGE, Stack, until

NAME = "tokenpool-in-a-pod:1"
POD = f"""\
apiVersion: v1
kind: ConfigMap
metadata: {{name: tokenpool-pool}}
data:
  pool.yaml: |
    pools:
      - name: chat
        models: [tiny]
        replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: auto}}
    entitlements:
      - {{name: search, pool: chat, tier: elastic, api_keys: [search-key]}}
      - name: batch
        pool: chat
        tier: elastic
        ceiling: {{concurrency: 1}}
        api_keys: [batch-key]
---
apiVersion: v1
kind: Pod
metadata:
  name: chat
  labels: {{app: chat, tokenpool.io/inject: "true"}}
spec:
  containers:
    - name: engine
      image: localhost/{NAME}
      command: [loadgen, engine, --host, 0.0.0.0, --port, "8000", --model, tiny]
      ports: [{{name: http, containerPort: 8000}}]
      readinessProbe: {{httpGet: {{path: /health, port: http}}}}
      livenessProbe: {{httpGet: {{path: /health, port: http}}, periodSeconds: 1}}
"""
"""Only the label refers to a sidecar. The engine listens on all addresses."""
PORT, ADMIN_PORT, ENGINE_PORT = 8000, 9090, 18000


@dataclass
class Pod:
    """A running pod."""

    podman: Podman
    address: str

    def ask(self, port: int, path: str, key: str = "", body: object = None) -> tuple[int, dict[str, object]]:
        """The response of a port of the pod. Raises ``ConnectionRefusedError`` without a listener."""
        connection = http.client.HTTPConnection(self.address, port, timeout=30)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            connection.request(
                "GET" if body is None else "POST",
                path,
                None if body is None else json.dumps(body),
                headers | {"content-type": "application/json"},
            )
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether the sidecar is ready."""
        try:
            return self.ask(ADMIN_PORT, "/readyz")[0] == 200
        except OSError:
            return False


def injected(manifest: str) -> str:
    """The output of ``tokenpool-inject`` for podman, which has no native sidecars, and for a single pod."""
    options = ["--native", "false", "--store-secret", "", "--image", f"localhost/{NAME}"]
    command = [sys.executable, "-m", "injector.dry_run", *options]
    done = subprocess.run(command, cwd=ROOT, input=manifest, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def pod(built: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The pod, ready."""
    try:
        with podman.running(tmp_path_factory.mktemp("podman")) as runner:
            runner.take(built.engine.client, IMAGE, NAME)
            with timed("injected pod, from podman play kube until ready"):
                runner("play", "kube", "-", given=injected(POD))
                made = Pod(runner, runner.address("chat"))
                until(made.is_ready, 60, lambda: runner("pod", "logs", "chat"))
            yield made
    except NoEngine as error:
        pytest.skip(f"no podman: {error}")


COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}


def test_the_pods_port_is_answered_by_the_engine_behind_its_sidecar(pod: Pod) -> None:
    status, body = pod.ask(PORT, "/v1/completions", "search-key", COMPLETION)

    assert status == 200, body
    assert body["usage"]["completion_tokens"] == 4  # type: ignore[index]


def test_a_request_without_a_key_is_refused_at_the_pods_port(pod: Pod) -> None:
    assert pod.ask(PORT, "/v1/completions", "no-such-key", COMPLETION)[0] == 401


def test_the_engine_is_reachable_through_the_sidecar_only(pod: Pod) -> None:
    with pytest.raises(ConnectionRefusedError):
        pod.ask(ENGINE_PORT, "/v1/completions", "search-key", COMPLETION)


def test_probes_pass_through_the_sidecar(pod: Pod) -> None:
    for name in ("engine", "tokenpool-sidecar"):
        checked = pod.podman("healthcheck", "run", f"chat-{name}")
        assert "unhealthy" not in checked


def test_the_sidecar_has_the_privileges_of_its_manifest_only(pod: Pod) -> None:
    (sidecar,) = json.loads(pod.podman("inspect", "chat-tokenpool-sidecar"))

    assert sidecar["HostConfig"]["ReadonlyRootfs"]
    assert sidecar["EffectiveCaps"] in (None, [])
    assert sidecar["Config"]["User"].startswith("65532")


def test_the_pod_ends_gracefully(pod: Pod) -> None:
    pod.podman("pod", "stop", "--time", "20", "chat", timeout=60)

    (sidecar,) = json.loads(pod.podman("inspect", "chat-tokenpool-sidecar"))
    assert sidecar["State"]["ExitCode"] == 0
