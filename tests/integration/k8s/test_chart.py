"""The chart: its values, its several pools, what it keeps in common with k8s/, and its own tests."""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from injector import settings as injector_settings
from injector.decisions import Injection
from injector.inject import inject
from injector.settings import Template
from tests.integration.k8s.rendering import (
    CHART,
    K8S,
    RELEASE,
    ROOT,
    VALUES,
    Json,
    charted,
    documents,
    files,
    kustomized,
    objects,
    values_of,
)
from tokenpool.poolfile.reading import parse
from toolbox.ports import free_port

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ADDED_LABELS = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}
"""Labels that only the chart has: they distinguish releases."""


def key(each: Json) -> tuple[str, str, str]:
    """What identifies an object in a cluster."""
    return each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]


def one(found: Iterable[Json], kind: str, name: str) -> Json:
    (only,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return only


# --- the values ---
@pytest.mark.parametrize("rendering", VALUES)
def test_helm_lint_reports_no_problem(rendering: str) -> None:
    report = helm_python.lint(CHART, values_of(rendering), strict=True)
    assert report["errors"] == []
    assert {each["error"] for each in report["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enginse": {}}, "enginse"),
        ({"engines": {"chat": {"prot": 8000}}}, "prot"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"autoscaling": {"kind": "KEDA"}}, "autoscaling"),
        ({"injector": {"certificate": {"from": "self"}}}, "certificate"),
        ({"poolFile": {"pools": []}}, "pools"),
        ({"engines": {"other": {}}}, "poolFile.pools has no pool of this name; it has chat"),
        ({"injector": {"certificate": {"from": "provided"}}}, "needs injector.certificate.secretName"),
        ({"coordinator": {"administrators": {"existingSecret": "a"}}}, "set usage.existingSecret, too"),
        (
            {"injector": {"enabled": False}, "engines": {"chat": {"deployment": {"create": True}}}},
            "needs injector.enabled",
        ),
        (
            {"autoscaling": {"kind": "hpa"}, "engines": {"chat": {"namespace": "models"}}},
            "use keda",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_name(values: Json, message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(message)):
        charted(values)


def test_two_pools_with_the_same_pods_are_refused() -> None:
    values = values_of("chart/several-pools")
    values["engines"]["code_small"]["selector"] = values["engines"]["chat"]["selector"]
    with pytest.raises(helm_python.HelmError, match="the pools chat and code_small select the same pods"):
        charted(values)


def test_every_default_is_in_the_schema_with_its_description_in_the_values() -> None:
    """A value that the schema does not know would be refused, so the schema has every default."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(defaults) == set(schema["properties"]) - {"global"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("rendering", VALUES)
def test_the_pool_file_of_the_values_is_valid(rendering: str) -> None:
    maps = [each for each in objects(rendering) if each["metadata"]["name"] == f"{RELEASE}-pool"]
    assert {each["metadata"]["namespace"] for each in maps} >= {"tokenpool"}
    for each in maps:
        warnings = parse(each["data"]["pool.yaml"]).warnings
        # The capacity of simulated engines is learned, as in compose.yaml: no promise can be checked before.
        assert [w for w in warnings if "but a replica has auto there" not in w.message] == []
        assert rendering == "chart/try-out" or warnings == ()


# --- one version, one text ---
def test_the_version_is_the_same_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert f"ARG VERSION={VERSION}\n" in (ROOT / "docker" / "Dockerfile").read_text()
    for path in K8S.rglob("*.yaml"):
        assert set(re.findall(r"\btokenpool:([\w.-]+)$", path.read_text(), re.M)) <= {VERSION}, path


def test_rules_dashboards_and_pod_monitors_are_the_files_of_the_project() -> None:
    found = objects("chart/full")
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())
    assert one(found, "PrometheusRule", RELEASE)["spec"] == rules
    folder = ROOT / "docker" / "grafana" / "dashboards"
    for path in folder.glob("*.json"):
        data = one(found, "ConfigMap", f"{RELEASE}-dashboard-{path.stem}")["data"]
        assert json.loads(data[f"tokenpool-{path.name}"]) == json.loads(path.read_text())


def test_the_injectors_pod_monitor_is_that_of_the_component() -> None:
    written = yaml.safe_load((K8S / "components" / "monitoring-injector" / "podmonitor.yaml").read_text())
    monitor = one(objects("chart/full"), "PodMonitor", "tokenpool-injector")
    assert _without(monitor["spec"], ADDED_LABELS) == written["spec"]
    # With a generated certificate, its authority is in the same Secret.
    found = charted({"monitoring": {"podMonitors": True}})
    (endpoint,) = one(found, "PodMonitor", "tokenpool-injector")["spec"]["podMetricsEndpoints"]
    authority = endpoint["tlsConfig"]["ca"]["secret"]
    assert authority["key"] in one(found, "Secret", authority["name"])["data"]


def test_a_packaged_chart_holds_what_it_links(tmp_path: Path) -> None:
    with helm_python.Chart.load(CHART) as chart:
        archive = Path(chart.save(tmp_path))
    with helm_python.Chart.load(archive) as packaged:
        made = packaged.render(values_of("chart/full"), name=RELEASE, namespace="tokenpool")
    assert archive.name == f"tokenpool-{VERSION}.tgz"
    assert documents(made["tokenpool/templates/monitoring.yaml"]) == documents(
        files(values_of("chart/full"))["tokenpool/templates/monitoring.yaml"]
    )


# --- the kustomizations have the same objects ---
MONITORED = yaml.safe_load((K8S / "components" / "monitoring" / "kustomization.yaml").read_text())[
    "resources"
]
EXAMPLE_KEYS = {"checkout": "change-me-checkout", "search": "change-me-search", "batch": "change-me-batch"}
LIKE_THE_KUSTOMIZATION: dict[str, Json] = {
    "base/core": {
        "injector": {"enabled": False},
        "store": {"existingSecret": "tokenpool-store"},
        "keys": {"existingSecret": "tokenpool-keys"},
    },
    "overlays/injected": {
        "injector": {"certificate": {"from": "cert-manager"}},
        "store": {"existingSecret": "tokenpool-store"},
        "keys": {"existingSecret": "tokenpool-keys"},
        "engines": {"chat": {"deployment": {"create": True}}},
    },
    "overlays/try-out": {
        "injector": {"enabled": False},
        "redis": {"password": "change-me"},
        "keys": {"values": EXAMPLE_KEYS},
    },
    "overlays/keda": {
        "injector": {"enabled": False},
        "store": {"existingSecret": "tokenpool-store"},
        "keys": {"existingSecret": "tokenpool-keys"},
        "autoscaling": {"kind": "keda"},
    },
    "overlays/entitlements": {
        "injector": {"enabled": False},
        "store": {"existingSecret": "tokenpool-store"},
        "keys": {"existingSecret": "tokenpool-keys"},
        "entitlements": {"enabled": True, "secrets": ["tokenpool-tenant-keys"]},
    },
    "overlays/hpa": {
        "injector": {"enabled": False},
        "store": {"existingSecret": "tokenpool-store"},
        "keys": {"existingSecret": "tokenpool-keys"},
        "autoscaling": {"kind": "hpa"},
        "monitoring": {
            "podMonitors": True,
            "rules": "prometheusrule.yaml" in MONITORED,
            "dashboards": "dashboards.yaml" in MONITORED,
        },
    },
}
"""The values with which the chart makes the same objects as a kustomization."""
NAMES = {
    ("PodMonitor", "tokenpool-sidecar"): "tokenpool-chat-sidecar",
    ("PodMonitor", "vllm"): "tokenpool-chat-vllm",
}
"""Names that differ: the chart has PodMonitors for the engines of each pool."""


def comparable(each: Json) -> Json:
    """An object without the chart's own labels and namespace, and with the pool file as data."""
    made = copy.deepcopy(each)
    made["metadata"].pop("namespace", None)
    if made["kind"] == "CustomResourceDefinition":
        # An uninstall leaves the definitions, because deleting one deletes every entitlement.
        assert made["metadata"].pop("annotations", {}) in ({}, {"helm.sh/resource-policy": "keep"})
    made["metadata"]["name"] = NAMES.get((made["kind"], made["metadata"]["name"]), made["metadata"]["name"])
    if made["kind"] == "ConfigMap" and "pool.yaml" in made["data"]:
        made["data"]["pool.yaml"] = yaml.safe_load(made["data"]["pool.yaml"])
    if made["kind"] == "ConfigMap" and "-dashboard-" in made["metadata"]["name"]:
        made["data"] = {name: json.loads(text) for name, text in made["data"].items()}
    if made["kind"] == "Deployment":
        # The autoscaler of a kustomization may come later; the chart knows whether there is one.
        made["spec"] = {
            name: value
            for name, value in made["spec"].items()
            if (made["metadata"]["name"], name) != ("vllm", "replicas")
        }
    bare: Json = _without(made, ADDED_LABELS)
    return bare


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    if isinstance(value, list):
        return [_without(inner, names) for inner in value]
    return value


@pytest.mark.parametrize("folder", LIKE_THE_KUSTOMIZATION)
def test_the_chart_and_the_kustomization_make_the_same_objects(folder: str) -> None:
    def by_name(found: list[Json]) -> dict[tuple[str, str], Json]:
        made = [comparable(each) for each in found]
        return {(each["kind"], each["metadata"]["name"]): each for each in made}

    charts = by_name(charted(LIKE_THE_KUSTOMIZATION[folder]))
    written = by_name(kustomized(K8S / folder))
    # With the engine's sidecar in full: the injector makes it of the chart's Deployment (test_manifests.py).
    if folder not in ("base/core", "overlays/injected"):
        written.pop(("Deployment", "vllm"))
    assert charts.keys() == written.keys()
    for name, each in written.items():
        assert charts[name] == each, name


def test_every_overlay_is_compared_or_a_variant_of_one_that_is() -> None:
    variants = {"overlays/plain-sidecar"}  # the base with another kind of sidecar: injector.sidecar.native
    overlays = {str(path.parent.relative_to(K8S)) for path in (K8S / "overlays").glob("*/kustomization.yaml")}
    assert overlays - variants <= LIKE_THE_KUSTOMIZATION.keys()


# --- several pools and namespaces ---
def test_every_pool_has_its_objects_in_its_namespace() -> None:
    found = {key(each) for each in objects("chart/several-pools")}
    for namespace, pool in (("models", "chat"), ("models", "code-small"), ("search", "embed")):
        assert {
            ("Service", namespace, pool),
            ("PodDisruptionBudget", namespace, f"{RELEASE}-{pool}"),
            ("ScaledObject", namespace, f"{RELEASE}-{pool}"),
            ("PodMonitor", namespace, f"{RELEASE}-{pool}-sidecar"),
            ("ConfigMap", namespace, f"{RELEASE}-pool"),
            ("Secret", namespace, f"{RELEASE}-store"),
            ("Secret", namespace, f"{RELEASE}-keys"),
        } <= found
    policies = {namespace for kind, namespace, _ in found if kind == "NetworkPolicy"}
    assert policies == {"tokenpool", "models"}, "the pool embed has policies of its own"
    assert ("Deployment", "models", "vllm-chat") in found
    assert not any(kind == "Deployment" and namespace == "search" for kind, namespace, _ in found)


def test_every_namespace_gets_the_same_keys_and_a_store_that_it_can_resolve() -> None:
    secrets = {
        key(each): each["stringData"]
        for each in objects("chart/several-pools")
        if each["kind"] == "Secret" and "stringData" in each
    }
    first, second = (secrets["Secret", name, "tokenpool-keys"] for name in ("models", "search"))
    assert first == second
    assert first.keys() == {"search", "editor", "search-index"}
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", value) for value in first.values())
    assert len(set(first.values())) == len(first)
    password = secrets["Secret", "tokenpool", "tokenpool-redis"]["password"]
    urls = {name[1]: data["url"] for name, data in secrets.items() if name[2] == "tokenpool-store"}
    assert urls == {
        "tokenpool": f"redis://:{password}@tokenpool-redis:6379",
        "models": f"redis://:{password}@tokenpool-redis.tokenpool:6379",
        "search": f"redis://:{password}@tokenpool-redis.tokenpool:6379",
    }


def test_administrators_get_a_key_of_their_own() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    file = values["poolFile"] | {"administrator_keys": [{"file": "/etc/tokenpool/keys/operator"}]}
    made = one(charted({"poolFile": file}), "Secret", f"{RELEASE}-keys")["stringData"]
    assert made.keys() == {"checkout", "search", "batch", "operator"}
    assert len(set(made.values())) == len(made)


def test_the_tokens_of_administrators_are_mounted_at_coordinators_only() -> None:
    values = {
        "usage": {"existingSecret": "database"},
        "coordinator": {"administrators": {"existingSecret": "tokens-of-admins"}},
    }
    made = charted(values)

    pod = one(made, "Deployment", f"{RELEASE}-coordinator")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "--administrator-tokens=/etc/tokenpool/administrators/tokens" in container["args"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts["administrators"] == "/etc/tokenpool/administrators"
    users = [each for each in made if "tokens-of-admins" in str(each)]
    assert [each["kind"] for each in users] == ["Deployment"]


def test_only_the_pods_of_a_pool_reach_its_peer_port() -> None:
    for pool, selector in (
        ("chat", {"app.kubernetes.io/name": "vllm", "model": "chat"}),
        ("code-small", {"app.kubernetes.io/name": "vllm", "model": "code"}),
    ):
        policy = one(objects("chart/several-pools"), "NetworkPolicy", f"{RELEASE}-{pool}")["spec"]
        port = {"protocol": "TCP", "port": 9095}
        (peers,) = [rule["from"] for rule in policy["ingress"] if port in rule["ports"]]
        assert policy["podSelector"] == {"matchLabels": selector}
        assert peers == [{"podSelector": {"matchLabels": selector}}]


@pytest.mark.parametrize(
    ("store", "port"),
    [({}, 6379), ({"port": 6380}, 6379), ({"port": 6380, "url": "redis://elsewhere:6380"}, 6380)],
)
def test_policies_admit_the_port_of_the_store_behind_its_service(store: Json, port: int) -> None:
    found = charted({"store": store})
    for name in (f"{RELEASE}-coordinator", f"{RELEASE}-chat"):
        egress = one(found, "NetworkPolicy", name)["spec"]["egress"]
        assert {"ports": [{"protocol": "TCP", "port": port}]} in egress
    assert any(each["metadata"]["name"] == f"{RELEASE}-redis" for each in found) is ("url" not in store)


def test_redis_is_open_to_the_engines_of_other_namespaces() -> None:
    policy = one(objects("chart/several-pools"), "NetworkPolicy", f"{RELEASE}-redis")["spec"]
    (rule,) = policy["ingress"]
    assert [each.get("namespaceSelector") for each in rule["from"]] == [
        None,
        {"matchLabels": {"kubernetes.io/metadata.name": "models"}},
        {"matchLabels": {"kubernetes.io/metadata.name": "models"}},
        {"matchLabels": {"kubernetes.io/metadata.name": "search"}},
    ]


def test_every_pool_is_scaled_within_its_limits_in_the_pool_file() -> None:
    found = objects("chart/several-pools")
    limits = {}
    for pool in ("chat", "code-small", "embed"):
        spec = one(found, "ScaledObject", f"{RELEASE}-{pool}")["spec"]
        limits[pool] = (spec["minReplicaCount"], spec["maxReplicaCount"])
        url = spec["triggers"][0]["metadata"]["url"]
        assert url.startswith("http://tokenpool-coordinator.tokenpool.svc:9091/scale/")
    assert limits == {"chat": (1, 4), "code-small": (2, 3), "embed": (1, 1)}
    assert one(found, "ScaledObject", f"{RELEASE}-embed")["spec"]["scaleTargetRef"] == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "embedder",
    }


def test_releases_beside_each_other_have_no_object_and_no_pod_in_common() -> None:
    first, second = (charted({}, release=name) for name in ("tokenpool", "blue"))
    shared = {key(each) for each in first} & {key(each) for each in second}
    # The Service has the name of the pool. A second release sets engines.POOL.service.name.
    assert shared == {("Service", "tokenpool", "chat")}
    selectors = [
        json.dumps(each["spec"]["selector"], sort_keys=True)
        for each in (*first, *second)
        if each["kind"] == "Deployment"
    ]
    assert len(selectors) == len(set(selectors))


# --- entitlements as resources ---
def test_the_rights_of_the_coordinators_are_in_every_namespace_with_entitlements() -> None:
    found = objects("chart/full")
    bindings = {key(each)[1]: each for each in found if each["kind"] == "RoleBinding"}
    assert bindings.keys() == {"tokenpool", "tenants"}
    for each in bindings.values():
        assert each["subjects"] == [
            {"kind": "ServiceAccount", "name": "tokenpool-coordinator", "namespace": "tokenpool"}
        ]
    (container,) = one(found, "Deployment", "tokenpool-coordinator")["spec"]["template"]["spec"]["containers"]
    assert "--entitlements-from=kubernetes" in container["args"]
    assert "--entitlements-namespaces=tokenpool,tenants" in container["args"]
    kept = [each["metadata"]["annotations"] for each in found if each["kind"] == "CustomResourceDefinition"]
    assert kept == [{"helm.sh/resource-policy": "keep"}] * 2


def test_without_them_no_pod_has_rights_and_no_secret_may_be_read() -> None:
    assert not any(each["kind"] in ("Role", "RoleBinding") for each in objects("chart"))
    found = charted({"entitlements": {"enabled": True, "crds": False}})
    role = one(found, "Role", "tokenpool-entitlements")
    assert [rule["apiGroups"] for rule in role["rules"]] == [["tokenpool.io"], ["tokenpool.io"]]
    assert not any(each["kind"] == "CustomResourceDefinition" for each in found)


# --- the injector ---
def template_of(found: list[Json]) -> Template:
    """The sidecar that the chart's injector adds."""
    (container,) = one(found, "Deployment", f"{RELEASE}-injector")["spec"]["template"]["spec"]["containers"]
    parser = injector_settings.argparse.ArgumentParser(exit_on_error=False)
    injector_settings.add_serving_arguments(parser)
    injector_settings.add_template_arguments(parser)
    return injector_settings.read_template(parser.parse_args(container["args"]), {})


def test_the_sidecar_is_named_by_digest_and_finds_what_the_chart_made() -> None:
    template = template_of(objects("chart/full"))
    image = values_of("chart/full")["image"]
    assert template.image == f"registry.example.com/platform/tokenpool:{VERSION}@{image['digest']}"
    assert (template.pool_config, template.store_secret, template.keys_secret) == (
        "tokenpool-pool",
        "tokenpool-store",
        "tokenpool-keys",
    )
    assert (template.pull_policy, template.memory_limit, template.drain_timeout) == ("Always", "1Gi", 60)


@pytest.mark.parametrize("rendering", ["chart/try-out", "chart/full", "chart/several-pools"])
def test_the_engines_of_the_chart_are_injected_without_a_warning(rendering: str) -> None:
    found = objects(rendering)
    engines = [
        each["spec"]["template"]
        for each in found
        if each["kind"] == "Deployment"
        and "tokenpool.io/inject" in each["spec"]["template"]["metadata"]["labels"]
    ]
    assert engines
    for pod in engines:
        decision = inject(pod, template_of(found))
        assert isinstance(decision, Injection)
        assert decision.warnings == ()
        assert decision.patch


def test_a_generated_certificate_is_for_the_webhooks_service_and_its_authority_is_trusted(
    tmp_path: Path,
) -> None:
    found = objects("chart")
    data = one(found, "Secret", f"{RELEASE}-injector-tls")["data"]
    (hook,) = one(found, "MutatingWebhookConfiguration", f"{RELEASE}-injector")["webhooks"]
    assert hook["clientConfig"]["caBundle"] == data["ca.crt"]
    for name, text in data.items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    host = "tokenpool-injector.tokenpool.svc"
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", host, "tls.crt"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == "tls.crt: OK\n", done.stderr


def test_a_provided_certificate_is_used() -> None:
    certificate = {"from": "provided", "secretName": "mine", "caBundle": "PEM"}
    found = charted({"injector": {"certificate": certificate}})
    (hook,) = one(found, "MutatingWebhookConfiguration", f"{RELEASE}-injector")["webhooks"]
    assert base64.b64decode(hook["clientConfig"]["caBundle"]) == b"PEM"
    pod = one(found, "Deployment", f"{RELEASE}-injector")["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "tls", "secret": {"secretName": "mine"}}]
    assert not any(each["kind"] in ("Issuer", "Certificate") for each in found)


# --- notes and `helm test` ---
def test_the_notes_say_what_to_do_next() -> None:
    def notes(rendering: str) -> str:
        return files(values_of(rendering))["tokenpool/templates/NOTES.txt"]

    assert 'tokenpool.io/inject: "true"' in notes("chart")
    assert "the Deployment vllm" in notes("chart/try-out")
    assert "http://code-small.models.svc:80" in notes("chart/several-pools")
    assert "and the annotation tokenpool.io/pool: embed" in notes("chart/several-pools")
    assert "no digest" not in notes("chart/full")


def checks(rendering: str) -> list[Json]:
    made = documents(files(values_of(rendering))["tokenpool/templates/tests/test.yaml"])
    assert all(each["metadata"]["annotations"]["helm.sh/hook"] == "test" for each in made)
    return made


def test_helm_test_validates_the_file_and_asks_the_coordinator_and_every_pool() -> None:
    made = checks("chart/several-pools")
    commands = {
        each["metadata"]["name"]: each["spec"]["containers"][0]["command"]
        for each in made
        if each["kind"] == "Pod"
    }
    assert commands.pop("tokenpool-test-pool-file") == [
        *("tokenpool-sidecar", "check", "/etc/tokenpool/pool/pool.yaml")
    ]
    assert {name: command[-2:] for name, command in commands.items()} == {
        "tokenpool-test-coordinator": ["http://tokenpool-coordinator:9091/readyz", "200"],
        "tokenpool-test-engine-chat": ["http://chat.models.svc:80/v1/models", "401"],
        "tokenpool-test-engine-code-small": ["http://code-small.models.svc:80/v1/models", "401"],
        "tokenpool-test-engine-embed": ["http://embed.search.svc:80/v1/models", "401"],
    }
    opened = {key(each) for each in made if each["kind"] == "NetworkPolicy"}
    assert opened == {
        ("NetworkPolicy", "tokenpool", "tokenpool-test"),
        ("NetworkPolicy", "tokenpool", "tokenpool-coordinator-test"),
        ("NetworkPolicy", "models", "tokenpool-chat-test"),
        ("NetworkPolicy", "models", "tokenpool-code-small-test"),
    }


def checked(url: str, status: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the check of `helm test` as its container does."""
    (pod,) = [each for each in checks("chart") if each["metadata"]["name"] == "tokenpool-test-coordinator"]
    python, option, script, _, _ = pod["spec"]["containers"][0]["command"]
    assert (python, option) == ("python3", "-c")
    return subprocess.run(
        [sys.executable, option, script, url, str(status), str(seconds)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_check_passes_where_the_status_is_right_and_says_what_is_wrong() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port := free_port())],
        cwd=CHART, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            right = checked(f"http://127.0.0.1:{port}/Chart.yaml", 200, 30)
            missing = checked(f"http://127.0.0.1:{port}/nothing", 401, 0)
            open_ = checked(f"http://127.0.0.1:{port}/Chart.yaml", 401, 0)
        finally:
            server.terminate()
    refused = checked(f"http://127.0.0.1:{free_port()}/", 200, 0)
    assert (right.returncode, "as expected" in right.stdout) == (0, True)
    assert (missing.returncode, "404 instead of 401" in missing.stderr) == (1, True)
    assert (open_.returncode, "is the sidecar there?" in open_.stderr) == (1, True)
    assert (refused.returncode, "no answer" in refused.stderr) == (1, True)
