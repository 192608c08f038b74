"""The two commands, as processes: the webhook, and the dry run over real manifests."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from injector.dry_run import injected as injected_document
from injector.settings import Template
from injector.sidecar_container import NAME
from injector.templates import templates
from tests.support.pods import container, pod

DEPLOYMENT = """\
apiVersion: v1
kind: Service
metadata: {name: vllm}
spec: {ports: [{port: 80, targetPort: http}], selector: {app: vllm}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: vllm}
spec:
  selector: {matchLabels: {app: vllm}}
  template:
    metadata:
      labels: {app: vllm, tokenpool.io/inject: "true"}
    spec:
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.11.0
          args: [Qwen/Qwen3-0.6B]
          ports: [{name: http, containerPort: 8000}]
"""
CRON = {
    "kind": "CronJob",
    "metadata": {"name": "nightly"},
    "spec": {
        "jobTemplate": {"spec": {"template": {k: v for k, v in pod().items() if k in ("metadata", "spec")}}}
    },
}


def inject(text: str, *options: str, **environment: str) -> tuple[int, list[Any], str]:
    """The exit status of a dry run, the documents that it printed, and what it said of them."""
    done = subprocess.run(
        [sys.executable, "-m", "injector.dry_run", *options],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, list(yaml.safe_load_all(done.stdout)), done.stderr


def test_a_deployment_comes_out_patched_and_the_rest_as_it_was() -> None:
    status, (service, deployment), said = inject(DEPLOYMENT, "--image", "tokenpool:1", TOKENPOOL_POOL="chat")
    assert (status, said) == (0, "")
    assert service == next(yaml.safe_load_all(DEPLOYMENT))
    template = deployment["spec"]["template"]
    made = container(template, NAME)
    assert made["image"] == "tokenpool:1"
    assert made["args"][made["args"].index("--pool") + 1] == "chat"
    assert template["metadata"]["annotations"] == {"tokenpool.io/status": "injected"}


def test_a_second_injection_changes_nothing() -> None:
    _, first, _ = inject(DEPLOYMENT)
    status, second, _ = inject(yaml.safe_dump_all(first))
    assert (status, second) == (0, first)


def test_a_pod_and_a_cron_job_are_patched() -> None:
    _, (made, cron), _ = inject(yaml.safe_dump_all([pod(), CRON]))
    assert container(made, NAME)
    assert container(cron["spec"]["jobTemplate"]["spec"]["template"], NAME)


def test_a_list_comes_out_as_documents() -> None:
    whole = {"kind": "List", "items": list(yaml.safe_load_all(DEPLOYMENT))}
    assert inject(yaml.safe_dump(whole))[1] == inject(DEPLOYMENT)[1]


def test_pods_without_the_label_are_patched_when_asked_for() -> None:
    text = DEPLOYMENT.replace(', tokenpool.io/inject: "true"', "")
    _, (_, untouched), said = inject(text)
    _, (_, patched), _ = inject(text, "--every-pod")
    assert untouched == list(yaml.safe_load_all(text))[1]
    assert 'nothing to do: no pod without a sidecar has the label tokenpool.io/inject: "true"' in said
    assert container(patched["spec"]["template"], NAME)


def test_templates_of_other_objects_pass() -> None:
    other = {"kind": "MachineDeployment", "spec": {"template": {"spec": {"version": "1"}}}}
    status, documents, _ = inject(yaml.safe_dump_all([other, None, {"kind": "Namespace"}]))
    assert (status, documents) == (0, [other, None, {"kind": "Namespace"}])


def test_warnings_are_printed_beside_the_manifest() -> None:
    accepted = pod(hostNetwork=True, annotations={"allow-host-network": "true"})
    status, _, said = inject(yaml.safe_dump(accepted))
    assert status == 0
    assert "tokenpool-inject: warning: tokenpool: not injected: a pod with hostNetwork" in said


@pytest.mark.parametrize(
    ("text", "options", "status", "words"),
    [
        ("a: [", (), 2, "tokenpool-inject: while parsing"),
        ("{kind: Pod}", (), 2, "not a pod: "),
        (DEPLOYMENT, ("--admin-port", "x"), 2, "--admin-port: 'x' is not a port"),
        (
            DEPLOYMENT.replace("args:", "command: [sh, /start.sh]\n          args:"),
            (),
            1,
            "denied: vllm: tokenpool: ",
        ),
    ],
)
def test_errors_are_named(text: str, options: tuple[str, ...], status: int, words: str) -> None:
    ended, documents, said = inject(text, *options)
    assert (ended, documents) == (status, [])
    assert words in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--tls-cert and --tls-key must be given"),
        (
            ["--tls-cert", "/no.crt", "--tls-key", "/no.key"],
            "--tls-cert /no.crt and --tls-key /no.key cannot",
        ),
        (["--tls-cert", "a", "--tls-key", "b", "--listen", "x"], "--listen: 'x' is not HOST:PORT"),
        (["--tls-cert", "a", "--tls-key", "b", "--label", "a b"], "--label: 'a b' is not a label's name"),
        (
            ["--tls-cert", "a", "--tls-key", "b", "--run-as-user", "0"],
            "--run-as-user: '0' is not a whole number",
        ),
    ],
)
def test_wrong_options_of_the_webhook_are_named(options: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "injector", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def template(**fields: Any) -> dict[str, Any]:
    """A pod template of a controller."""
    made = pod(**fields)
    return {"metadata": made["metadata"], "spec": made["spec"]}


KINDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"kind": "StatefulSet", "spec": {"template": template()}}, ["/spec/template"]),
    ({"kind": "PodTemplate", "template": template()}, ["/template"]),
    ({"kind": "Rollout", "spec": {"template": template()}}, ["/spec/template"]),
    (
        {
            "kind": "LeaderWorkerSet",
            "spec": {"leaderWorkerTemplate": {"leaderTemplate": template(), "workerTemplate": template()}},
        },
        ["/spec/leaderWorkerTemplate/leaderTemplate", "/spec/leaderWorkerTemplate/workerTemplate"],
    ),
    (
        {
            "kind": "RayClusterFleet",
            "spec": {
                "template": {
                    "spec": {
                        "headGroupSpec": {"template": template()},
                        "workerGroupSpecs": [{"template": template()}],
                    }
                }
            },
        },
        [
            "/spec/template/spec/headGroupSpec/template",
            "/spec/template/spec/workerGroupSpecs/0/template",
        ],
    ),
    (
        {
            "kind": "StormService",
            "spec": {"template": {"spec": {"roles": [{"name": "prefill"}, {"template": template()}]}}},
        },
        ["/spec/template/spec/roles/1/template"],
    ),
    (
        {"kind": "JobSet", "spec": {"replicatedJobs": [{"template": {"spec": {"template": template()}}}]}},
        ["/spec/replicatedJobs/0/template/spec/template"],
    ),
    (
        {"kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": {"a/b~c": {"template": template()}}}},
        ["/spec/pytorchReplicaSpecs/a~1b~0c/template"],
    ),
]


@pytest.mark.parametrize(("document", "places"), KINDS, ids=[each["kind"] for each, _ in KINDS])
def test_the_templates_of_any_kind_are_found(document: dict[str, Any], places: list[str]) -> None:
    result = injected_document(document, Template(), every=False)
    assert [place for _, place in templates(document)] == places
    assert [place for _, place in templates(result.document)] == places
    for made, _ in templates(result.document):
        assert container(made, NAME)
    assert inject(yaml.safe_dump(document))[1] == [result.document]


def test_the_worker_of_a_leader_worker_set_stays_unchanged() -> None:
    worker = pod()
    worker["spec"]["containers"][0]["args"] = ["m", "--headless"]
    document = {
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "wide"},
        "spec": {
            "leaderWorkerTemplate": {
                "leaderTemplate": template(),
                "workerTemplate": {"metadata": worker["metadata"], "spec": worker["spec"]},
            }
        },
    }
    status, (made,), said = inject(yaml.safe_dump(document))
    both = made["spec"]["leaderWorkerTemplate"]
    assert status == 0
    assert container(both["leaderTemplate"], NAME)
    assert both["workerTemplate"] == document["spec"]["leaderWorkerTemplate"]["workerTemplate"]  # type: ignore[index]
    assert "not injected: vllm is a worker" in said


def test_every_denial_is_printed_with_the_place_of_its_template() -> None:
    document = {
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "wide"},
        "spec": {"leaderWorkerTemplate": {"leaderTemplate": template(hostNetwork=True)}},
    }
    status, documents, said = inject(yaml.safe_dump_all([document, pod(hostNetwork=True)]))
    assert (status, documents) == (1, [])
    assert "denied: wide /spec/leaderWorkerTemplate/leaderTemplate: tokenpool: spec.hostNetwork" in said
    assert "denied: vllm-7d9c-*: tokenpool: spec.hostNetwork" in said


def test_a_pod_spec_that_a_controller_completes_is_named() -> None:
    inference = {
        "kind": "LLMInferenceService",
        "metadata": {"name": "chat"},
        "spec": {
            "labels": {"tokenpool.io/inject": "true"},
            "template": {"containers": [{"name": "main"}]},
            "worker": {"containers": [{"name": "main"}]},
        },
    }
    status, documents, said = inject(yaml.safe_dump(inference))
    assert (status, documents) == (0, [inference])
    assert "warning: chat /spec/template: a controller completes this pod spec; give tokenpool-inject" in said
    assert "warning: chat /spec/worker: " in said
    del inference["spec"]["labels"]  # type: ignore[attr-defined]
    assert "a controller completes" not in inject(yaml.safe_dump(inference))[2]


def test_aliases_of_yaml_stay_apart() -> None:
    text = DEPLOYMENT.replace(
        "          ports:",
        "          livenessProbe: &probe {httpGet: {path: /health, port: 8000}}\n"
        "          readinessProbe: *probe\n          ports:",
    )
    status, (_, deployment), _ = inject(text)
    made = container(deployment["spec"]["template"], "vllm")
    assert status == 0
    assert made["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9090}
    assert "exec" in made["livenessProbe"]
