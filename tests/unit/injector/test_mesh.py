"""Pods with Istio's proxy: Istio's injector runs before or after, and mutual TLS may be strict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from injector.decisions import Denial, Injection, Reason
from injector.sidecar_container import NAME
from tests.support.pods import Json, container, decided, engine, injected, pod, sidecar, warnings

IN, OUT = "traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
AGENT = {"startupProbe": "startupz", "readinessProbe": "readyz", "livenessProbe": "livez"}


def meshed(
    *, native: bool = True, cni: bool = True, extra: dict[str, str] | None = None, **fields: Any
) -> Json:
    """A pod as Istio's injector leaves it: probes lead to its agent, which knows the original ones."""
    before = engine(**fields)
    known: dict[str, Json] = {}
    for name, path in AGENT.items():
        probe = before.get(name)
        if not probe or "exec" in probe:
            continue
        handler = probe.get("httpGet") or probe["tcpSocket"]
        kind = "httpGet" if "httpGet" in probe else "tcpSocket"
        known[f"/app-health/vllm/{path}"] = {kind: {**handler, "port": 8000}, "timeoutSeconds": 1}
        timing = {key: value for key, value in probe.items() if key != kind}
        before[name] = {**timing, "httpGet": {"path": f"/app-health/vllm/{path}", "port": 15020}}
    proxy: Json = {
        "name": "istio-proxy",
        "image": "istio/proxyv2:1.28",
        "env": [{"name": "ISTIO_KUBE_APP_PROBERS", "value": json.dumps(known)}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}},
    }
    init = {"name": "istio-validation" if cni else "istio-init", "image": "istio/proxyv2:1.28"}
    if native:
        made = pod(before, initContainers=[init, {**proxy, "restartPolicy": "Always"}])
    else:
        made = pod(before, proxy, initContainers=[init])
    made["metadata"]["annotations"] |= {"sidecar.istio.io/status": "{}", **(extra or {})}
    return made


def asked(**labels: str) -> Json:
    """A pod that Istio's injector has not seen yet."""
    made = pod()
    made["metadata"]["labels"] |= {name.replace("_", "/", 1): value for name, value in labels.items()}
    return made


@pytest.mark.parametrize("native", [True, False])
def test_probes_that_istio_redirected_are_the_engines_again(native: bool) -> None:
    after = container(injected(meshed(native=native)), "vllm")
    for name in PROBES:
        assert "18000" in after[name]["exec"]["command"][2], after[name]
    assert after["livenessProbe"]["periodSeconds"] == 10
    assert "GET', '/health'" in after["livenessProbe"]["exec"]["command"][2]
    assert "create_connection" in after["startupProbe"]["exec"]["command"][2]


@pytest.mark.parametrize(
    "before", [meshed(), meshed(native=False), asked(**{"sidecar.istio.io_inject": "true"})]
)
def test_the_sidecars_probes_are_commands_that_mutual_tls_does_not_stop(before: Json) -> None:
    made = sidecar(injected(before))
    for name in PROBES:
        assert made[name]["exec"]["command"][0] == "python3"
        compile(made[name]["exec"]["command"][-1], "probe", "exec")
    assert "127.0.0.1:9090/readyz" in made["readinessProbe"]["exec"]["command"][-1]
    assert made["startupProbe"]["failureThreshold"] == 60


def test_probes_of_another_container_stay_with_istios_agent() -> None:
    before = meshed()
    other = {"name": "x", "livenessProbe": {"httpGet": {"path": "/app-health/x/livez", "port": 15020}}}
    before["spec"]["containers"].append(other)
    assert container(injected(before), "x") == other


def test_the_admin_and_the_peer_port_leave_the_mesh_where_istio_runs_later() -> None:
    before = asked(**{"sidecar.istio.io_inject": "true"})
    before["metadata"]["annotations"][IN] = "9999"
    annotations = injected(before)["metadata"]["annotations"]
    assert (annotations[IN], annotations[OUT]) == ("9999,9090,9095", "9095")
    assert warnings(before) == ""


def test_a_lone_sidecar_has_no_peer_port_to_exclude() -> None:
    before = asked(**{"istio.io_rev": "stable"})
    before["metadata"]["annotations"]["tokenpool.io/handover"] = "off"
    annotations = injected(before)["metadata"]["annotations"]
    assert annotations[IN] == "9090"
    assert OUT not in annotations


def test_all_ports_may_be_excluded_already() -> None:
    before = asked(**{"istio.io_rev": "stable"})
    before["metadata"]["annotations"] |= {IN: "*", OUT: "*"}
    annotations = injected(before)["metadata"]["annotations"]
    assert (annotations[IN], annotations[OUT]) == ("*", "*")


def test_where_istio_gave_the_ports_to_its_init_container_the_owner_is_told_what_to_add() -> None:
    said = warnings(meshed(cni=False))
    assert f'add to the pod template {IN}: "9090,9095" and {OUT}: "9095"' in said
    assert warnings(meshed(cni=False, extra={IN: "9095,9090", OUT: "9095"})) == ""


def test_istios_cni_plugin_reads_the_annotations_later() -> None:
    assert injected(meshed())["metadata"]["annotations"][IN] == "9090,9095"
    assert warnings(meshed()) == ""


@pytest.mark.parametrize(
    "before",
    [
        pod(),
        asked(**{"sidecar.istio.io_inject": "false", "istio.io_rev": "stable"}),
        asked(**{"istio.io_dataplane-mode": "ambient"}),
    ],
)
def test_a_pod_outside_the_mesh_has_the_usual_probes(before: Json) -> None:
    after = injected(before)
    assert sidecar(after)["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9090}
    assert IN not in after["metadata"]["annotations"]


def test_a_probe_over_the_network_that_istio_does_not_see_is_refused() -> None:
    decision = decided(meshed(image="server:1", args=["--port", "8000", "--host", "::"]))
    assert isinstance(decision, Denial)
    assert decision.reason == Reason.MESH
    assert "container vllm: startupProbe" in decision.message
    assert "tokenpool.io/engine-probes: exec" in decision.message


def test_a_probe_over_the_network_is_left_to_istio_where_it_runs_later() -> None:
    before = asked(**{"sidecar.istio.io_inject": "true"})
    before["spec"]["containers"] = [engine(image="server:1", args=["--port", "8000", "--host", "::"])]
    after = container(injected(before), "vllm")
    assert after["livenessProbe"]["httpGet"] == {"path": "/health", "port": 8000}
    assert after["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8000}


@pytest.mark.parametrize("value", ["{", "[]", '{"/app-health/vllm/livez": 1}', None])
def test_an_unreadable_variable_of_istio_changes_nothing(value: str | None) -> None:
    before = meshed()
    before["spec"]["initContainers"][1]["env"] = [{"name": "ISTIO_KUBE_APP_PROBERS", "value": value}]
    after = container(injected(before), "vllm")
    assert after["livenessProbe"]["httpGet"] == {"path": "/app-health/vllm/livez", "port": 15020}


def test_istio_may_run_again_after_the_sidecar_is_there() -> None:
    after = injected(meshed())
    assert decided(after) == Injection()
    assert [each["name"] for each in after["spec"]["initContainers"]] == [
        "istio-validation",
        "istio-proxy",
        NAME,
    ]


@pytest.mark.parametrize(
    ("taken", "is_exposed"),
    [
        ({"scrape": "true", "port": "8000"}, True),
        ({"scrape": "true"}, True),
        ({"scrape": "true", "port": "9400", "targets": [{"port": "9400"}, {"port": "8000"}]}, True),
        ({"scrape": "true", "port": "9400"}, False),
        ({"scrape": "true", "port": "9400", "targets": [{"port": "9401"}, 8000]}, False),
        ({"scrape": "true", "port": "9400", "targets": 1}, False),
        ({"scrape": "false", "port": "8000"}, False),
    ],
)
def test_istios_agent_scrapes_the_engine_at_the_sidecar(taken: Json, is_exposed: bool) -> None:
    before = meshed()
    variable = {"name": "ISTIO_PROMETHEUS_ANNOTATIONS", "value": json.dumps(taken)}
    before["spec"]["initContainers"][1]["env"].append(variable)
    assert ("--expose-engine-metrics" in sidecar(injected(before))["args"]) == is_exposed
