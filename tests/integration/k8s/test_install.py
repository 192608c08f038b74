"""The chart, installed and upgraded by Helm itself, in an API server that only stores objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import helm_python
import pytest

from tests.integration.k8s.rendering import CHART, RELEASE, Json, objects, values_of
from tests.support.object_store import ObjectStore, serving


@dataclass
class Cluster:
    """A server, and Helm with its memory of releases."""

    store: ObjectStore
    helm: helm_python.Config


@contextlib.contextmanager
def running(minor: int) -> Iterator[Cluster]:
    """A cluster of Kubernetes 1.``minor``."""
    with (
        serving(minor) as store,
        helm_python.Config(
            kubeconfig_content=store.kubeconfig,
            namespace=RELEASE,
            storage_driver="memory",
            qps=1000,
            burst_limit=1000,
        ) as helm,
    ):
        yield Cluster(store, helm)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running(37) as made:
        yield made


def test_one_command_installs_every_object_and_uninstall_leaves_none(cluster: Cluster) -> None:
    cluster.helm.install(CHART, RELEASE, values_of("chart/try-out"), namespace=RELEASE)
    installed = {(stored["kind"], stored["metadata"]["name"]) for stored in cluster.store.objects.values()}
    assert installed == {(each["kind"], each["metadata"]["name"]) for each in objects("chart/try-out")}
    cluster.helm.uninstall(RELEASE)
    assert cluster.store.objects == {}


def test_an_upgrade_keeps_keys_passwords_and_the_certificate(cluster: Cluster) -> None:
    def secrets() -> dict[str, dict[str, str]]:
        names = ("tokenpool-keys", "tokenpool-redis", "tokenpool-store", "tokenpool-injector-tls")
        return {name: cluster.store.secret(RELEASE, name) for name in names}

    cluster.helm.install(CHART, RELEASE, {}, namespace=RELEASE)
    before = secrets()
    values: Json = {"coordinator": {"replicas": 3}}
    cluster.helm.upgrade(CHART, RELEASE, values, namespace=RELEASE)
    assert secrets() == before
    assert before["tokenpool-redis"]["password"] in before["tokenpool-store"]["url"]
    (hook,) = cluster.store.objects[
        "admissionregistration.k8s.io/v1", "", "mutatingwebhookconfigurations", "tokenpool-injector"
    ]["webhooks"]
    stored = cluster.store.objects["v1", RELEASE, "secrets", "tokenpool-injector-tls"]
    assert hook["clientConfig"]["caBundle"] == stored["data"]["ca.crt"]


def test_an_upgrade_adds_the_key_of_a_new_tenant_and_takes_keys_that_values_give(cluster: Cluster) -> None:
    values = values_of("chart/several-pools")
    # The store has no kinds of operators.
    values |= {"autoscaling": {"kind": "none"}, "monitoring": {}}
    cluster.helm.install(CHART, RELEASE, values, namespace=RELEASE)
    before = cluster.store.secret("models", "tokenpool-keys")
    values["poolFile"]["entitlements"].append(
        {
            "name": "new",
            "pool": "chat",
            "tier": "spot",
            "api_keys": [{"file": "/etc/tokenpool/keys/new-tenant"}],
        }
    )
    values["keys"] = {"values": {"editor": "chosen"}}
    cluster.helm.upgrade(CHART, RELEASE, values, namespace=RELEASE)
    after = cluster.store.secret("models", "tokenpool-keys")
    assert after == before | {"editor": "chosen", "new-tenant": after["new-tenant"]}
    assert len(after["new-tenant"]) == 32
    assert cluster.store.secret("search", "tokenpool-keys") == after


@pytest.mark.parametrize(
    ("minor", "values", "native"),
    [(37, {}, None), (32, {}, None), (31, {}, "--native=false"), (31, {"native": True}, "--native=true")],
)
def test_older_clusters_get_plain_sidecars(minor: int, values: Json, native: str | None) -> None:
    with running(minor) as cluster:
        cluster.helm.install(CHART, RELEASE, {"injector": {"sidecar": values}}, namespace=RELEASE)
        injector = cluster.store.objects["apps/v1", RELEASE, "deployments", "tokenpool-injector"]
    (container,) = injector["spec"]["template"]["spec"]["containers"]
    assert [each for each in container["args"] if "native" in each] == [native] * (native is not None)


def test_the_autoscaler_has_its_tolerance_where_the_cluster_knows_the_field() -> None:
    def tolerance(minor: int) -> object:
        with running(minor) as cluster:
            cluster.helm.install(CHART, RELEASE, {"autoscaling": {"kind": "hpa"}}, namespace=RELEASE)
            key = ("autoscaling/v2", RELEASE, "horizontalpodautoscalers", "tokenpool-chat")
            return cluster.store.objects[key]["spec"]["behavior"]["scaleUp"].get("tolerance")

    assert (tolerance(35), tolerance(34)) == ("0", None)


def test_a_cluster_that_is_too_old_is_refused() -> None:
    with running(28) as cluster, pytest.raises(helm_python.HelmError, match="requires kubeVersion"):
        cluster.helm.install(CHART, RELEASE, {}, namespace=RELEASE)
