"""A controller and an API server over sockets: changes are published and statuses written, whatever fails."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.resources.api import Api, ApiFailure
from tests.integration.coordinator.world import NAMESPACE, POOL, World
from tests.support.resources import digest
from tokenpool.poolfile.reading import parse

REF = {"secretRef": {"name": "keys", "key": "a"}}


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(tmp_path, monkeypatch)
    async with made.serving():
        made.server.apply("tokenpools", NAMESPACE, "chat", POOL)
        made.apply("a")
        made.apply("b", tier="guaranteed", guarantee={"concurrency": 4})
        yield made


async def test_a_change_is_published_and_its_status_written(world: World) -> None:
    async with world.coordinator():
        assert world.weight("a") == 1
        world.apply("a", weight=3)
        await world.until(lambda: world.weight("a") == 3)
        await world.until(lambda: world.condition("a", "Accepted") == ("True", "Accepted"))
        await world.until(
            lambda: world.server.get("entitlements", NAMESPACE, "a")["status"].get("acceptedGeneration") == 2
        )
        world.apply("c")
        await world.until(lambda: world.weight("c") == 1)
        world.server.delete("entitlements", NAMESPACE, "a")
        await world.until(lambda: world.entitlement("a") is None)


async def test_enforced_follows_the_sidecars(world: World) -> None:
    async with world.coordinator():
        await world.until(lambda: world.condition("a", "Enforced") == ("False", "NoSidecars"))
        version = world.leaders["chat"].file_version
        world.sidecars = (version, version)
        await world.until(lambda: world.condition("a", "Enforced")[0] == "True")
        await world.until(lambda: world.condition("b", "Overcommitted") == ("False", "WithinCapacity"))
        await world.until(lambda: world.condition("chat", "Enforced", "tokenpools")[0] == "True")
        world.apply("a", weight=2)
        await world.until(lambda: world.condition("a", "Enforced") == ("False", "RollingOut"))
        world.sidecars = (world.leaders["chat"].file_version, version)
        assert world.condition("b", "Enforced")[0] == "True"
        world.sidecars = (world.leaders["chat"].file_version,)
        await world.until(lambda: world.condition("a", "Enforced")[0] == "True")
        status = world.server.get("tokenpools", NAMESPACE, "chat")["status"]
        assert (status["entitlements"], status["promised"]["concurrency"]) == (2, 4)


async def test_live_use_and_overcommitment_are_shown(world: World) -> None:
    async with world.coordinator(scan_s=0.5):
        world.sidecars, world.sequences = (world.leaders["chat"].file_version,), 3
        use = lambda: world.server.get("entitlements", NAMESPACE, "a").get("status", {}).get("use", {})  # noqa: E731
        await world.until(lambda: use().get("concurrency") == 2)
        await world.until(lambda: world.condition("b", "Overcommitted") == ("True", "BeyondLiveCapacity"))
        pool = lambda: world.server.get("tokenpools", NAMESPACE, "chat").get("status", {})  # noqa: E731
        await world.until(lambda: pool().get("replicas", {}).get("ready") == 1)


async def test_a_bad_resource_affects_itself_alone(world: World) -> None:
    async with world.coordinator():
        world.server.force("entitlements", NAMESPACE, "b", {"pool": "chat", "tier": "gold"})
        world.server.force("entitlements", NAMESPACE, "c", None)
        world.apply("a", weight=5)
        await world.until(lambda: world.weight("a") == 5)
        await world.until(lambda: world.condition("b", "Accepted") == ("False", "Invalid"))
        kept = world.entitlement("b")
        assert kept is not None
        assert kept.guarantee.concurrency == 4
        said = world.server.condition("entitlements", NAMESPACE, "b", "Accepted")["message"]
        assert "spec.tier is 'gold'" in said
        assert "generation 1" in said
        assert world.condition("b", "Enforced")[1] == "EarlierVersion"
        await world.until(lambda: world.condition("c", "Accepted") == ("False", "Invalid"))


async def test_resources_join_a_pool_file_which_may_change(world: World) -> None:
    text = "pools: [{name: filed, models: [tiny]}]\nentitlements: [{name: first, pool: filed, tier: spot}]"
    async with world.coordinator(parse(text).file) as controller:
        world.apply("c", pool="filed")
        await world.until(lambda: world.entitlement("c") is not None)
        assert [pool.name for pool in world.files[-1].pools] == ["filed", "chat"]
        controller.base_changed(parse(text.replace("first", "a")).file)
        await world.until(lambda: world.entitlement("first") is None)
        assert world.entitlement("a").pool == "filed"  # type: ignore[union-attr]
        await world.until(lambda: world.condition("a", "Accepted") == ("False", "NameTaken"))
        assert world.entitlement("c") is not None


# --- Secrets ---
async def test_a_key_follows_its_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world.coordinator():
        world.apply("a", apiKeys=[REF])
        await world.until(lambda: world.condition("a", "ResolvedRefs") == ("False", "SecretNotFound"))
        world.server.apply_secret(NAMESPACE, "keys", a="first-key\n", other="x")
        world.server.apply_secret(NAMESPACE, "unrelated", a="private")
        await world.until(lambda: world.keys("a") == {digest("first-key")})
        await world.until(lambda: world.condition("a", "ResolvedRefs")[0] == "True")
        world.server.apply_secret(NAMESPACE, "keys", a="second-key")
        await world.until(lambda: world.keys("a") == {digest("second-key")})
        world.server.delete("secrets", NAMESPACE, "keys")
        await world.until(lambda: world.keys("a") == set())
        assert world.server.secrets_read == {(NAMESPACE, "keys")}
        world.apply("a")
        await world.until(lambda: world.condition("a", "ResolvedRefs")[0] == "True")
    assert not any(text in caplog.text for text in ("first-key", "second-key", "Zmlyc3Qt", "test-token"))


async def test_a_secret_that_may_not_be_read_keeps_the_published_keys(world: World) -> None:
    world.server.apply_secret(NAMESPACE, "keys", a="first-key")
    world.apply("a", apiKeys=[REF])
    async with world.coordinator():
        assert world.keys("a") == {digest("first-key")}
        await world.until(lambda: world.leaders["chat"].rounds["led"] > 1)
    world.server.faults.forbidden = {"secrets"}
    async with world.coordinator():
        assert world.keys("a") == {digest("first-key")}
        await world.until(lambda: world.condition("a", "ResolvedRefs") == ("False", "SecretUnreadable"))
        said = world.server.condition("entitlements", NAMESPACE, "a", "ResolvedRefs")["message"]
        assert "k8s/entitlements/rbac.yaml" in said


# --- failures of the API server ---
async def test_all_failures_together(world: World) -> None:
    """Watches end after 0.2 s on average, a third with 410; requests meet 429, and writes meet conflicts."""
    faults = world.server.faults
    faults.end_watches_after_s, faults.forget_with = 0.2, 0.3
    faults.refuse = Counter({"list": 3, "watch": 5, "patch": 3})
    faults.conflicts = 10
    async with world.coordinator() as controller:
        for number in range(2, 22):
            world.apply("a", weight=number)
            world.apply(f"n{number}")
            await world.until(lambda: world.weight("a") == number, 12)  # noqa: B023
            await world.until(lambda: world.entitlement(f"n{number}") is not None)  # noqa: B023
        await world.until(
            lambda: (
                world.server.get("entitlements", NAMESPACE, "a").get("status", {}).get("acceptedGeneration")
                == 21
            ),
            15,
        )
        await world.until(lambda: world.condition("n21", "Accepted")[0] == "True", 15)
        assert controller.writes["conflict"] >= 1
        assert (
            world.server.answers[410] + sum(each.restarts["gone"] for each in controller._reflectors.values())
            > 1
        )
        assert world.server.answers[429] == 11
        metrics = {each.name: each for each in controller.metrics()}
        assert metrics["tokenpool_resource_status_writes"].samples[0].value > 0


async def test_the_servers_time_to_wait_is_kept(world: World) -> None:
    async with world.coordinator():
        world.server.faults.refuse = Counter({"patch": 1})
        world.server.faults.retry_after_s = 1
        asked = world.server.requests["patch entitlements"]
        world.apply("a", weight=2)
        await world.until(lambda: world.server.answers[429] == 1)
        world.apply("a", weight=3)
        waited = await world.until(lambda: world.server.requests["patch entitlements"] > asked + 1)
        assert waited > 0.8
        await world.until(lambda: world.condition("a", "Accepted")[0] == "True")


async def test_what_was_read_stays_in_force_while_the_server_does_not_answer(world: World) -> None:
    async with world.coordinator() as controller:
        world.server.faults.is_down = True
        world.server.end_watches()
        await world.until(lambda: all(each.error for each in controller._reflectors.values()))
        assert world.weight("a") == 1
        assert controller.problems() == []
        world.apply("a", weight=2)
        world.server.delete("entitlements", NAMESPACE, "b")
        world.server.forget_history()
        world.server.faults.is_down = False
        await world.until(lambda: world.weight("a") == 2 and world.entitlement("b") is None)


async def test_a_coordinator_does_not_lead_before_it_has_read_all(world: World) -> None:
    world.server.faults.is_down = True
    async with world.coordinator(until_synced=False) as controller:
        await world.until(lambda: any("no answer" in each for each in controller.problems()))
        assert world.files == []
        world.server.faults.is_down = False
        await world.until(lambda: controller.is_synced)
        assert world.weight("a") == 1


@pytest.mark.parametrize(
    ("forbidden", "advice"),
    [({"entitlements"}, "give the service account the Role"), (set(), "apply k8s/entitlements/crds")],
)
async def test_a_missing_right_or_definition_is_named(world: World, forbidden: set[str], advice: str) -> None:
    world.server.faults.forbidden = forbidden
    if not forbidden:
        del world.server.collections["entitlements"]
    async with world.coordinator(until_synced=False) as controller:
        await world.until(lambda: any(advice in each for each in controller.problems()))
        assert not controller.is_synced


# --- several coordinators ---
async def test_only_the_leader_writes(world: World) -> None:
    async with world.coordinator(leads=False):
        await world.until(lambda: "chat" in world.leaders)
        await world.until(lambda: world.server.watches == 2)
        world.apply("a", weight=2)
        await world.until(lambda: world.weight("a") == 2)
        assert world.server.requests["patch entitlements"] == 0


async def test_the_next_leader_keeps_the_last_accepted_versions(world: World) -> None:
    async with world.coordinator():
        world.apply("b", tier="guaranteed", guarantee={"concurrency": 99})
        await world.until(lambda: world.condition("b", "Accepted") == ("False", "Overcommitted"))
        await world.until(lambda: world.leaders["chat"].rounds["led"] > 1)
    async with world.coordinator():
        kept = world.entitlement("b")
        assert kept is not None
        assert kept.guarantee.concurrency == 4
        await world.until(
            lambda: (
                "published one"
                in world.server.condition("entitlements", NAMESPACE, "b", "Accepted").get("message", "")
            )
        )


# --- configuration ---
def test_without_a_configuration_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(
        ApiFailure, match=r"no configuration for the API server: .*; run in a pod, or set KUBECONFIG"
    ):
        Api()


def test_without_the_option_no_code_of_it_is_imported() -> None:
    code = (
        "import coordinator.app, coordinator.__main__, sys;"
        "optional = ('lightkube', 'httpx2', 'coordinator.resources');"
        "sys.exit(any(name.startswith(optional) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
