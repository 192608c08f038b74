"""Pods in the shapes that other projects give them, each with the injector's expected answer.

The shapes follow the manifests of llm-d, KServe, the vLLM production stack, AIBrix and LeaderWorkerSet: the
names of labels, containers and ports, and the start of the engine. Everything else is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from injector.decisions import Reason
from tests.support.pods import pod

Json = dict[str, Any]

LABEL = {"tokenpool.io/inject": "true"}


@dataclass(frozen=True, slots=True)
class Injects:
    """The pod gets a sidecar on this port."""

    engine: str
    """The name of the engine's container."""
    port: int
    exposes_metrics: bool
    notes: frozenset[Reason]
    is_tls: bool = False


@dataclass(frozen=True, slots=True)
class Refuses:
    """The pod is denied."""

    reason: Reason
    words: tuple[str, ...]
    """Parts of the message: the field, and the fix."""


@dataclass(frozen=True, slots=True)
class LeavesAlone:
    """The pod is created without a sidecar."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Shape:
    """One pod and its expected answer."""

    name: str
    pod: Json
    expected: Injects | Refuses | LeavesAlone


def shaped(
    *containers: Json,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Json:
    """A labelled pod with these containers."""
    made = pod(*containers, **spec)
    made["metadata"]["labels"] = {**LABEL, **(labels or {})}
    made["metadata"]["annotations"] = dict(annotations or {})
    return made


def port(number: int, name: str | None = None) -> Json:
    return {"containerPort": number, "protocol": "TCP", **({"name": name} if name else {})}


def probes(number: int | str, **fields: Any) -> Json:
    asked = {"httpGet": {"path": "/health", "port": number, **fields}}
    return {"livenessProbe": asked, "readinessProbe": asked, "startupProbe": asked}


# --- llm-d ---
LLM_D = {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": "Qwen3-32B", "llm-d.ai/role": "decode"}
ROUTING_PROXY = {
    "name": "routing-proxy",
    "image": "ghcr.io/llm-d/llm-d-router-disagg-sidecar:v0.9.0",
    "args": ["--port=8000", "--vllm-port=8200", "--connector=nixlv2"],
    "ports": [port(8000)],
    "restartPolicy": "Always",
}
LLM_D_ENGINE = {
    "name": "vllm",
    "image": "ghcr.io/llm-d/llm-d-cuda:v0.9.0",
    "command": ["vllm", "serve"],
    "args": ["Qwen/Qwen3-32B", "--port", "8000", "--kv-transfer-config", '{"kv_role":"kv_both"}'],
    "ports": [port(8000, "vllm"), port(5557, "nixl")],
    **probes("vllm"),
}
WIDE_EP = """\
# Clear /dev/shm on start
find /dev/shm -type f -delete

START_RANK=$(( ${LWS_WORKER_INDEX:-0} * DP_SIZE_LOCAL ))

exec vllm serve \\
  deepseek-ai/DeepSeek-R1 \\
  --port 8200 \\
  --data-parallel-multi-port-external-lb \\
  --data-parallel-supervisor-port=8208 \\
  --data-parallel-size $((LWS_GROUP_SIZE * DP_SIZE_LOCAL)) \\
  --kv_transfer_config '{"kv_connector":"NixlConnector",
                          "kv_role":"kv_both"}' \\
  --all2all-backend deepep_low_latency
  # To enable tracing, add:
  # --otlp-traces-endpoint http://collector:4317
"""
WIDE_EP_ENGINE = {
    "name": "vllm",
    "image": "ghcr.io/llm-d/llm-d-cuda:v0.9.0",
    "command": ["/bin/bash", "-c"],
    "args": [WIDE_EP],
    "ports": [port(8200 + rank, f"vllm-rank{rank}") for rank in range(8)],
}

# --- KServe ---
KSERVE = {
    "app.kubernetes.io/part-of": "llminferenceservice",
    "kserve.io/component": "workload",
    "llm-d.ai/role": "decode",
}
KSERVE_START = """\
if [ "$KSERVE_INFER_ROCE" = "true" ]; then
  active=()
  for path in /sys/class/infiniband/mlx5_*; do
    name=$(basename "$path")
    if [ -f "$path/ports/1/state" ] && grep -q ACTIVE "$path/ports/1/state" 2>/dev/null; then
      active+=("$name")
    fi
  done
  if [ ${#active[@]} -gt 0 ]; then
    export NCCL_IB_HCA=${NCCL_IB_HCA:-$(IFS=,; echo "${active[*]}")}
  fi
fi
VERSION=$(vllm --version 2>/dev/null | tail -1 | awk '{print $NF}')
if [[ "$VERSION" =~ ^[0-9]+\\.[0-9]+ ]]; then
  LOG_ARGS="--disable-access-log-for-endpoints /health"
fi

eval "exec vllm serve /mnt/models \\
  --served-model-name "chat" "publishers/ns/models/chat" \\
  --port PORT \\
  ${LOG_ARGS} \\
  TLS \\
  ${VLLM_ADDITIONAL_ARGS} \\
  $@"
"""
TLS = """--enable-ssl-refresh \\
  --ssl-certfile /var/run/kserve/tls/tls.crt \\
  --ssl-keyfile /var/run/kserve/tls/tls.key"""
CERTIFICATE = {"name": "tls-certs", "secret": {"secretName": "chat-kserve-self-signed-certs"}}
HOLDS_CERTIFICATE = {"name": "tls-certs", "mountPath": "/var/run/kserve/tls", "readOnly": True}


def kserve(number: int, tls: str = "", **fields: Any) -> Json:
    script = KSERVE_START.replace("PORT", str(number)).replace("TLS", tls)
    return {
        "name": "main",
        "image": "ghcr.io/llm-d/llm-d-cuda:v0.9.0",
        "command": ["/bin/bash", "-c", script, "--"],
        "ports": [port(number)],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sleep", "15"]}}},
        **probes(number, scheme="HTTPS" if tls else "HTTP"),
        **fields,
    }


HUGGING_FACE = {
    "name": "kserve-container",
    "image": "kserve/huggingfaceserver:v0.16.0-gpu",
    "args": ["--model_name=chat", "--model_dir=/mnt/models", "--http_port=8080"],
    "ports": [port(8080, "http1")],
}

VLLM_SERVER = {
    "name": "kserve-container",
    "image": "vllm/vllm-openai:v0.20.0",
    "command": ["python", "-m", "vllm.entrypoints.openai.api_server"],
    "args": ["--port=8080", "--served-model-name=chat", "--model=/mnt/models"],
    "readinessProbe": {"httpGet": {"path": "/v1/models", "port": 8080}},
    "startupProbe": {"httpGet": {"path": "/v1/models", "port": 8080}},
}

# --- the vLLM production stack ---
STACK = {
    "model": "mistral",
    "helm-release-name": "vllm",
    "app.kubernetes.io/component": "serving-engine",
    "app.kubernetes.io/part-of": "vllm-stack",
}
STACK_ENGINE = {
    "name": "vllm",
    "image": "lmcache/vllm-openai:latest",
    "command": ["/opt/venv/bin/vllm", "serve", "mistralai/Mistral-7B", "--host", "0.0.0.0", "--port", "8000"],
    "ports": [port(8000, "container-port"), port(55555, "zmq-port"), port(9999, "ucx-port")],
    **probes(8000),
}
STACK_KEY = {
    "name": "VLLM_API_KEY",
    "valueFrom": {"secretKeyRef": {"name": "vllm-secrets", "key": "vllmApiKey"}},
}

STACK_RAY_HEAD = {
    "name": "vllm-ray-head",
    "image": "vllm/vllm-openai:v0.21.0",
    "command": [
        '/bin/bash -c " cp /entrypoint/vllm-entrypoint.sh $HOME/vllm-entrypoint.sh && chmod +x'
        ' $HOME/vllm-entrypoint.sh && $HOME/vllm-entrypoint.sh & echo started"'
    ],
    "ports": [port(8000, "container-port")],
    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
}

# --- AIBrix ---
AIBRIX = {"model.aibrix.ai/name": "chat", "model.aibrix.ai/port": "8000"}
AIBRIX_ENGINE = {
    "name": "vllm-openai",
    "image": "vllm/vllm-openai:v0.11.0",
    "command": ["vllm", "serve", "--host", "0.0.0.0", "--port", "8000", "--model", "m", "--enable-lora"],
    "ports": [port(8000)],
}
AIBRIX_RUNTIME = {
    "name": "aibrix-runtime",
    "image": "aibrix/runtime:v0.3.0",
    "command": ["aibrix_runtime", "--port", "8080"],
    "env": [{"name": "INFERENCE_ENGINE_ENDPOINT", "value": "http://localhost:8000"}],
    "ports": [port(8080)],
    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
}
RAY_HEAD = {
    "name": "ray-head",
    "image": "aibrix/vllm-openai:v0.7.3",
    "command": ["/bin/bash", "-lc", "--"],
    "args": [
        "ulimit -n 65536; echo head; $KUBERAY_GEN_RAY_START_CMD; vllm serve /models/m"
        " --distributed-executor-backend ray"
    ],
    "ports": [port(6379, "gcs-server"), port(8265, "dashboard"), port(8000, "service")],
    "startupProbe": {"httpGet": {"path": "/metrics", "port": "service"}},
}
RAY_WORKER = {
    "name": "ray-worker",
    "image": "aibrix/vllm-openai:v0.7.3",
    "command": ["/bin/bash", "-lc", "--"],
    "args": ["ulimit -n 65536; echo head; $KUBERAY_GEN_RAY_START_CMD;"],
    "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}},
}
STORM = {
    "name": "prefill",
    "image": "aibrix/vllm-openai:v0.10.0",
    "command": ["sh", "-c"],
    "args": ['vllm serve \\\n  --host "0.0.0.0" \\\n  --port "8000" \\\n  --model /models/m\n'],
}

# --- LeaderWorkerSet ---
_MULTI = "bash /vllm-workspace/examples/online_serving/multi-node-serving.sh"
LWS = {"leaderworkerset.sigs.k8s.io/name": "vllm"}
LWS_LEADER = {
    "name": "vllm-leader",
    "image": "vllm/vllm-openai:v0.11.0",
    "command": [
        "sh",
        "-c",
        f"{_MULTI} leader --ray_cluster_size=$(LWS_GROUP_SIZE);\n python3 -m"
        " vllm.entrypoints.openai.api_server --port 8080 --model m --tensor-parallel-size 8",
    ],
    "ports": [port(8080)],
    "readinessProbe": {"tcpSocket": {"port": 8080}},
}
LWS_WORKER = {
    "name": "vllm-worker",
    "image": "vllm/vllm-openai:v0.11.0",
    "command": ["sh", "-c", f"{_MULTI} worker --ray_address=$(LWS_LEADER_ADDRESS)"],
}
LWS_HEADLESS = {
    "name": "worker",
    "image": "vllm/vllm-openai:v0.11.0",
    "command": ["vllm", "serve", "m", "--headless", "--data-parallel-size", "16"],
}

_ROUTED = frozenset({Reason.METRICS, Reason.ROUTER})
_CHECKED = frozenset({Reason.UNCHECKED, Reason.HOOK})

SHAPES = (
    Shape(
        "llm-d, one engine",
        shaped(LLM_D_ENGINE, labels=LLM_D),
        Injects("vllm", 8000, True, _ROUTED),
    ),
    Shape(
        "llm-d, decode behind the routing proxy",
        shaped(
            {**LLM_D_ENGINE, "args": ["m", "--port=8200"], "ports": [port(8200, "vllm")]},
            labels=LLM_D,
            initContainers=[ROUTING_PROXY],
        ),
        Injects("vllm", 8200, True, _ROUTED),
    ),
    Shape(
        "llm-d, wide expert parallelism with one port per rank",
        shaped(WIDE_EP_ENGINE, labels={**LLM_D, **LWS}, initContainers=[ROUTING_PROXY]),
        Refuses(
            Reason.RANK_PORTS,
            ("container vllm", "--data-parallel-size without --data-parallel-multi-port-external-lb"),
        ),
    ),
    Shape(
        "llm-d, engine with a hook that outlasts the drain",
        shaped({**LLM_D_ENGINE, "lifecycle": {"preStop": {"sleep": {"seconds": 40}}}}, labels=LLM_D),
        Injects("vllm", 8000, True, _ROUTED),
    ),
    Shape(
        "llm-d, inference simulator",
        shaped(
            {
                "name": "vllm-sim",
                "image": "ghcr.io/llm-d/llm-d-inference-sim:v0.11.4",
                "args": ["--model", "Qwen/Qwen3-32B", "--port", "8000"],
                "ports": [port(8000)],
            },
            labels=LLM_D,
        ),
        Refuses(Reason.ENGINE_OPEN, ("container vllm-sim", "tokenpool.io/allow-open-engine")),
    ),
    Shape(
        "KServe, LLMInferenceService",
        shaped(kserve(8000), labels=KSERVE),
        Injects("main", 8000, True, _ROUTED | _CHECKED),
    ),
    Shape(
        "KServe, LLMInferenceService with TLS",
        shaped(kserve(8000, TLS, volumeMounts=[HOLDS_CERTIFICATE]), labels=KSERVE, volumes=[CERTIFICATE]),
        Injects("main", 8000, True, _ROUTED | _CHECKED, is_tls=True),
    ),
    Shape(
        "KServe, decode behind the routing sidecar",
        shaped(
            kserve(8001), labels=KSERVE, initContainers=[{**ROUTING_PROXY, "name": "llm-d-routing-sidecar"}]
        ),
        Injects("main", 8001, True, _ROUTED | _CHECKED),
    ),
    Shape(
        "KServe, worker of a data parallel group",
        shaped(
            {
                **LWS_HEADLESS,
                "command": ["/bin/bash", "-c", 'eval "exec vllm serve m --port 8000 --headless $@"', "--"],
            },
            labels=KSERVE,
        ),
        LeavesAlone(Reason.WORKER),
    ),
    Shape(
        "KServe, InferenceService with the Hugging Face server",
        shaped(HUGGING_FACE, labels={"serving.kserve.io/inferenceservice": "chat"}),
        Refuses(Reason.COMMAND, ("container kserve-container", "annotation tokenpool.io/engine-port")),
    ),
    Shape(
        "KServe, InferenceService with vLLM",
        shaped(VLLM_SERVER, labels={"serving.kserve.io/inferenceservice": "chat"}),
        Injects("kserve-container", 8080, False, frozenset()),
    ),
    Shape(
        "production stack",
        shaped(STACK_ENGINE, labels=STACK),
        Injects("vllm", 8000, True, _ROUTED),
    ),
    Shape(
        "production stack with an API key",
        shaped({**STACK_ENGINE, "env": [STACK_KEY]}, labels=STACK),
        Refuses(
            Reason.ENGINE_KEY,
            ("env VLLM_API_KEY", "annotation tokenpool.io/upstream-key-secret: vllm-secrets/vllmApiKey"),
        ),
    ),
    Shape(
        "production stack with variables from a Secret",
        shaped({**STACK_ENGINE, "envFrom": [{"secretRef": {"name": "hf-token"}}]}, labels=STACK),
        Refuses(Reason.ENGINE_KEY, ("envFrom hf-token", "tokenpool.io/allow-env-from")),
    ),
    Shape(
        "production stack, prefill with the node's processes",
        shaped(STACK_ENGINE, labels=STACK, hostPID=True, hostIPC=True),
        Injects("vllm", 8000, True, _ROUTED),
    ),
    Shape(
        "production stack, head of a Ray cluster",
        shaped(STACK_RAY_HEAD, labels=STACK),
        Refuses(Reason.COMMAND, ("container vllm-ray-head", "annotation tokenpool.io/engine-port")),
    ),
    Shape(
        "AIBrix with its runtime",
        shaped(AIBRIX_ENGINE, AIBRIX_RUNTIME, labels=AIBRIX),
        Injects("vllm-openai", 8000, True, _ROUTED | {Reason.ENGINE_CALLED}),
    ),
    Shape(
        "AIBrix with a key in the command",
        shaped(
            {**AIBRIX_ENGINE, "command": [*AIBRIX_ENGINE["command"], "--api-key", "sk-example"]},
            labels=AIBRIX,
        ),
        Refuses(Reason.ENGINE_KEY, ("--api-key", "tokenpool.io/upstream-key-secret: SECRET/KEY")),
    ),
    Shape(
        "AIBrix, head of a Ray cluster",
        shaped(RAY_HEAD, labels=AIBRIX),
        Injects("ray-head", 8000, True, _ROUTED),
    ),
    Shape("AIBrix, worker of a Ray cluster", shaped(RAY_WORKER, labels=AIBRIX), LeavesAlone(Reason.WORKER)),
    Shape(
        "AIBrix, role of a StormService",
        shaped(STORM, labels=AIBRIX),
        Injects("prefill", 8000, True, _ROUTED),
    ),
    Shape(
        "LeaderWorkerSet, leader",
        shaped(LWS_LEADER, labels=LWS),
        Injects("vllm-leader", 8080, False, frozenset()),
    ),
    Shape("LeaderWorkerSet, worker", shaped(LWS_WORKER, labels=LWS), LeavesAlone(Reason.WORKER)),
    Shape("LeaderWorkerSet, headless worker", shaped(LWS_HEADLESS, labels=LWS), LeavesAlone(Reason.WORKER)),
    Shape(
        "LeaderWorkerSet, one script for leader and workers",
        shaped(
            {
                **LWS_HEADLESS,
                "command": [
                    "bash",
                    "-c",
                    'if [ "$LWS_WORKER_INDEX" = 0 ]; then vllm serve m; else vllm serve m --headless; fi',
                ],
            },
            labels=LWS,
        ),
        Refuses(Reason.COMMAND, ("container worker", "a shell that runs a plain vllm serve")),
    ),
)
