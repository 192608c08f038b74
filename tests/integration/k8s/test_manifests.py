"""The manifests and the chart: valid for the API, complete, and with valid options of the programs."""

from __future__ import annotations

import argparse
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from coordinator import settings as coordinator_settings
from coordinator.resources.merge import Merge, SecretState
from coordinator.resources.reading import SecretName, read, secret_digests
from coordinator.telemetry import Telemetry
from injector import settings as injector_settings
from injector.decisions import Injection
from injector.inject import inject
from injector.patch import apply
from injector.settings import Template
from injector.sidecar_container import NAME
from sidecar import settings as sidecar_settings
from tests.integration.k8s.api_schema import NEWEST, validate
from tests.integration.k8s.rendering import EVERY, K8S, Json, distinct, objects
from tests.support.api_server import ApiServer
from tokenpool.entitlements import KeySource, PoolFile
from tokenpool.poolfile.reading import parse

COMPLETE = [each for each in EVERY if each not in ("chart", "chart/several-pools")]
"""The renderings of one pool with its engine. The chart by default has no engine."""
CUSTOM = {"Issuer", "Certificate", "PodMonitor", "ScaledObject", "PrometheusRule"}
"""Kinds with schemas of their operators. Tests here and in test_chart.py check their fields."""
AUTOSCALERS = ("ScaledObject", "HorizontalPodAutoscaler")


def of_kind(found: list[Json], *kinds: str) -> list[Json]:
    return [each for each in found if each["kind"] in kinds]


def one(found: list[Json], kind: str, name: str) -> Json:
    (only,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return only


def pod_of(deployment: Json) -> Json:
    made: Json = deployment["spec"]["template"]
    return made


def pods(found: list[Json]) -> list[Json]:
    """The pods of a rendering, after injection if they have the label."""
    made = []
    for each in of_kind(found, "Deployment"):
        decision = inject(pod_of(each), template_of(found))
        assert isinstance(decision, Injection)
        assert decision.warnings == ()
        made.append(apply(pod_of(each), decision.patch))
    return made


def template_of(found: list[Json]) -> Template:
    """The sidecar that the rendering's injector adds; without one, the sidecar of the manifests."""
    injectors = [
        each for each in of_kind(found, "Deployment") if each["metadata"]["name"] == "tokenpool-injector"
    ]
    if not injectors:
        return SIDECAR
    (container,) = pod_of(injectors[0])["spec"]["containers"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    injector_settings.add_serving_arguments(parser)
    injector_settings.add_template_arguments(parser)
    return injector_settings.read_template(parser.parse_args(container["args"]), {})


def containers(pod: Json) -> list[Json]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def every_container(overlay: str) -> Iterator[tuple[Json, Json]]:
    for pod in pods(objects(overlay)):
        for container in containers(pod):
            yield pod, container


PROVIDED: Mapping[str, dict[str, set[str]]] = {
    "chart/full": {"tokenpool-usage-store": {"url"}, "tokenpool-administrators": {"tokens"}}
}
"""Secrets that the values of a rendering name, and that users provide."""


@functools.cache
def secrets(overlay: str = "base") -> dict[str, set[str]]:
    """The Secrets of a rendering with their keys, and the example's, which users provide in production."""
    example = yaml.safe_load_all((K8S / "components/try-out/secrets.yaml").read_text())
    made = [*example, *of_kind(objects(overlay), "Secret")]
    found = {each["metadata"]["name"]: {*each.get("stringData", {}), *each.get("data", {})} for each in made}
    return found | PROVIDED.get(overlay, {})


def selected(found: list[Json], selector: Json) -> list[Json]:
    """The pods that match a selector."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    wanted = {key: {value} for key, value in selector.get("matchLabels", {}).items()}
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        wanted[each["key"]] = set(each["values"])
    return [
        pod
        for pod in pods(found)
        if all(pod["metadata"]["labels"].get(key) in values for key, values in wanted.items())
    ]


def ports(pod: Json) -> dict[int | str, int]:
    """The ports of a pod, by number and by name."""
    declared = [port for each in containers(pod) for port in each.get("ports", [])]
    by_number: dict[int | str, int] = {port["containerPort"]: port["containerPort"] for port in declared}
    return by_number | {port["name"]: port["containerPort"] for port in declared if "name" in port}


SIDECAR = Template(
    image=pod_of(one(objects("base"), "Deployment", "vllm"))["spec"]["initContainers"][0]["image"]
)
"""The injector's default, with the image of the manifests."""


def pool_file() -> PoolFile:
    data = one(objects("base"), "ConfigMap", "tokenpool-pool")["data"]
    parsed = parse(data["pool.yaml"])
    assert parsed.warnings == ()
    return parsed.file


# --- kustomize and the API ---
@pytest.mark.parametrize("release", NEWEST)
def test_every_object_is_valid_in_the_two_newest_releases(release: str) -> None:
    known = [each for each in distinct() if each["kind"] not in CUSTOM]
    for each in known:
        validate(each, release)
    assert len(known) > len(distinct()) / 2


@pytest.mark.parametrize("release", NEWEST)
def test_injected_pods_are_valid_in_the_two_newest_releases(release: str) -> None:
    for native, pod in itertools.product((True, False), pods(objects("overlays/injected"))):
        bare = pod_of(one(objects("overlays/injected"), "Deployment", "vllm"))
        decision = inject(bare, replace(SIDECAR, native=native))
        assert isinstance(decision, Injection)
        for each in (pod, apply(bare, decision.patch)):
            document = {"apiVersion": "v1", "kind": "Pod", **each}
            validate(document, release)


@pytest.mark.parametrize("overlay", EVERY)
def test_every_name_is_unique(overlay: str) -> None:
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in objects(overlay)
    ]
    assert len(names) == len(set(names))


def test_the_base_names_no_namespace() -> None:
    assert not any("namespace" in each["metadata"] for each in objects("base"))


# --- options of the programs ---
def parsed(container: Json) -> Any:
    """A container's arguments, parsed by its program with the container's variables."""
    words = [*container.get("command", []), *container.get("args", [])]
    environment = {each["name"]: "redis://store:6379" for each in container.get("env", [])}
    parser = argparse.ArgumentParser(exit_on_error=False)
    if words[:2] == ["tokenpool-sidecar", "run"]:
        sidecar_settings.add_arguments(parser)
        return sidecar_settings.read(parser.parse_args(words[2:]), environment)
    if words[:2] == ["tokenpool-coordinator", "run"]:
        coordinator_settings.add_arguments(parser)
        return coordinator_settings.read(parser.parse_args(words[2:]), environment)
    assert words[:3] == ["python3", "-m", "injector"]
    injector_settings.add_serving_arguments(parser)
    injector_settings.add_template_arguments(parser)
    arguments = parser.parse_args(words[3:])
    assert injector_settings.read_template(arguments, environment).image == container["image"]
    return injector_settings.read_serving(arguments, environment)


@pytest.mark.parametrize("overlay", COMPLETE)
def test_all_options_exist_in_the_program(overlay: str) -> None:
    ours = [each for _, each in every_container(overlay) if each["name"] in (NAME, "coordinator", "injector")]
    assert len(ours) >= 2
    for container in ours:
        read = parsed(container)
        own = (getattr(read, "admin", ()), getattr(read, "peer", ()))
        listens = {each.port for each in itertools.chain(read.listen, *own)}
        assert listens == {port["containerPort"] for port in container["ports"]}
        if hasattr(read, "store"):
            assert str(read.store_file) == "/etc/tokenpool/store/url"
            assert str(read.config) == "/etc/tokenpool/pool/pool.yaml"


def test_the_pool_file_is_valid_and_its_keys_are_in_the_secret() -> None:
    keys = {ref for each in pool_file().entitlements for ref in each.api_keys}
    assert {ref.source for ref in keys} == {KeySource.FILE}
    assert {ref.value for ref in keys} == {
        f"/etc/tokenpool/keys/{name}" for name in secrets()["tokenpool-keys"]
    }


def test_the_sidecars_pool_is_in_the_file() -> None:
    for pod in selected(objects("base"), {"matchLabels": {"app.kubernetes.io/name": "vllm"}}):
        (sidecar,) = [each for each in containers(pod) if each["name"] == NAME]
        assert parsed(sidecar).pool in {pool.name for pool in pool_file().pools}


# --- three equal sidecars ---
def test_the_injected_deployment_equals_the_base() -> None:
    bare = pod_of(one(objects("overlays/injected"), "Deployment", "vllm"))
    decision = inject(bare, SIDECAR)
    assert isinstance(decision, Injection)
    injected, written = apply(bare, decision.patch), pod_of(one(objects("base"), "Deployment", "vllm"))
    assert injected["spec"] == written["spec"]


def test_the_plain_sidecar_equals_the_injected_one_for_older_clusters() -> None:
    bare = pod_of(one(objects("overlays/injected"), "Deployment", "vllm"))
    decision = inject(bare, replace(SIDECAR, native=False))
    assert isinstance(decision, Injection)
    plain = pod_of(one(objects("overlays/plain-sidecar"), "Deployment", "vllm"))
    assert apply(bare, decision.patch)["spec"] == plain["spec"]


# --- references ---
@pytest.mark.parametrize("overlay", COMPLETE)
def test_config_maps_secrets_accounts_and_volumes_exist(overlay: str) -> None:
    found = objects(overlay)
    configs = {each["metadata"]["name"]: set(each["data"]) for each in of_kind(found, "ConfigMap")}
    made = {each["spec"]["secretName"] for each in of_kind(found, "Certificate")}
    accounts = {each["metadata"]["name"] for each in of_kind(found, "ServiceAccount")}
    for pod in pods(found):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts
        volumes = {each["name"]: each for each in spec.get("volumes", [])}
        for each in volumes.values():
            if "configMap" in each:
                assert "pool.yaml" in configs[each["configMap"]["name"]]
            if "secret" in each:
                assert each["secret"]["secretName"] in secrets(overlay).keys() | made
        mounted = [mount["name"] for each in containers(pod) for mount in each.get("volumeMounts", [])]
        assert set(mounted) == set(volumes)


@pytest.mark.parametrize("overlay", COMPLETE)
def test_services_lead_to_existing_ports(overlay: str) -> None:
    found = objects(overlay)
    services = of_kind(found, "Service")
    assert {each["metadata"]["name"] for each in services} >= {"chat", "tokenpool-coordinator"}
    for service in services:
        chosen = selected(found, {"matchLabels": service["spec"]["selector"]})
        assert len(chosen) == 1
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(chosen[0])


@pytest.mark.parametrize("overlay", COMPLETE)
def test_tenants_reach_the_sidecar_and_not_the_engine(overlay: str) -> None:
    found = objects(overlay)
    (port,) = one(found, "Service", "chat")["spec"]["ports"]
    (pod,) = selected(found, {"matchLabels": one(found, "Service", "chat")["spec"]["selector"]})
    (sidecar,) = [each for each in containers(pod) if each["name"] == NAME]
    (engine,) = [each for each in containers(pod) if each["name"] == "vllm"]
    assert parsed(sidecar).listen[0].port == port["targetPort"]
    said = dict(itertools.pairwise(engine["args"]))
    assert (said["--host"], said["--port"]) == ("127.0.0.1", str(parsed(sidecar).upstream.port))
    assert "ports" not in engine


@pytest.mark.parametrize("overlay", COMPLETE)
def test_selectors_match_existing_pods(overlay: str) -> None:
    found = objects(overlay)
    for each in of_kind(found, "Deployment", "PodDisruptionBudget"):
        assert len(selected(found, each["spec"]["selector"])) == 1
    for each in of_kind(found, "Deployment"):
        for constraint in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert selected(found, constraint["labelSelector"])
    for each in of_kind(found, "PodMonitor"):
        (pod,) = selected(found, each["spec"]["selector"])
        for endpoint in each["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in ports(pod)
            assert endpoint["path"] in ("/metrics", "/engine/metrics")


@pytest.mark.parametrize("overlay", COMPLETE)
def test_critical_parts_have_two_replicas(overlay: str) -> None:
    found = objects(overlay)
    guarded = of_kind(found, "PodDisruptionBudget")
    for each in of_kind(found, "Deployment"):
        name = each["metadata"]["name"]
        if name in ("tokenpool-coordinator", "tokenpool-injector"):
            assert each["spec"]["replicas"] == 2
            assert pod_of(each)["spec"]["topologySpreadConstraints"]
            assert any(guard["metadata"]["name"] == name for guard in guarded)


# --- permissions ---
@pytest.mark.parametrize("overlay", COMPLETE)
def test_no_pod_has_permissions_in_the_cluster_or_a_token(overlay: str) -> None:
    found = objects(overlay)
    assert not of_kind(found, "ClusterRole", "ClusterRoleBinding")
    roles = of_kind(found, "Role", "RoleBinding")
    assert {each["metadata"]["name"] for each in roles} <= {"tokenpool-entitlements"}
    subjects = [each for role in roles for each in role.get("subjects", ())]
    # The API refuses an account without its namespace.
    assert all(each["namespace"] for each in subjects)
    bound = {each["name"] for each in subjects}
    assert all(each["automountServiceAccountToken"] is False for each in of_kind(found, "ServiceAccount"))
    for pod in pods(found):
        has_rights = pod["spec"]["serviceAccountName"] in bound
        assert pod["spec"]["automountServiceAccountToken"] is has_rights
        assert (
            not has_rights or pod["metadata"]["labels"]["app.kubernetes.io/name"] == "tokenpool-coordinator"
        )
        assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", COMPLETE)
def test_containers_have_minimal_privileges(overlay: str) -> None:
    for pod, container in every_container(overlay):
        context = pod["spec"]["securityContext"] | container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        if container["name"] != "vllm":  # its image runs as root, and compiles into its home folder
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("overlay", COMPLETE)
def test_traffic_without_a_policy_is_denied_for_every_pod(overlay: str) -> None:
    found = objects(overlay)
    denying = one(found, "NetworkPolicy", "tokenpool-default-deny")["spec"]
    assert denying["policyTypes"] == ["Ingress", "Egress"]
    assert denying.keys() == {"podSelector", "policyTypes"}
    assert selected(found, denying["podSelector"]) == pods(found)


@pytest.mark.parametrize("overlay", COMPLETE)
def test_policies_open_existing_ports_only(overlay: str) -> None:
    found = objects(overlay)
    for policy in of_kind(found, "NetworkPolicy"):
        spec = policy["spec"]
        chosen = selected(found, spec["podSelector"])
        assert chosen, policy["metadata"]["name"]
        assert ("ingress" in spec) <= ("Ingress" in spec["policyTypes"])
        assert ("egress" in spec) <= ("Egress" in spec["policyTypes"])
        for rule in spec.get("ingress", []):
            for port in rule["ports"]:
                assert all(port["port"] in ports(pod) for pod in chosen)
            for peer in rule.get("from", []):
                if "podSelector" in peer:
                    assert selected(found, peer["podSelector"])


def of_rules(rules: list[Json], port: int, side: str) -> list[Json | None]:
    """The permitted other ends of connections to a port; ``None`` stands for all."""
    return [
        each
        for rule in rules
        if port in {named["port"] for named in rule["ports"]}
        for each in rule.get(side, [None])
    ]


def reaches(found: list[Json], pod_name: str, port: int) -> list[Json | None]:
    """The permitted sources of connections to a port of a pod; ``None`` stands for all."""
    allowed: list[Json | None] = []
    (pod,) = selected(found, {"matchLabels": {"app.kubernetes.io/name": pod_name}})
    for policy in of_kind(found, "NetworkPolicy"):
        if pod not in selected(found, policy["spec"]["podSelector"]):
            continue
        allowed += of_rules(policy["spec"].get("ingress", []), port, "from")
    return allowed


def may_call(found: list[Json], pod_name: str, port: int) -> list[Json | None]:
    """The permitted destinations of connections from a pod to a port; ``None`` stands for all."""
    allowed: list[Json | None] = []
    (pod,) = selected(found, {"matchLabels": {"app.kubernetes.io/name": pod_name}})
    for policy in of_kind(found, "NetworkPolicy"):
        if pod in selected(found, policy["spec"]["podSelector"]):
            allowed += of_rules(policy["spec"].get("egress", []), port, "to")
    return allowed


def in_namespace(name: str) -> Json:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def test_admin_ports_are_open_to_prometheus_and_the_autoscaler_only() -> None:
    found = objects("overlays/keda")
    assert reaches(found, "vllm", 9090) == [in_namespace("monitoring")]
    assert reaches(found, "tokenpool-coordinator", 9091) == [
        in_namespace("monitoring"),
        in_namespace("keda"),
    ]


@pytest.mark.parametrize("overlay", COMPLETE)
def test_the_peer_port_is_open_between_the_sidecars_of_the_pool_only(overlay: str) -> None:
    found = objects(overlay)
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "vllm"}}}
    (pod,) = selected(found, ours["podSelector"])
    (sidecar,) = [each for each in containers(pod) if each["name"] == NAME]
    (address,) = parsed(sidecar).peer
    assert ports(pod)["tokenpool-peer"] == address.port
    assert reaches(found, "vllm", address.port) == [ours]
    assert may_call(found, "vllm", address.port) == [ours]


def test_services_do_not_lead_to_the_peer_port() -> None:
    for overlay in EVERY:
        for service in of_kind(objects(overlay), "Service"):
            targets = {port["targetPort"] for port in service["spec"]["ports"]}
            assert not targets & {9095, "tokenpool-peer"}


def test_the_lease_store_is_open_to_coordinators_and_sidecars_only() -> None:
    found = objects("overlays/try-out")
    peers = reaches(found, "tokenpool-redis", 6379)
    assert all(peer is not None and peer.keys() == {"podSelector"} for peer in peers)
    names = {
        pod["metadata"]["labels"]["app.kubernetes.io/name"]
        for peer in peers
        if peer is not None
        for pod in selected(found, peer["podSelector"])
    }
    assert names == {"tokenpool-coordinator", "vllm"}


def test_the_proxied_port_is_open_to_the_cluster_and_the_engine_is_not() -> None:
    found = objects("base")
    assert reaches(found, "vllm", 8000) == [{"namespaceSelector": {}}]
    assert reaches(found, "vllm", 18000) == []


# --- autoscalers ---
@pytest.mark.parametrize("overlay", COMPLETE)
def test_only_the_autoscaler_sets_the_replicas(overlay: str) -> None:
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(objects(overlay), *AUTOSCALERS)}
    # The chart knows whether there is an autoscaler. In a kustomization it may be added.
    assert scaled == {"vllm"} or overlay not in ("overlays/keda", "overlays/hpa", "chart/full")
    if scaled or not overlay.startswith("chart"):
        assert "replicas" not in one(objects(overlay), "Deployment", "vllm")["spec"]


def test_keda_sets_the_replicas_of_the_page() -> None:
    found = objects("overlays/keda")
    scaled = one(found, "ScaledObject", "tokenpool-chat")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    (pool,) = pool_file().pools
    assert one(found, "Deployment", spec["scaleTargetRef"]["name"])
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (pool.min_replicas, pool.max_replicas)
    (trigger,) = spec["triggers"]
    service = one(found, "Service", "tokenpool-coordinator")
    host = f"tokenpool-coordinator.{service['metadata']['namespace']}.svc"
    assert trigger == {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": f"http://{host}:{service['spec']['ports'][0]['port']}/scale/{pool.name}",
            "valueLocation": "desired_replicas",
            "targetValue": "1",
        },
    }
    assert "fallback" not in spec
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert_safe(behavior, every_s=spec["pollingInterval"])


def assert_safe(behavior: dict[str, Any], every_s: float) -> None:
    """Differing coordinators remove no replica, and one wrong answer starts none."""
    settings = coordinator_settings.Settings(config=K8S, store="")
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] >= 2 * every_s
    down = behavior["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= settings.scale_down_window
    assert {each["type"]: each["value"] for each in down["policies"]} == {"Pods": 1, "Percent": 10}


@pytest.mark.parametrize("period", [1, 2, 3, 5, 19])
def test_differing_answers_remove_no_replica(period: int) -> None:
    """The autoscaler's rule for polls of a right coordinator and of one that answers 1, in any order."""
    behavior = one(objects("overlays/hpa"), "HorizontalPodAutoscaler", "tokenpool-chat")["spec"]["behavior"]
    up, down = (behavior[each]["stabilizationWindowSeconds"] for each in ("scaleUp", "scaleDown"))
    replicas, answers = 4, list[tuple[int, int]]()
    for poll in range(400):
        now = poll * 15
        answers.append((now, 4 if poll % (period + 1) == 0 else 1))
        lowest = min(n for at, n in answers if at > now - up)
        highest = max(n for at, n in answers if at > now - down)
        replicas = min(max(replicas, lowest), highest)
        assert replicas == 4


def test_the_horizontal_autoscaler_sets_the_replicas_of_the_metric() -> None:
    found = objects("overlays/hpa")
    spec = one(found, "HorizontalPodAutoscaler", "tokenpool-chat")["spec"]
    (pool,) = pool_file().pools
    assert one(found, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    assert (spec["minReplicas"], spec["maxReplicas"]) == (pool.min_replicas, pool.max_replicas)
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"]["selector"] == {"matchLabels": {"pool": pool.name}}
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert_safe(spec["behavior"], every_s=15)
    (rule,) = yaml.safe_load((K8S / "overlays/hpa/adapter-values.yaml").read_text())["rules"]["external"]
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    exported = {each.name for each in Telemetry(dict).collect()}
    assert {"tokenpool_desired_replicas", "tokenpool_store_up"} <= exported
    assert rule["seriesQuery"].startswith("tokenpool_desired_replicas{")
    assert rule["metricsQuery"].endswith("tokenpool_store_up == 1)")
    assert {each["metadata"]["name"] for each in of_kind(found, "PodMonitor")} == {
        "tokenpool-coordinator",
        "tokenpool-sidecar",
        "vllm",
    }


def test_the_jobs_have_the_names_that_the_alerts_expect() -> None:
    """By the pod's label or by a relabelling; and the operator's own name for a job would do, too."""
    found = objects("overlays/hpa")
    rules = str(one(found, "PrometheusRule", "tokenpool")["spec"])
    expected = re.search(r'up\{job=~"([^"]+)"\}', rules)
    assert expected is not None
    jobs = {}
    for each in of_kind(found, "PodMonitor"):
        spec, name = each["spec"], each["metadata"]["name"]
        (pod,) = selected(found, spec["selector"])
        (endpoint,) = spec["podMetricsEndpoints"]
        named = [r["replacement"] for r in endpoint.get("relabelings", []) if r["targetLabel"] == "job"]
        labels = pod["metadata"]["labels"]
        jobs[name] = named[0] if named else labels[spec["jobLabel"]]
        assert bool(re.fullmatch(expected[1], f"any-namespace/{name}")) == name.startswith("tokenpool-")
    assert jobs == {name: name for name in ("tokenpool-coordinator", "tokenpool-sidecar", "vllm")}
    assert [name for name in jobs if re.fullmatch(expected[1], jobs[name])] == sorted(jobs)[:2]


def test_the_dashboards_are_config_maps_that_grafana_finds() -> None:
    found = of_kind(objects("overlays/hpa"), "ConfigMap")
    pages = [each for each in found if each["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert {each["metadata"]["name"] for each in pages} == {
        f"tokenpool-dashboard-{name}" for name in ("pod", "pool", "tenants")
    }
    for each in pages:
        assert len(str(each)) < 262_144  # kubectl apply keeps a copy in an annotation


# --- the webhook ---
def test_the_injectors_pod_monitor_reads_its_port_and_trusts_its_certificate() -> None:
    found = objects("overlays/injected")
    monitor = yaml.safe_load((K8S / "components/monitoring-injector/podmonitor.yaml").read_text())
    (pod,) = selected(found, monitor["spec"]["selector"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["path"], endpoint["scheme"]) == ("/metrics", "https")
    assert endpoint["port"] in ports(pod)
    certificate = one(found, "Certificate", "tokenpool-injector")["spec"]
    assert endpoint["tlsConfig"]["serverName"] in certificate["dnsNames"]
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == certificate["secretName"]


def test_the_webhook_is_asked_again_after_another_webhook_changed_the_pod() -> None:
    (hook,) = one(objects("overlays/injected"), "MutatingWebhookConfiguration", "tokenpool-injector")[
        "webhooks"
    ]
    assert hook["reinvocationPolicy"] == "IfNeeded"


def test_the_webhook_leads_to_the_injector_and_trusts_its_certificate() -> None:
    found = objects("overlays/injected")
    webhook = one(found, "MutatingWebhookConfiguration", "tokenpool-injector")
    service = one(found, "Service", "tokenpool-injector")
    namespace = service["metadata"]["namespace"]
    (hook,) = webhook["webhooks"]
    client = hook["clientConfig"]["service"]
    assert (client["name"], client["namespace"]) == (service["metadata"]["name"], namespace)
    assert (client["path"], client["port"]) == ("/mutate", service["spec"]["ports"][0]["port"])
    certificate = one(found, "Certificate", "tokenpool-injector")
    assert f"tokenpool-injector.{namespace}.svc" in certificate["spec"]["dnsNames"]
    source = webhook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert source == f"{namespace}/{certificate['metadata']['name']}"
    issuer = one(found, "Issuer", certificate["spec"]["issuerRef"]["name"])
    authority = one(found, "Certificate", "tokenpool-injector-ca")
    assert issuer["spec"]["ca"]["secretName"] == authority["spec"]["secretName"]
    assert authority["spec"]["isCA"] is True
    assert one(found, "Issuer", authority["spec"]["issuerRef"]["name"])["spec"] == {"selfSigned": {}}
    assert {each["apiVersion"] for each in of_kind(found, "Certificate", "Issuer")} == {"cert-manager.io/v1"}


def test_only_new_pods_with_the_label_depend_on_the_injector() -> None:
    found = objects("overlays/injected")
    (hook,) = one(found, "MutatingWebhookConfiguration", "tokenpool-injector")["webhooks"]
    assert hook["failurePolicy"] == "Fail"
    assert hook["objectSelector"] == {"matchLabels": {Template().label: "true"}}
    assert [rule["operations"] for rule in hook["rules"]] == [["CREATE"]]
    assert hook["admissionReviewVersions"] == ["v1"]
    assert hook["sideEffects"] == "None"
    asking = [
        pod
        for pod in map(pod_of, of_kind(found, "Deployment"))
        if Template().label in pod["metadata"]["labels"]
    ]
    assert [pod["spec"]["containers"][0]["name"] for pod in asking] == ["vllm"]
    assert [each["name"] for each in containers(asking[0])] == ["vllm"]


# --- entitlements as resources ---
def test_the_coordinators_may_do_no_more_than_needed() -> None:
    """The API server of ``tests/integration/coordinator`` refuses all that this Role does not admit."""
    role = one(objects("overlays/entitlements"), "Role", "tokenpool-entitlements")
    rights = {
        (resource, verb): rule.get("resourceNames")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    ours = {(plural, verb) for plural in ("tokenpools", "entitlements") for verb in ("list", "watch")}
    status = {(f"{plural}/status", "patch") for plural in ("tokenpools", "entitlements")}
    assert rights.keys() == ours | status | {("secrets", "list"), ("secrets", "watch")}
    assert rights["secrets", "list"] == ["tokenpool-tenant-keys"]


def test_the_example_of_resources_is_admitted_and_valid() -> None:
    documents = list(yaml.safe_load_all((K8S.parent / "docs/examples/entitlements.yaml").read_text()))
    server, merge = ApiServer(), Merge(pool_file())
    resources, secrets = {}, {}
    for each in documents:
        name = each["metadata"]["name"]
        if each["kind"] == "Secret":
            values = {key: value.encode() for key, value in each["stringData"].items()}
            secrets[SecretName("tenants", name)] = SecretState(secret_digests(values))
            continue
        stored = server.apply(f"{each['kind'].lower()}s", "tenants", name, each["spec"])
        assert stored["spec"] == each["spec"]
        made = read(stored)
        resources[made.key] = made
    assert not list(filter(None, merge.update(resources, secrets)))
    assert all(each.holds for each in (*merge.accepted.values(), *merge.resolved.values()))
    assert merge.secrets == secrets.keys()


def test_the_rights_are_those_of_the_coordinators_service_account() -> None:
    found = objects("overlays/entitlements")
    binding = one(found, "RoleBinding", "tokenpool-entitlements")
    [subject] = binding["subjects"]
    account = one(found, "ServiceAccount", "tokenpool-coordinator")["metadata"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert binding["roleRef"]["name"] == one(found, "Role", "tokenpool-entitlements")["metadata"]["name"]
