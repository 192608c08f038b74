"""The engine's metrics on the proxied port: for pods that a router or a scraper reads."""

from __future__ import annotations

import pytest

from tests.support.pods import Json, denial, engine, injected, pod, sidecar, warnings

FLAG = "--expose-engine-metrics"


def told(labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None) -> Json:
    made = pod()
    made["metadata"]["labels"] |= labels or {}
    made["metadata"]["annotations"] |= annotations or {}
    return made


@pytest.mark.parametrize(
    ("labels", "annotations"),
    [
        ({"llm-d.ai/inference-serving": "true"}, {}),
        ({"llm-d.ai/role": "prefill"}, {}),
        ({"inference.networking.k8s.io/engine-type": "vllm"}, {}),
        ({"inference.networking.x-k8s.io/engine-type": "vllm"}, {}),
        ({"model.aibrix.ai/name": "chat"}, {}),
        ({"kserve.io/component": "workload"}, {}),
        ({"app.kubernetes.io/component": "serving-engine"}, {}),
        ({}, {"prometheus.io/scrape": "true"}),
        ({}, {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}),
        ({}, {"prometheus.io/scrape": "true", "prometheus.io/port": "http"}),
        ({}, {"prometheus.io/scrape": "true", "prometheus.istio.io/scrape-targets": "9400, 8000:/metrics"}),
        ({}, {"serving.kserve.io/enable-prometheus-scraping": "true"}),
        ({}, {"tokenpool.io/expose-engine-metrics": "on"}),
    ],
)
def test_the_engines_metrics_are_served_where_they_are_asked_for(
    labels: dict[str, str], annotations: dict[str, str]
) -> None:
    before = told(labels, annotations)
    assert sidecar(injected(before))["args"].count(FLAG) == 1
    if "tokenpool.io/expose-engine-metrics" not in annotations:
        assert "port 8000 serves /metrics and /v1/models without a key" in warnings(before)


@pytest.mark.parametrize(
    ("labels", "annotations"),
    [
        ({}, {}),
        ({"app": "llm-d.ai", "app.kubernetes.io/component": "router"}, {}),
        ({}, {"prometheus.io/scrape": "false", "prometheus.io/port": "8000"}),
        ({}, {"prometheus.io/scrape": "true", "prometheus.io/port": "9400"}),
        ({}, {"prometheus.io/port": "8000"}),
        (
            {},
            {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9400",
                "prometheus.istio.io/scrape-targets": "9400,9401:/8000",
            },
        ),
        ({"llm-d.ai/role": "decode"}, {"tokenpool.io/expose-engine-metrics": "off"}),
    ],
)
def test_the_engines_metrics_need_a_key_otherwise(
    labels: dict[str, str], annotations: dict[str, str]
) -> None:
    before = told(labels, annotations)
    assert FLAG not in sidecar(injected(before))["args"]
    assert "without a key" not in warnings(before)


def test_a_port_that_is_named_for_metrics_is_read_by_a_pod_monitor() -> None:
    before = pod(engine(ports=[{"name": "http-metrics", "containerPort": 8000}]))
    assert FLAG in sidecar(injected(before))["args"]
    assert sidecar(injected(before))["ports"][0] == {"name": "http-metrics", "containerPort": 8000}


def test_the_scraper_follows_the_sidecar_to_another_port() -> None:
    before = told(
        {}, {"prometheus.io/scrape": "true", "prometheus.io/port": "8000", "tokenpool.io/listen-port": "8080"}
    )
    after = injected(before)
    assert after["metadata"]["annotations"]["prometheus.io/port"] == "8080"
    assert "port 8080 serves /metrics" in warnings(before)


def test_a_path_that_leads_nowhere_is_warned_of() -> None:
    before = told(
        {}, {"prometheus.io/scrape": "true", "prometheus.io/port": "8000", "prometheus.io/path": "/m"}
    )
    assert "annotation prometheus.io/path: /m leads nowhere" in warnings(before)


def test_two_that_place_requests_are_warned_of() -> None:
    labels = {"llm-d.ai/role": "decode"}
    assert 'set annotation tokenpool.io/handover: "off"' in warnings(told(labels))
    assert "handover" not in warnings(told(labels, {"tokenpool.io/store-secret": ""}))
    assert "handover" not in warnings(told(labels, {"tokenpool.io/handover": "off"}))
    assert "handover" not in warnings(told(labels, {"tokenpool.io/handover": "on"}))
    assert "handover" not in warnings(told({}, {"prometheus.io/scrape": "true"}))


def test_the_option_is_the_injectors() -> None:
    before = told({}, {"tokenpool.io/sidecar-args": "--expose-engine-metrics"})
    assert "--expose-engine-metrics is set by the injector; remove it" in denial(before)
