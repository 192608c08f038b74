"""The chart, installed and upgraded by Helm itself, in an API server that only stores objects."""

from __future__ import annotations

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


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with (
        serving() as store,
        helm_python.Config(
            kubeconfig_content=store.kubeconfig,
            namespace=RELEASE,
            storage_driver="memory",
            qps=1000,
            burst_limit=1000,
        ) as helm,
    ):
        yield Cluster(store, helm)


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
