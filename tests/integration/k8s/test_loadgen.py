"""The load test as a Job: its command and scenario, its keys and permissions, and its way to the pool."""

from __future__ import annotations

from typing import Any

import yaml

from loadgen.options import make_parser
from loadgen.reading import parse
from tests.integration.k8s.rendering import K8S, LOADGEN, Json, documents, objects


def found(kind: str, rendering: str = LOADGEN, name: str = "tokenpool-loadgen") -> Json:
    (only,) = [
        each for each in objects(rendering) if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return only


JOB = found("Job")["spec"]
POD: Json = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
(READER,) = documents((K8S / LOADGEN / "results.yaml").read_text())


def arguments() -> Any:
    program, *words = [*CONTAINER["command"], *CONTAINER["args"]]
    assert program == "loadgen"
    return make_parser().parse_args(words)


def test_the_scenario_is_valid_and_ends_before_the_deadline() -> None:
    environment = {each["name"]: "key" for each in CONTAINER["env"]}
    text = found("ConfigMap")["data"]["scenario.yaml"]
    scenario = parse(text, "scenario.yaml", environment, K8S)
    assert JOB["activeDeadlineSeconds"] > scenario.duration_s + scenario.drain_s
    assert {tenant.key for tenant in scenario.tenants} == {"key"}
    engine = found("Deployment", "base", "vllm")["spec"]["template"]["spec"]["containers"][0]
    assert scenario.model == engine["args"][0]


def test_every_variable_is_used_and_its_key_exists() -> None:
    keys = next(
        each["stringData"]
        for each in yaml.safe_load_all((K8S / "components/try-out/secrets.yaml").read_text())
        if each["metadata"]["name"] == "tokenpool-keys"
    )
    text = found("ConfigMap")["data"]["scenario.yaml"]
    for each in CONTAINER["env"]:
        reference = each["valueFrom"]["secretKeyRef"]
        assert reference["name"] == "tokenpool-keys"
        assert reference["key"] in keys
        assert each["name"] in text


def test_the_command_is_valid_and_its_paths_are_mounted() -> None:
    read = arguments()
    volumes = {each["name"]: each for each in POD["volumes"]}
    paths = {each["mountPath"]: volumes[each["name"]] for each in CONTAINER["volumeMounts"]}
    assert paths[str(read.scenario.parent)]["configMap"]["name"] == found("ConfigMap")["metadata"]["name"]
    assert read.scenario.name in found("ConfigMap")["data"]
    claim = paths[str(read.out.parent)]["persistentVolumeClaim"]["claimName"]
    assert claim == found("PersistentVolumeClaim")["metadata"]["name"]
    (volume,) = READER["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim


def test_the_url_is_the_service_of_the_pool_and_the_policy_opens_its_port() -> None:
    service = found("Service", "base", "chat")["spec"]
    assert arguments().url == ["http://chat"]
    (port,) = service["ports"]
    assert port["port"] == 80
    policy = found("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= JOB["template"]["metadata"]["labels"].items()
    names, pool = policy["egress"]
    assert {each["port"] for each in names["ports"]} == {53}
    assert pool["to"] == [{"podSelector": {"matchLabels": service["selector"]}}]
    assert pool["ports"] == [{"protocol": "TCP", "port": port["targetPort"]}]


def test_a_run_is_not_repeated() -> None:
    assert (JOB["backoffLimit"], POD["restartPolicy"]) == (0, "Never")


def test_the_pods_have_minimal_privileges() -> None:
    for spec in (POD, READER["spec"]):
        (container,) = spec["containers"]
        context = spec["securityContext"] | container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_all_images_are_those_of_the_pool() -> None:
    pool = found("Deployment", "base", "tokenpool-coordinator")["spec"]["template"]["spec"]
    images = {CONTAINER["image"], READER["spec"]["containers"][0]["image"]}
    assert images == {pool["containers"][0]["image"]}
