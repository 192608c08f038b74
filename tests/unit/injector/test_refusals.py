"""Pods that would come out wrong: refused with the field and the fix, or handled; and the opt-outs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import command_line, start
from injector.decisions import Denial, Injection, Reason
from injector.engine_container import is_engine
from injector.patch import apply
from injector.settings import Allow, Template
from injector.sidecar_container import NAME
from tests.support.pods import (
    EXPORTER,
    VLLM,
    Json,
    container,
    decided,
    denial,
    engine,
    injected,
    option,
    pod,
    resolve,
    sidecar,
    warnings,
)


def denied(before: Json, reason: Reason, template: Template | None = None) -> str:
    """The message of a denial for this reason."""
    decision = decided(before, template)
    assert isinstance(decision, Denial), decision
    assert decision.reason == reason
    assert decision.field
    assert decision.fix
    return decision.message


def reasons(before: Json) -> set[Reason]:
    decision = decided(before)
    assert isinstance(decision, Injection), decision
    return {note.reason for note in decision.notes}


# Opting out.
OPT_OUTS: dict[Allow, Json] = {
    Allow.HOST_NETWORK: pod(hostNetwork=True),
    Allow.OWN_SIDECAR: pod(VLLM, {"name": NAME, "image": "tokenpool:1"}),
    Allow.OPEN_ENGINE: pod(engine(image="server:1", command=["serve", "--port", "8000"], args=None)),
    Allow.SECOND_ENGINE: pod(VLLM, engine(name="b", ports=None, args=["m", "--port", "9000"])),
    Allow.EXEC_PROBES: pod(engine(livenessProbe={"exec": {"command": ["probe", "--port=8000"]}})),
    Allow.ENV_FROM: pod(engine(envFrom=[{"secretRef": {"name": "env"}}])),
    Allow.PLAIN_JOB: pod(restartPolicy="Never", annotations={"native": "false"}),
}


@pytest.mark.parametrize("allow", Allow, ids=lambda allow: allow.name)
def test_an_annotation_accepts_a_pod_explicitly_and_the_denial_names_it(allow: Allow) -> None:
    before = OPT_OUTS[allow]
    given = before["metadata"]["annotations"]
    assert f'; or set annotation {allow.annotation}: "true" ' in denial(before)
    assert isinstance(
        decided(
            {**before, "metadata": {**before["metadata"], "annotations": {**given, allow.annotation: "true"}}}
        ),
        Injection,
    )
    assert isinstance(
        decided(
            {
                **before,
                "metadata": {**before["metadata"], "annotations": {**given, allow.annotation: "false"}},
            }
        ),
        Denial,
    )


def test_an_opt_out_is_true_or_false() -> None:
    assert "annotation tokenpool.io/allow-env-from: 'maybe' is neither" in denial(
        pod(annotations={"allow-env-from": "maybe"})
    )


# The options of vLLM in a file.
@pytest.mark.parametrize("option_", [["--config", "/etc/vllm.yaml"], ["--config=/etc/vllm.yaml"]])
def test_the_port_of_an_options_file_is_the_only_declared_one(option_: list[str]) -> None:
    ports = [{"name": "http", "containerPort": 9000}]
    before = pod(engine(args=["m", *option_], ports=ports, livenessProbe={"httpGet": {"port": 9000}}))
    after = injected(before)
    assert resolve(after, "http") == (NAME, 9000)
    assert option(container(after, "vllm")["args"], "--port") == "18000"
    assert "18000" in container(after, "vllm")["livenessProbe"]["exec"]["command"][2]
    assert Reason.UNCHECKED in reasons(before)


def test_the_port_beside_an_options_file_wins() -> None:
    before = pod(
        engine(
            args=["m", "--config", "f", "--port", "8000"],
            ports=[{"containerPort": 8000}, {"containerPort": 5600}],
        )
    )
    assert resolve(injected(before), 8000) == (NAME, 8000)


@pytest.mark.parametrize("ports", [None, [], [{"containerPort": 9000}, {"containerPort": 5600}]])
def test_an_options_file_whose_port_is_not_known_is_refused(ports: list[Json] | None) -> None:
    unknown = engine(args=["m", "--config", "/etc/vllm.yaml"], ports=ports)
    why = denied(pod(unknown), Reason.CONFIG_FILE)
    assert "annotation tokenpool.io/upstream-port" in why
    assert resolve(injected(pod(unknown, annotations={"upstream-port": "9000"})), 9000) == (NAME, 9000)


# One port per rank.
@pytest.mark.parametrize(
    "fields",
    [
        {"args": ["m", "--data-parallel-multi-port-external-lb", "--data-parallel-size", "8"]},
        {"args": ["m", "--data_parallel_multi_port_external_lb"]},
        {
            "args": ["m", "--data-parallel-size=8"],
            "ports": [{"containerPort": 8000 + rank} for rank in range(8)],
        },
        {
            "args": ["m"],
            "ports": [{"containerPort": 8000 + rank, "name": f"rank{rank}"} for rank in range(2)],
        },
        {"command": ["sh", "-c"], "args": ["exec vllm serve m --data-parallel-multi-port-external-lb"]},
    ],
)
def test_one_port_per_rank_is_refused_with_what_to_do(fields: Json) -> None:
    why = denied(pod(engine(**fields)), Reason.RANK_PORTS)
    assert "let one API server balance the ranks" in why
    assert "--data-parallel-rank" in why


@pytest.mark.parametrize(
    "args",
    [
        ["m", "--data-parallel-size", "8"],
        ["m", "--data-parallel-rank", "3", "--data-parallel-external-lb"],
        ["m", "--data-parallel-hybrid-lb"],
    ],
)
def test_ranks_behind_one_port_are_injected(args: list[str]) -> None:
    assert sidecar(injected(pod(engine(args=args))))


def test_a_container_per_rank_is_refused() -> None:
    ranks = [
        engine(
            name=f"rank{rank}",
            args=["m", "--port", str(8000 + rank), "--data-parallel-rank", str(rank)],
            ports=[{"containerPort": 8000 + rank}],
        )
        for rank in range(2)
    ]
    assert "container rank1" in denied(pod(*ranks), Reason.SECOND_ENGINE)


# Workers without an HTTP server.
@pytest.mark.parametrize(
    "fields",
    [
        {"args": ["m", "--headless"]},
        {"args": ["m", "--api-server-count", "0"]},
        {"command": ["vllm", "serve", "m", "--headless"], "args": None},
        {"command": ["bash", "-c"], "args": ["export A=1; exec vllm serve m --headless"]},
        {"command": ["sh", "-c", "ray start --block --address=$(LEADER):6379"], "args": None},
        {"command": ["ray", "start", "--block", "--address=head:6379"], "args": None},
    ],
)
def test_a_worker_stays_unchanged(fields: Json) -> None:
    before = pod(engine(ports=None, **fields), EXPORTER)
    decision = decided(before)
    assert isinstance(decision, Injection)
    assert decision.patch == ()
    assert reasons(before) == {Reason.WORKER}


def test_a_head_of_a_ray_cluster_is_no_worker() -> None:
    head = engine(command=["sh", "-c"], args=["ray start --head; vllm serve m --port 8000"])
    assert sidecar(injected(pod(head)))


def test_an_engine_beside_a_headless_one_is_injected() -> None:
    after = injected(pod(VLLM, engine(name="worker", ports=None, args=["m", "--headless"])))
    assert resolve(after, 8000) == (NAME, 8000)
    assert container(after, "worker")["args"] == ["m", "--headless"]


# The class of the pod.
GUARANTEED = {
    "limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"},
    "requests": {"cpu": "8000m", "memory": "65536Mi"},
}


def is_guaranteed(after: Json) -> bool:
    """Whether Kubernetes gives a pod the class Guaranteed; the quantities are written alike."""
    every = [*after["spec"].get("initContainers", []), *after["spec"]["containers"]]
    sizes = [each.get("resources", {}) for each in every if each["name"] == NAME]
    return all(
        {"cpu", "memory"} <= each["limits"].keys() and each["requests"] == each["limits"] for each in sizes
    )


@pytest.mark.parametrize("native", ["true", "false"])
@pytest.mark.parametrize("resources", [GUARANTEED, {"limits": GUARANTEED["limits"]}])
def test_a_guaranteed_pod_stays_guaranteed(native: str, resources: Json) -> None:
    before = pod(engine(resources=resources), annotations={"native": native})
    assert is_guaranteed(injected(before))
    assert sidecar(injected(before))["resources"]["limits"] == {"cpu": "1", "memory": "512Mi"}
    assert reasons(before) == {Reason.QOS}


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"cpu-limit": "2", "memory-limit": "1Gi"}, {"cpu": "2", "memory": "1Gi"}),
        ({"cpu-request": "500m"}, {"cpu": "500m", "memory": "512Mi"}),
        ({"memory-limit": ""}, {"cpu": "1", "memory": "128Mi"}),
        ({"memory-limit": "", "memory-request": "", "cpu-request": ""}, {"cpu": "1", "memory": "512Mi"}),
    ],
)
def test_the_pod_sizes_the_guaranteed_sidecar(annotations: dict[str, str], expected: Json) -> None:
    after = injected(pod(engine(resources=GUARANTEED), annotations=annotations))
    assert sidecar(after)["resources"] == {"requests": expected, "limits": expected}


@pytest.mark.parametrize(
    ("containers", "spec"),
    [
        ([engine(resources={**GUARANTEED, "requests": {"cpu": "4", "memory": "64Gi"}})], {}),
        ([engine(resources={"limits": {"cpu": "8"}})], {}),
        ([engine(resources=GUARANTEED), EXPORTER], {}),
        ([engine(resources=GUARANTEED)], {"initContainers": [{"name": "load", "image": "busybox:1"}]}),
        ([engine(resources={"limits": {"cpu": "x", "memory": "64Gi"}})], {}),
        ([engine(resources={"limits": {"cpu": "0", "memory": "0"}})], {}),
    ],
)
def test_another_class_gets_the_usual_sizes(containers: list[Json], spec: Json) -> None:
    after = injected(pod(*containers, **spec))
    assert sidecar(after)["resources"] == {
        "requests": {"cpu": "250m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }


def test_a_pod_may_leave_the_class_guaranteed() -> None:
    after = injected(pod(engine(resources=GUARANTEED), annotations={"keep-guaranteed": "false"}))
    assert "cpu" not in sidecar(after)["resources"]["limits"]


def test_resources_of_the_whole_pod_decide_its_class() -> None:
    before = pod(resources={"limits": {"cpu": "9", "memory": "70Gi"}})
    assert sidecar(injected(before))["resources"]["requests"]["cpu"] == "250m"
    assert "spec.resources bounds the whole pod" in warnings(before)


# Commands of probes and hooks.
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["curl", "-f", "http://localhost:8000/health"], ["curl", "-f", "http://127.0.0.1:18000/health"]),
        (
            ["sh", "-c", "curl -sf http://127.0.0.1:8000/v1/models | grep m"],
            ["sh", "-c", "curl -sf http://127.0.0.1:18000/v1/models | grep m"],
        ),
        (["curl", "0.0.0.0:8000/ping"], ["curl", "127.0.0.1:18000/ping"]),
        (["curl", "http://[::1]:8000/health"], ["curl", "http://127.0.0.1:18000/health"]),
        (["nc", "-z", "localhost", "8000"], ["nc", "-z", "127.0.0.1", "18000"]),
        (["bash", "-c", "nc -z localhost 8000"], ["bash", "-c", "nc -z 127.0.0.1 18000"]),
        (
            ["bash", "-c", "exec 3<>/dev/tcp/localhost/8000"],
            ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/18000"],
        ),
        (
            ["python3", "-c", "import socket; socket.create_connection(('localhost', 8000))"],
            ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 18000))"],
        ),
        (["curl", "localhost:80001"], ["curl", "localhost:80001"]),
        (["true"], ["true"]),
    ],
)
@pytest.mark.parametrize("where", ["livenessProbe", "readinessProbe", "startupProbe", "postStart"])
def test_a_command_that_calls_the_engine_follows_it(
    where: str, command: list[str], expected: list[str]
) -> None:
    handler = {"exec": {"command": command}}
    fields: Json = (
        {"lifecycle": {where: handler}} if where == "postStart" else {where: {**handler, "periodSeconds": 3}}
    )
    after = container(injected(pod(engine(**fields))), "vllm")
    made = after["lifecycle"][where] if where == "postStart" else after[where]
    assert made["exec"]["command"] == expected
    assert made.get("periodSeconds") == (None if where == "postStart" else 3)


def test_the_command_of_another_container_follows_the_engine() -> None:
    other = {**EXPORTER, "livenessProbe": {"exec": {"command": ["curl", "localhost:8000/health"]}}}
    after = container(injected(pod(VLLM, other)), "gpu-exporter")
    assert after["livenessProbe"]["exec"]["command"] == ["curl", "127.0.0.1:18000/health"]


@pytest.mark.parametrize(
    ("command", "env"),
    [
        (["curl", "http://$(POD_IP):8000/health"], []),
        (["sh", "-c", "curl http://$(hostname -i):8000/v1/models"], []),
        (["python3", "/probe.py", "--port", "8000"], []),
        (["sh", "-c", "curl http://localhost:${PORT}/health"], [{"name": "PORT", "value": "8000"}]),
        (["sh", "-c", "curl $ENGINE/health"], [{"name": "ENGINE", "value": "http://localhost:8000"}]),
    ],
)
@pytest.mark.parametrize("where", ["livenessProbe", "preStop"])
def test_a_command_that_names_the_port_otherwise_is_refused(
    where: str, command: list[str], env: list[Json]
) -> None:
    handler = {"exec": {"command": command}}
    fields: Json = {"lifecycle": {where: handler}} if where == "preStop" else {where: handler}
    why = denied(pod(engine(env=env, **fields)), Reason.EXEC_PROBE)
    assert f"container vllm: {where}.exec" in why
    assert "http://127.0.0.1:8000/health" in why


def test_a_command_is_kept_where_the_engine_keeps_its_port() -> None:
    probe = {"exec": {"command": ["probe", "--port", "8000"]}}
    after = injected(pod(engine(livenessProbe=probe), annotations={"listen-port": "8080"}))
    assert container(after, "vllm")["livenessProbe"] == probe


def test_a_probe_of_another_container_at_the_engines_port_asks_a_page_without_a_key() -> None:
    probe = {"httpGet": {"path": "/v1/models", "port": 8000}, "periodSeconds": 2}
    before = pod(VLLM, {**EXPORTER, "livenessProbe": probe})
    after = container(injected(before), "gpu-exporter")
    assert after["livenessProbe"] == {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 2}
    assert "it probes /health now" in warnings(before)


# Other engines in the pod.
@pytest.mark.parametrize(
    "other",
    [
        engine(name="b", ports=[{"containerPort": 8001}], args=["m", "--port", "8001"]),
        engine(name="b", ports=None, args=["m", "--host", "0.0.0.0", "--port=8001"]),
        engine(name="b", ports=None, args=["m", "--port=8001", "--data-parallel-address", "127.0.0.1"]),
        engine(name="b", ports=None, args=["m", "--port=8001", "--host=127.0.0.1", "--host", "0.0.0.0"]),
        {
            "name": "b",
            "image": "lmsysorg/sglang:v0.5",
            "command": ["python3", "-m", "sglang.launch_server", "--host", "0.0.0.0"],
        },
        {"name": "b", "image": "ghcr.io/huggingface/text-generation-inference:3"},
        {"name": "b", "image": "x:1", "command": ["text-generation-launcher", "--port", "80"]},
        {"name": "b", "image": "ollama/ollama"},
        {
            "name": "b",
            "image": "nvcr.io/nvidia/tritonserver:25.01-py3",
            "command": ["tritonserver", "--model-repository=/m"],
        },
        {"name": "b", "image": "x:1", "command": ["sh", "-c", "exec vllm serve m --port 8001"]},
        {"name": "b", "image": "x:1", "command": ["sh", "-c", "for m in a b; do vllm serve $m & done; wait"]},
    ],
)
@pytest.mark.parametrize("place", ["containers", "initContainers"])
def test_a_second_engine_is_refused(other: Json, place: str) -> None:
    own = engine(name="a")
    if place == "containers":
        before = pod(own, other, annotations={"container": "a"})
    else:
        before = pod(own, initContainers=[{**other, "restartPolicy": "Always"}])
    assert "container b: it is a second engine" in denied(before, Reason.SECOND_ENGINE)


@pytest.mark.parametrize(
    "other",
    [
        engine(name="b", ports=None, args=["m", "--host", "127.0.0.1", "--port", "8001"]),
        engine(name="b", ports=None, args=["m", "--host=localhost", "--port", "8001"]),
        {"name": "b", "image": "vllm/vllm-openai:v1", "command": ["python3", "download.py"]},
        {"name": "b", "image": "lmcache/vllm-router:1", "args": ["--port", "80"]},
        EXPORTER,
    ],
)
def test_another_container_that_serves_no_client_is_accepted(other: Json) -> None:
    before = pod(engine(name="a"), other, annotations={"container": "a"})
    assert container(injected(before), other["name"]) == other


def test_an_engine_that_loads_a_model_and_ends_is_accepted() -> None:
    assert injected(pod(initContainers=[{**VLLM, "name": "warm-up", "ports": []}]))


def test_a_caller_of_the_old_port_is_told_that_it_needs_a_key() -> None:
    runtime = {
        "name": "runtime",
        "image": "r:1",
        "env": [{"name": "ENGINE", "value": "http://localhost:8000"}],
    }
    assert "container runtime calls localhost:8000, where the sidecar is now" in warnings(pod(VLLM, runtime))


def test_an_engine_that_a_later_webhook_adds_is_refused_at_the_second_review() -> None:
    after = injected(pod())
    assert decided(after) == Injection()
    after["spec"]["containers"].append(engine(name="late", args=["m", "--port", "8001"], ports=None))
    assert "container late" in denied(after, Reason.SECOND_ENGINE)
    after["spec"]["containers"].pop()
    after["spec"]["hostNetwork"] = True
    assert "spec.hostNetwork" in denied(after, Reason.HOST_NETWORK)


@pytest.mark.parametrize("args", [["m", "--port", "18000"], ["m", "--host", "127.0.0.1", "--host=0.0.0.0"]])
def test_an_engine_that_a_later_webhook_opens_is_refused_at_the_second_review(args: list[str]) -> None:
    after = injected(pod())
    container(after, "vllm")["args"] = args
    assert "--host 127.0.0.1" in denied(after, Reason.ENGINE_OPEN)
    after["metadata"]["annotations"][Allow.OPEN_ENGINE.annotation] = "true"
    assert decided(after) == Injection()


# The engine's own key.
KEY_OF = {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "engine", "key": "token"}}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"args": ["m", "--api-key", "sk"]},
            ("--api-key", "put the key into a Secret", "upstream-key-secret: SECRET/KEY"),
        ),
        ({"args": ["m", "--api_key=sk"]}, ("--api-key",)),
        ({"command": ["sh", "-c"], "args": ["vllm serve m --api-key $KEY"]}, ("--api-key",)),
        (
            {"env": [{"name": "VLLM_API_KEY", "value": "sk"}]},
            ("env VLLM_API_KEY", "put the key into a Secret"),
        ),
        ({"env": [KEY_OF]}, ("env VLLM_API_KEY", "upstream-key-secret: engine/token")),
        (
            {"envFrom": [{"secretRef": {"name": "engine-env"}}]},
            ("envFrom engine-env", "upstream-key-secret: engine-env/VLLM_API_KEY"),
        ),
        ({"envFrom": [{"prefix": "VLLM_", "secretRef": {"name": "engine-env"}}]}, ("envFrom engine-env",)),
    ],
)
def test_a_key_that_the_sidecar_does_not_have_is_refused(fields: Json, words: tuple[str, ...]) -> None:
    why = denied(pod(engine(**fields)), Reason.ENGINE_KEY)
    assert all(each in why for each in words), why


@pytest.mark.parametrize(
    "fields",
    [
        {"env": [{"name": "VLLM_API_KEY", "value": ""}]},
        {"env": [{"name": "VLLM_API_KEY"}], "envFrom": [{"secretRef": {"name": "env"}}]},
        {"envFrom": [{"prefix": "HF_", "secretRef": {"name": "hf"}}]},
        {"envFrom": [{"configMapRef": {"name": "settings"}}]},
    ],
)
def test_no_key_is_accepted(fields: Json) -> None:
    assert injected(pod(engine(**fields)))


def test_the_sidecar_reads_one_key_of_a_secret() -> None:
    after = injected(pod(engine(env=[KEY_OF]), annotations={"upstream-key-secret": "engine/token"}))
    assert {
        "name": "tokenpool-upstream-key",
        "secret": {"secretName": "engine", "items": [{"key": "token", "path": "api-key"}]},
    } in after["spec"]["volumes"]
    assert option(sidecar(after)["args"], "--upstream-key-file") == "/etc/tokenpool/upstream/api-key"


# Jobs.
def of_a_job() -> Json:
    made = pod()
    made["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "nightly"}]
    return made


@pytest.mark.parametrize(
    "before",
    [
        pod(restartPolicy="Never"),
        pod(restartPolicy="OnFailure"),
        of_a_job(),
        pod(restartPolicy="Never", shareProcessNamespace=True),
    ],
)
def test_a_plain_sidecar_in_a_job_is_refused(before: Json) -> None:
    assert 'tokenpool.io/native: "true"' in denied(before, Reason.PLAIN_JOB, Template(native=False))
    assert sidecar(injected(before))["restartPolicy"] == "Always"


# TLS.
CERTIFIED: Json = {
    "args": [
        "m",
        "--ssl-certfile",
        "/tls/tls.crt",
        "--ssl-keyfile=/tls/tls.key",
        "--enable-ssl-refresh",
        "--ssl-ciphers",
        "x",
    ],
    "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
    "livenessProbe": {"httpGet": {"path": "/health", "port": 8000, "scheme": "HTTPS"}},
    "startupProbe": {"exec": {"command": ["curl", "-k", "https://localhost:8000/health"]}},
}


def certified(volume: Json | None = None, **fields: Any) -> Json:
    volumes = [{"name": "tls", **(volume or {"secret": {"secretName": "engine-tls"}})}]
    return pod(engine(**{**CERTIFIED, **fields}), volumes=volumes)


def test_the_sidecar_takes_the_engines_certificate_over() -> None:
    after = injected(certified())
    made = sidecar(after)
    assert option(made["args"], "--tls-cert") == "/tls/tls.crt"
    assert option(made["args"], "--tls-key") == "/tls/tls.key"
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in made["volumeMounts"]
    assert container(after, "vllm")["args"] == ["m", "--host", "127.0.0.1", "--port", "18000"]
    assert container(after, "vllm")["startupProbe"]["exec"]["command"] == [
        "curl",
        "-k",
        "http://127.0.0.1:18000/health",
    ]
    assert (
        "HTTPConnection('127.0.0.1', 18000" in container(after, "vllm")["livenessProbe"]["exec"]["command"][2]
    )


def test_a_probe_through_a_sidecar_with_tls_speaks_tls() -> None:
    before = certified()
    before["metadata"]["annotations"]["tokenpool.io/engine-probes"] = "sidecar"
    assert container(injected(before), "vllm")["livenessProbe"]["httpGet"] == {
        "path": "/health",
        "port": 8000,
        "scheme": "HTTPS",
    }


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (certified({"secret": {"secretName": "s", "defaultMode": 0o400}}), "set its defaultMode to 0444"),
        (certified(volumeMounts=[]), "/tls/tls.crt is in no volume"),
        (certified(args=["m", "--ssl-certfile", "/tls/a"]), "certificate and key are not both known"),
        (
            certified(args=[*CERTIFIED["args"], "--ssl-ca-certs", "/tls/ca.crt"]),
            "does not verify certificates of clients",
        ),
        (
            certified(image="x:1", command=["serve"], args=["--port=8000", *CERTIFIED["args"]]),
            "only vLLM's TLS options",
        ),
    ],
)
def test_a_certificate_that_the_sidecar_cannot_serve_is_refused(before: Json, words: str) -> None:
    assert words in denied(before, Reason.TLS)


@pytest.mark.parametrize("spec", [{"securityContext": {"fsGroup": 2000}}])
def test_a_group_of_the_pod_may_read_the_certificate(spec: Json) -> None:
    before = certified({"secret": {"secretName": "s", "defaultMode": 0o440}})
    before["spec"] |= spec
    assert sidecar(injected(before))
    assert Reason.TLS not in reasons(before)


def test_a_volume_of_unknown_modes_is_warned_of() -> None:
    assert "volume tls: the sidecar's user must be able to read /tls/tls.crt" in warnings(
        certified({"csi": {"driver": "d"}})
    )


def test_tls_options_that_cannot_be_cut_out_of_a_script_are_refused() -> None:
    shell = certified(command=["sh", "-c", 'vllm serve m "$@"', "--"])
    assert "written" in denied(shell, Reason.COMMAND) or "list of words" in denied(shell, Reason.COMMAND)


# Options that nobody knows.
def test_words_that_only_the_shell_knows_are_warned_of() -> None:
    shell = engine(command=["sh", "-c"], args=["vllm serve m $MORE"])
    assert "options in $MORE cannot be checked" in warnings(pod(shell))
    known = engine(
        command=["sh", "-c"],
        args=["vllm serve m $MORE"],
        env=[{"name": "MORE", "value": "--port 9000 --x"}],
        ports=None,
    )
    assert warnings(pod(known)) == ""
    assert resolve(injected(pod(known)), 9000) == (NAME, 9000)


def test_the_port_may_be_a_variable() -> None:
    named = engine(args=["m", "--port", "$(PORT)"], env=[{"name": "PORT", "value": "9000"}], ports=None)
    assert resolve(injected(pod(named)), 9000) == (NAME, 9000)


# Warnings.
def test_warnings_are_written_on_the_pod_because_its_owner_does_not_see_them() -> None:
    after = injected(
        pod(engine(resources=GUARANTEED, lifecycle={"preStop": {"exec": {"command": ["true"]}}}))
    )
    said = after["metadata"]["annotations"]["tokenpool.io/warnings"].splitlines()
    assert len(said) == 2
    assert said[0].startswith("container vllm: its preStop hook may end")
    assert decided(after) == Injection()


# No pod comes out open.
COMMANDS = st.sampled_from(
    [
        {"args": ["m"]},
        {"args": ["m", "--host", "127.0.0.1", "--port", "8001"]},
        {"args": ["m", "--port", "8001"]},
        {"args": ["m", "--headless"]},
        {"args": ["m", "--config", "f"]},
        {"command": ["sh", "-c"], "args": ["exec vllm serve m --port 8001 | tee log"]},
        {"command": ["sh", "-c"], "args": ["if true; then vllm serve m; fi"]},
        {"command": ["sh", "-c", "vllm serve a & vllm serve b"], "args": None},
        {"command": ["python3", "-m", "sglang.launch_server", "--port", "8001"], "args": None},
        {"command": ["server"], "args": ["--port", "8000", "--host", "::"]},
        {"command": ["/start.sh"], "args": None},
        {"command": ["sleep", "1"], "args": None, "image": "busybox:1"},
    ]
)


@st.composite
def several_engines(draw: st.DrawFn) -> Json:
    """Pods of up to three containers that start something, as native sidecars too."""
    every = []
    for index, fields in enumerate(draw(st.lists(COMMANDS, min_size=1, max_size=3))):
        port = 8000 if index == 0 else 8100 + index
        ports = [{"containerPort": port}] if draw(st.booleans()) else None
        every.append(engine(name=f"c{index}", ports=ports, **fields))
    late = [{**each, "restartPolicy": "Always"} for each in every[1:] if draw(st.booleans())]
    main = [each for each in every if each["name"] not in {one["name"] for one in late}]
    flags = st.fixed_dictionaries(
        {}, optional={name: st.booleans() for name in ("hostNetwork", "hostPID", "shareProcessNamespace")}
    )
    return pod(*main, initContainers=late, **draw(flags))


def is_open(container: Json) -> bool:
    """Whether a container certainly serves clients of the pod's address."""
    words = start.read(container).words
    serves = is_engine(container) or any("vllm serve" in word for word in words)
    return serves and not (command_line.is_headless(words) or command_line.is_on_the_loopback(words))


@given(before=several_engines())
def test_no_engine_of_an_injected_pod_is_open_and_no_other_pod_has_one(before: Json) -> None:
    decision = decided(before)
    if isinstance(decision, Denial):
        assert decision.field
        assert decision.fix
        return
    after = apply(before, decision.patch)
    every = [*after["spec"].get("initContainers", []), *after["spec"]["containers"]]
    assert not after["spec"].get("hostNetwork")
    assert not [each["name"] for each in every if is_open(each)]
    assert decided(after) == Injection() or not decision.patch


def test_a_port_that_is_declared_and_probed_is_the_services() -> None:
    asked = {"httpGet": {"path": "/health", "port": "web"}}
    ports = [{"name": "web", "containerPort": 9000}, {"name": "nixl", "containerPort": 5600}]
    before = pod(
        engine(args=["m"], ports=ports, livenessProbe=asked, readinessProbe=asked, startupProbe=None)
    )
    assert resolve(injected(before), "web") == (NAME, 9000)


@pytest.mark.parametrize(
    ("labels", "alone"),
    [({}, True), ({"ray.io/node-type": "worker"}, True), ({"ray.io/node-type": "head"}, False)],
)
def test_the_head_that_kuberay_starts_is_no_worker(labels: dict[str, str], alone: bool) -> None:
    before = pod(
        engine(command=["bash", "-lc", "--"], args=["ulimit -n 9; $KUBERAY_GEN_RAY_START_CMD"], ports=None)
    )
    before["metadata"]["labels"] |= labels
    assert isinstance(decided(before), Injection) == alone


def test_a_head_on_several_lines_is_no_worker() -> None:
    head = engine(command=["sh", "-c"], args=["ray start \\\n --head --dashboard-host=0.0.0.0"], ports=None)
    assert "container vllm" in denied(pod(head), Reason.COMMAND)


def test_the_name_of_another_host_is_not_the_loopback() -> None:
    probe = {"exec": {"command": ["curl", "http://mylocalhost:8000/health"]}}
    assert denied(pod(engine(livenessProbe=probe)), Reason.EXEC_PROBE)


def test_a_prefix_is_not_part_of_the_key_in_a_secret() -> None:
    keyed = engine(envFrom=[{"prefix": "VLLM_", "secretRef": {"name": "s"}}])
    assert "upstream-key-secret: s/API_KEY" in denied(pod(keyed), Reason.ENGINE_KEY)


@pytest.mark.parametrize(
    ("option_", "reason"),
    [
        ("--api-key x", Reason.ENGINE_KEY),
        ("--api_key=x", Reason.ENGINE_KEY),
        ("--uds /s", Reason.SOCKET),
        ("--ssl-keyfile k", Reason.TLS),
        ("--data-parallel-multi-port-external-lb", Reason.RANK_PORTS),
    ],
)
def test_a_script_that_is_accepted_unread_is_searched_for_options(option_: str, reason: Reason) -> None:
    script = f"for m in a; do vllm serve $m --port 18000 {option_}; done"
    told = {"engine-port": "18000"}
    denied(pod(engine(command=["sh", "-c"], args=[script]), annotations=told), reason)
    comment = f"# {option_}\n{script.replace(option_, '--api-keys')}"
    assert injected(pod(engine(command=["sh", "-c"], args=[comment]), annotations=told))
