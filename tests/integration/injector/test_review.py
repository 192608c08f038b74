"""AdmissionReviews as the API server sends them, answered over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from injector.app import Injector
from injector.patch import apply
from injector.review import ReviewMalformed, answer
from injector.settings import Settings, Template
from injector.sidecar_container import NAME
from runtime.options import Addresses, SettingsError
from tests.certificates import certify, openssl, trusting
from tests.support.pods import VLLM, Json, engine, pod
from toolbox.ports import free_port


def review(object_: Json | None, **request: Any) -> Json:
    """An AdmissionReview as Kubernetes 1.3x sends it for a pod that its ReplicaSet creates."""
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "models",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": object_,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def as_admitted() -> Json:
    """A pod as it reaches a webhook: with the server's defaults, and the token that it has mounted."""
    made = pod()
    made["metadata"] |= {
        "creationTimestamp": None,
        "ownerReferences": [{"kind": "ReplicaSet", "name": "vllm-7d9c"}],
    }
    made["spec"] |= {
        "volumes": [
            *made["spec"]["volumes"],
            {
                "name": "kube-api-access-x",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
            },
        ],
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    }
    return {**made, "status": {}}


def asked(document: Json) -> Any:
    """The response to a review."""
    answered = answer(json.dumps(document).encode(), Template()).document
    assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert answered["response"]["uid"] == document["request"]["uid"]
    return answered["response"]


def test_a_created_pod_is_patched() -> None:
    before = as_admitted()
    response = asked(review(before))
    assert (response["allowed"], response["patchType"]) == (True, "JSONPatch")
    after = apply(before, json.loads(base64.b64decode(response["patch"])))
    assert after["spec"]["initContainers"][0]["name"] == NAME
    # The token of the pod's account is for those who had it.
    mounts = {mount["name"] for mount in after["spec"]["initContainers"][0]["volumeMounts"]}
    assert mounts == {"tokenpool-pool", "tokenpool-store"}


def test_a_dry_run_is_answered_alike() -> None:
    assert asked(review(as_admitted(), dryRun=True)) == asked(review(as_admitted()))


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE", "oldObject": as_admitted()},
        {"operation": "DELETE", "object": None, "oldObject": as_admitted()},
        {"operation": "CONNECT", "subResource": "exec", "object": {"kind": "PodExecOptions"}},
        {"operation": "CREATE", "subResource": "eviction", "object": {"kind": "Eviction", "metadata": []}},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
    ],
)
def test_a_review_that_creates_no_pod_is_allowed_unchanged(request_: Json) -> None:
    response = asked(review(as_admitted()) | {"request": review(as_admitted())["request"] | request_})
    assert response == {"uid": response["uid"], "allowed": True}


def test_a_pod_without_the_label_is_allowed_unchanged() -> None:
    plain = as_admitted()
    del plain["metadata"]["labels"]
    assert asked(review(plain)) == {"uid": review(plain)["request"]["uid"], "allowed": True}


def test_a_pod_on_the_nodes_network_is_denied_unless_it_accepts_that_with_a_warning() -> None:
    denied = asked(review(pod(hostNetwork=True)))
    assert denied["allowed"] is False
    assert "spec.hostNetwork" in denied["status"]["message"]
    response = asked(review(pod(hostNetwork=True, annotations={"allow-host-network": "true"})))
    assert response["allowed"]
    assert "patch" not in response
    assert "hostNetwork" in response["warnings"][0]


def test_a_malformed_annotation_denies_the_pod_and_is_named() -> None:
    response = asked(review(pod(annotations={"listen-port": "x"})))
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert "annotation tokenpool.io/listen-port: 'x' is not a port" in response["status"]["message"]


def without(document: Json, *path: str) -> Json:
    *above, last = path
    inner = document
    for key in above:
        inner = inner[key]
    del inner[last]
    return document


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not an AdmissionReview in JSON"),
        (b"[]", "not an AdmissionReview in JSON"),
        (b'{"kind": "AdmissionReview"}', "missing required field"),
        (json.dumps(without(review(pod()), "request", "uid")).encode(), "missing required field `uid`"),
        (json.dumps(without(review(pod()), "request", "object")).encode(), "request.object is missing"),
        (json.dumps(review({"spec": {}})).encode(), "request.object: not a pod"),
        (
            json.dumps(review(pod()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
            "list v1 in the webhook's admissionReviewVersions",
        ),
    ],
)
def test_a_malformed_review_is_named(body: bytes, words: str) -> None:
    with pytest.raises(ReviewMalformed, match=words):
        answer(body, Template())


JUNK = st.sampled_from([None, 0, -1, True, "", "x", "8000", [], [None], {}, {"name": "x"}, [{"name": "x"}]])


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything in a document."""
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def as_written() -> Json:
    """A pod with every field that the injector reads: with TLS, keys, hooks, commands, owners and Istio."""
    script = 'eval "exec vllm serve m --ssl-certfile /tls/a --ssl-keyfile /tls/b $@"'
    main = engine(
        command=["bash", "-c", script, "--"],
        args=["--config", "f"],
        env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        envFrom=[{"prefix": "HF_", "secretRef": {"name": "s"}}],
        volumeMounts=[{"name": "tls", "mountPath": "/tls"}],
        livenessProbe={"exec": {"command": ["curl", "localhost:8000"]}, "timeoutSeconds": 2},
        lifecycle={"postStart": {"httpGet": {"port": 8000}}, "preStop": {"exec": {"command": ["true"]}}},
        resources={"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}},
    )
    known = {"/app-health/x/livez": {"httpGet": {"port": 8000}}}
    proxy = {
        "name": "istio-proxy",
        "restartPolicy": "Always",
        "env": [{"name": "ISTIO_KUBE_APP_PROBERS", "value": json.dumps(known)}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
    }
    made = pod(main, initContainers=[proxy], volumes=[{"name": "tls", "secret": {"defaultMode": 0o444}}])
    made["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "j"}]
    made["metadata"]["labels"]["llm-d.ai/role"] = "decode"
    made["metadata"]["annotations"] |= {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}
    made["spec"]["securityContext"] = {"fsGroup": 1}
    return made


def test_a_pod_with_every_field_is_injected() -> None:
    assert asked(review(as_written()))["patchType"] == "JSONPatch"


@pytest.mark.parametrize("made", [as_admitted, as_written])
@given(data=st.data())
def test_a_review_with_anything_in_it_is_answered_or_named(
    data: st.DataObject, made: Callable[[], Json]
) -> None:
    document = review(made())
    *above, last = data.draw(st.sampled_from(places(document)[1:]))
    inner = document
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    try:
        answered = answer(json.dumps(document).encode(), Template())
    except ReviewMalformed:
        return
    json.dumps(answered.document)


@pytest_asyncio.fixture
async def injector(tmp_path: Path) -> AsyncIterator[Injector]:
    cert, key = certify(tmp_path, "first")
    settings = Settings(tls_cert=cert, tls_key=key, listen=Addresses.of("127.0.0.1", 0))
    made = Injector(settings, Template())
    await made.start()
    yield made
    await made.stop()


async def ask(injector: Injector, path: str, body: Any = None) -> tuple[int, str]:
    """One request over HTTPS that trusts the certificate on disk and nothing else."""
    connector = aiohttp.TCPConnector(ssl=trusting(injector.certificate.paths[0]))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(
            "GET" if body is None else "POST", f"https://{injector.listens_on}{path}", data=body
        ) as got,
    ):
        return got.status, await got.text()


async def test_the_webhook_answers_over_https(injector: Injector) -> None:
    status, text = await ask(injector, "/mutate", json.dumps(review(as_admitted())))
    assert status == 200
    assert json.loads(text)["response"]["patchType"] == "JSONPatch"
    assert (await ask(injector, "/healthz"))[0] == 200
    status, text = await ask(injector, "/readyz")
    assert (status, json.loads(text)["status"]) == (200, "ready")


async def test_a_malformed_review_gets_400_and_a_clear_text(injector: Injector) -> None:
    status, text = await ask(injector, "/mutate", "{")
    assert status == 400
    assert text.startswith("not an AdmissionReview in JSON")


async def test_a_review_without_end_is_refused(injector: Injector) -> None:
    status, _ = await ask(injector, "/mutate", io.BytesIO(b" " * (9 << 20)))
    assert status == 413


async def test_the_log_has_the_result_and_its_reason(
    injector: Injector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await ask(injector, "/mutate", json.dumps(review(as_admitted())))
    await ask(injector, "/mutate", json.dumps(review(pod(annotations={"native": "x"}))))
    lines = [record for record in caplog.records if record.getMessage() == "reviewed"]
    assert [(line.pod, line.result) for line in lines] == [  # type: ignore[attr-defined]
        ("models/vllm-7d9c-*", "injected"),
        ("models/vllm-7d9c-*", "denied"),
    ]
    assert "tokenpool.io/native" in lines[1].reason  # type: ignore[attr-defined]
    assert [line.owner for line in lines] == [None, None]  # type: ignore[attr-defined]


async def test_the_log_names_the_owner_of_a_denied_pod(
    injector: Injector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    hosted = as_admitted()
    hosted["spec"]["hostNetwork"] = True
    await ask(injector, "/mutate", json.dumps(review(hosted)))
    (line,) = [record for record in caplog.records if record.getMessage() == "reviewed"]
    assert line.owner == "ReplicaSet/vllm-7d9c"  # type: ignore[attr-defined]


async def test_the_metrics_count_decisions_and_reasons(injector: Injector) -> None:
    for body in (
        review(as_admitted()),
        review(pod(hostNetwork=True)),
        review(pod(annotations={"allow-host-network": "true"}, hostNetwork=True)),
        review(pod(annotations={"native": "x"})),
        {},
    ):
        await ask(injector, "/mutate", json.dumps(body))
    status, page = await ask(injector, "/metrics")
    assert status == 200
    found = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    reviews = "tokenpool_injector_reviews_total"
    assert found[f'{reviews}{{decision="injected",reason=""}}'] == "1.0"
    assert found[f'{reviews}{{decision="untouched",reason=""}}'] == "1.0"
    assert found[f'{reviews}{{decision="denied",reason="host_network"}}'] == "1.0"
    assert found[f'{reviews}{{decision="denied",reason="annotation"}}'] == "1.0"
    assert found[f'{reviews}{{decision="malformed",reason=""}}'] == "1.0"
    assert found['tokenpool_injector_warnings_total{reason="host_network"}'] == "1.0"
    assert found["tokenpool_injector_review_seconds_count"] == "4.0"
    assert found['tokenpool_injector_review_seconds_bucket{le="+Inf"}'] == "4.0"
    assert found["tokenpool_certificate_current"] == "1.0"
    assert 0 < float(found["tokenpool_certificate_not_after_seconds"]) - time.time() < 3 * 86400


def test_the_audit_log_has_the_reason_and_long_warnings_are_cut() -> None:
    denied = asked(review(pod(hostNetwork=True)))
    assert denied["auditAnnotations"] == {"denied": "host_network"}
    noisy = pod(engine(args=["m", "--config", "/etc/" + "x" * 300]))
    response = asked(review(noisy))
    assert response["auditAnnotations"] == {"warnings": "unchecked"}
    (warning,) = response["warnings"]
    assert (len(warning), warning[-3:]) == (256, "...")


async def common_name(injector: Injector) -> str:
    """The name in the certificate that a new connection is shown."""
    cert = injector.certificate.paths[0]
    _, writer = await asyncio.open_connection(*injector.listens_on, ssl=trusting(cert))
    shown = writer.get_extra_info("peercert")
    writer.close()
    return str(shown["subject"][0][0][1])


async def test_a_renewed_certificate_is_shown_to_new_connections(injector: Injector) -> None:
    assert await common_name(injector) == "first"
    certify(injector.certificate.paths[0].parent, "second")
    await injector.certificate.watch.check()
    assert await common_name(injector) == "second"


async def test_a_certificate_that_does_not_fit_leaves_the_old_in_force(
    injector: Injector, tmp_path: Path
) -> None:
    cert, key = injector.certificate.paths
    other = tmp_path / "other"
    other.mkdir()
    _, stranger = certify(other, "other")
    good = key.read_bytes()
    key.write_bytes(stranger.read_bytes())
    await injector.certificate.watch.check()
    assert await common_name(injector) == "first"
    status, text = await ask(injector, "/readyz")
    assert (status, json.loads(text)["status"]) == (200, "degraded")
    assert f"--tls-cert {cert}" in text
    key.write_bytes(good)
    await injector.certificate.watch.check()
    assert json.loads((await ask(injector, "/readyz"))[1])["status"] == "ready"


async def test_an_encrypted_key_is_an_error_without_a_prompt(injector: Injector) -> None:
    _, key = injector.certificate.paths
    openssl("ec", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(key))
    await injector.certificate.watch.check()
    assert "cannot be loaded" in str(injector.certificate.problem)


async def test_the_process_serves_reloads_its_certificate_and_ends(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "first")
    port = free_port()
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--listen", f"127.0.0.1:{port}"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "injector", *options, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    heard: list[str] = []

    async def until_said(message: str) -> None:
        while message not in heard:
            heard.append(json.loads(await process.stderr.readline())["message"])  # type: ignore[union-attr]

    try:
        async with asyncio.timeout(30):
            await until_said("listening")
            certify(tmp_path, "second")
            process.send_signal(signal.SIGHUP)
            await until_said("the certificate is in force")
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(cert))
            writer.close()
            process.send_signal(signal.SIGTERM)
            await until_said("stopped")
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_certificate_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    settings = Settings(tls_cert=tmp_path / "no.crt", tls_key=tmp_path / "no.key")
    with pytest.raises(SettingsError, match=r"--tls-cert .*no\.crt and --tls-key .*no\.key cannot be loaded"):
        Injector(settings, Template())


def test_the_engines_container_of_the_document_is_untouched_by_answering() -> None:
    before = as_admitted()
    asked(review(before))
    assert before["spec"]["containers"][0] == VLLM
