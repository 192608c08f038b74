"""The rollout: a resource is enforced when all sidecars have the version that it changed with."""

from __future__ import annotations

from coordinator.resources.rollout import GRACE_S, MOST_VERSIONS, Rollout
from tests.support.resources import key

A, B = key("a"), key("b")


def rolled_out() -> Rollout:
    made = Rollout()
    made.published("v1", [A, B])
    made.observe(["v1", "v1"], 0)
    return made


def test_a_change_of_one_resource_leaves_the_others_enforced() -> None:
    rollout = rolled_out()
    assert rollout.is_enforced(A)
    rollout.published("v2", [A])
    assert not rollout.is_enforced(A)
    assert rollout.is_enforced(B)
    assert rollout.observe(["v1", "v2"], 1) == set()
    assert (rollout.sidecars, rollout.behind) == (2, 1)
    assert rollout.observe(["v2", "v2"], 2) == {A}
    assert rollout.is_enforced(A)


def test_a_later_version_includes_an_earlier_one() -> None:
    rollout = rolled_out()
    rollout.published("v2", [A])
    rollout.published("v3", [B])
    assert rollout.observe(["v3", "v3"], 1) == {A, B}


def test_a_version_may_come_back() -> None:
    rollout = rolled_out()
    rollout.published("v2", [A])
    rollout.published("v1", [A])
    assert rollout.observe(["v1", "v1"], 1) == {A}
    rollout.published("v1", [B])
    assert rollout.is_enforced(B), "the same version is published again"


def test_a_new_sidecar_has_time_to_take_the_published_file() -> None:
    rollout = rolled_out()
    assert rollout.observe(["v1", "v1", "its own"], 1) == set()
    assert rollout.observe(["v1", "v1", "its own"], 1 + GRACE_S / 2) == set()
    assert rollout.is_enforced(A)
    assert rollout.observe(["v1", "v1", "v1"], 1 + GRACE_S / 2) == set()
    # The grace begins anew.
    assert rollout.observe(["v1", "its own"], 20) == set()
    assert rollout.observe(["v1", "its own"], 20 + GRACE_S) == {A, B}
    assert not rollout.is_enforced(A)


def test_without_sidecars_nothing_is_enforced() -> None:
    rollout = rolled_out()
    assert rollout.observe([], 1) == {A, B}
    assert not rollout.is_enforced(A)
    assert rollout.observe([], 2) == set()
    assert rollout.observe(["v1"], 3) == {A, B}
    assert rollout.is_enforced(A)


def test_a_resource_that_is_not_in_force_is_not_enforced() -> None:
    rollout = rolled_out()
    rollout.forget(A)
    assert not rollout.is_enforced(A)


def test_old_versions_are_forgotten() -> None:
    rollout = rolled_out()
    for number in range(MOST_VERSIONS + 1):
        rollout.published(f"w{number}", [A])
    assert rollout.observe(["v1"], 0) == set()
    assert rollout.observe(["v1"], GRACE_S) == {B}, "v1 is unknown now, and counts as the oldest"
