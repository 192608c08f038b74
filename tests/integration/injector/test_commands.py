"""The two commands, as processes: the webhook, and the dry run over real manifests."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from injector.sidecar_container import NAME
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
