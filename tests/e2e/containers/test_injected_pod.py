"""A user's pod, injected by the command that prints patched manifests, and run by podman.

It runs in both forms, with a native sidecar and with a plain one. Two other parties read it: the endpoint
picker of the Gateway API's inference extension, and the kubelet (``kubelet.py``).
"""

from __future__ import annotations

import functools
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from injector.sidecar_container import NAME as SIDECAR
from tests.e2e.containers import podman
from tests.e2e.containers.conftest import timed
from tests.e2e.containers.docker_daemon import ROOT, NoEngine
from tests.e2e.containers.kubelet import Json, Kubelet, for_podman
from tests.e2e.containers.podman import Podman
from tests.e2e.containers.stack import IMAGE, Stack, until

NAME = "tokenpool-in-a-pod:1"
CONFIG = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: tokenpool-pool}
data:
  pool.yaml: |
    pools:
      - name: chat
        models: [tiny]
        replica: {tokens_per_second: auto, kv_tokens: auto, concurrency: auto}
    entitlements:
      - {name: search, pool: chat, tier: elastic, api_keys: [search-key]}
"""
POD = f"""\
apiVersion: v1
kind: Pod
metadata:
  name: chat
  labels: {{app: chat, llm-d.ai/engine-type: vllm, tokenpool.io/inject: "true"}}
  annotations: {{tokenpool.io/drain-delay: "2", tokenpool.io/handover: "off"}}
spec:
  containers:
    - name: engine
      image: localhost/{NAME}
      command: [python3, -m, loadgen, engine]
      args: [--host, 0.0.0.0, --port, "8000", --model, tiny, --max-loras, "4", --step, "0.05"]
      ports: [{{name: http, containerPort: 8000}}]
      startupProbe: {{httpGet: {{path: /health, port: http}}, failureThreshold: 60}}
      readinessProbe: {{httpGet: {{path: /health, port: http}}}}
      livenessProbe: {{httpGet: {{path: /health, port: http}}, periodSeconds: 1}}
"""
"""A pod of an InferencePool. Only the label refers to a sidecar. The engine listens on all addresses."""
PORT, ADMIN_PORT, ENGINE_PORT = 8000, 9090, 18000
FORMS = {"native": "true", "plain": "false"}
"""The value of ``--native`` for each form."""
TOKENS = 200
"""The length of a stream that a pod's end must not cut: 10 s, much longer than the drain delay."""
COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}


@dataclass
class Answer:
    """A response of a port of the pod."""

    status: int
    body: bytes


@dataclass
class Pod:
    """A running pod."""

    kubelet: Kubelet

    @property
    def podman(self) -> Podman:
        """The podman that runs it."""
        return self.kubelet.podman

    def ask(self, port: int, path: str, key: str = "", body: object = None) -> Answer:
        """The response of a port of the pod. Raises ``ConnectionRefusedError`` without a listener."""
        connection = http.client.HTTPConnection(self.kubelet.address, port, timeout=30)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            connection.request(
                "GET" if body is None else "POST",
                path,
                None if body is None else json.dumps(body),
                headers | {"content-type": "application/json"},
            )
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether every container is ready."""
        return all(
            self.kubelet.succeeds(each["name"], "readinessProbe") for each in self.kubelet.containers()
        )

    def samples(self) -> Mapping[str, list[tuple[Mapping[str, str], float]]]:
        """The labels and values of each metric on the pod's port, which is read without a key."""
        page = self.ask(PORT, "/metrics")
        assert page.status == 200, page.body
        return {
            family.name: [(each.labels, each.value) for each in family.samples]
            for family in text_string_to_metric_families(page.body.decode())
        }

    def container(self, name: str) -> str:
        """Podman's name of a container."""
        return f"{self.kubelet.pod['metadata']['name']}-{name}"


@dataclass
class Stream:
    """A stream through the pod's port, read in a thread."""

    pod: Pod
    tokens: int = TOKENS
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        connection = http.client.HTTPConnection(self.pod.kubelet.address, PORT, timeout=60)
        body = COMPLETION | {"stream": True, "max_tokens": self.tokens}
        headers = {"authorization": "Bearer search-key", "content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self.lines += connection.getresponse()
        connection.close()

    def has_begun(self) -> bool:
        """Whether the first token is there."""
        return len(self.lines) > 0

    def data(self) -> list[bytes]:
        """All events, at its end."""
        self._thread.join(90)
        return [line.removeprefix(b"data: ").strip() for line in self.lines if line.startswith(b"data: ")]


def injected(form: str) -> Json:
    """The output of ``tokenpool-inject`` for a lone pod."""
    options = ["--native", FORMS[form], "--store-secret", "", "--image", f"localhost/{NAME}"]
    command = [sys.executable, "-m", "injector.dry_run", *options]
    given = POD.replace("name: chat\n", f"name: chat-{form}\n")
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=True)
    made: Json = yaml.safe_load(done.stdout)
    return made


def started(runner: Podman, form: str) -> Pod:
    """The pod in one form, which is not ready yet."""
    pod = injected(form)
    documents = [yaml.safe_load(CONFIG), for_podman(pod)]
    runner("play", "kube", "-", given=yaml.safe_dump_all(documents))
    return Pod(Kubelet(runner, pod, runner.address(f"chat-{form}")))


@pytest.fixture(scope="module")
def pods(built: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Pod]]:
    """The pod in both forms, ready."""
    try:
        with podman.running(tmp_path_factory.mktemp("podman")) as runner:
            with timed("image copied to podman"):
                runner.take(built.engine.client, IMAGE, NAME)
            made: dict[str, Pod] = {}
            with timed("injected pods, from podman play kube until ready"):
                for form in FORMS:
                    made[form] = started(runner, form)
                for form, pod in made.items():
                    until(pod.is_ready, 120, functools.partial(runner, "pod", "logs", f"chat-{form}"))
            yield made
    except NoEngine as error:
        pytest.skip(f"no podman: {error}")


@pytest.fixture(params=FORMS)
def pod(request: pytest.FixtureRequest, pods: Mapping[str, Pod]) -> Pod:
    """The pod in one of the forms."""
    return pods[request.param]


# --- requests ---
def test_the_pods_port_is_answered_by_the_engine_behind_its_sidecar(pod: Pod) -> None:
    answer = pod.ask(PORT, "/v1/completions", "search-key", COMPLETION)

    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 4


def test_a_request_without_a_key_is_refused_at_the_pods_port(pod: Pod) -> None:
    assert pod.ask(PORT, "/v1/completions", "no-such-key", COMPLETION).status == 401
    assert pod.ask(PORT, "/v1/completions", body=COMPLETION).status == 401


def test_the_engine_is_reachable_through_the_sidecar_only(pod: Pod) -> None:
    with pytest.raises(ConnectionRefusedError):
        pod.ask(ENGINE_PORT, "/v1/completions", "search-key", COMPLETION)


def test_the_sidecar_has_the_privileges_of_its_manifest_only(pod: Pod) -> None:
    (sidecar,) = json.loads(pod.podman("inspect", pod.container(SIDECAR)))

    assert sidecar["HostConfig"]["ReadonlyRootfs"]
    assert sidecar["EffectiveCaps"] in (None, [])
    assert sidecar["Config"]["User"].startswith("65532")


# --- the endpoint picker of the inference extension ---
def test_the_metrics_of_the_model_server_protocol_are_on_the_pods_port(pod: Pod) -> None:
    """The gauges that llm-d's router v0.10.0 reads for an engine of the type vllm."""
    samples = pod.samples()

    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        ((labels, _),) = samples[f"vllm:{name}"]
        assert labels["model_name"] == "tiny"
    ((cache, _),) = samples["vllm:cache_config_info"]
    assert int(cache["block_size"]) * int(cache["num_gpu_blocks"]) > 0
    ((loras, updated_at),) = samples["vllm:lora_requests_info"]
    assert loras == {"max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert updated_at > 0


def test_the_metrics_follow_the_engine(pod: Pod) -> None:
    stream = Stream(pod, tokens=40)
    until(stream.has_begun, 30)
    samples = pod.samples()
    assert samples["vllm:num_requests_running"][0][1] >= 1
    assert samples["vllm:kv_cache_usage_perc"][0][1] > 0
    assert stream.data()[-1] == b"[DONE]"


def test_models_are_listed_without_a_key_and_nothing_else_is_served(pod: Pod) -> None:
    models = pod.ask(PORT, "/v1/models")
    assert [each["id"] for each in json.loads(models.body)["data"]] == ["tiny"]
    assert pod.ask(PORT, "/v1/load_lora_adapter", body={"lora_name": "x"}).status == 404
    assert pod.ask(PORT, "/tokenize", body={"prompt": "hello"}).status == 401
    assert pod.ask(PORT, "/engine/metrics").status == 404


# --- the kubelet ---
def test_every_probe_succeeds_as_the_kubelet_asks_it(pod: Pod) -> None:
    for each in pod.kubelet.containers():
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert pod.kubelet.succeeds(each["name"], name), (each["name"], name)


def test_a_pod_ends_after_its_streams(pod: Pod) -> None:
    """The last test of a pod: the hooks drain the sidecar, while its engine goes on."""
    kubelet, stream = pod.kubelet, Stream(pod)
    until(stream.has_begun, 30)
    end = threading.Thread(target=kubelet.end)
    end.start()
    # Services remove the pod a little later, so new requests are still accepted.
    assert pod.ask(PORT, "/v1/completions", "search-key", COMPLETION).status == 200
    until(lambda: not kubelet.succeeds(SIDECAR, "readinessProbe"), 30)
    assert not kubelet.succeeds("engine", "readinessProbe")
    assert len(stream.lines) < 2 * TOKENS, "the sidecar began to drain too late to see it"
    data = stream.data()
    end.join(120)

    assert data[-1] == b"[DONE]"
    assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
    assert (kubelet.exit_code(SIDECAR), kubelet.exit_code("engine")) == (0, 0)
    steps = kubelet.events
    assert steps.index((SIDECAR, "hook ended")) < steps.index(("engine", "hook ended")), steps
    first, last = (
        (("engine", "ended"), (SIDECAR, "SIGTERM"))
        if pod.kubelet.pod["spec"].get("initContainers")
        else ((SIDECAR, "SIGTERM"), ("engine", "hook ended"))
    )
    assert steps.index(first) < steps.index(last), steps
