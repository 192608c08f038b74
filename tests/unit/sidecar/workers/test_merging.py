"""One answer of several: readiness, state and live page."""

from __future__ import annotations

from dashboard.snapshot import (
    Replicas,
    ShownEntitlement,
    ShownHandover,
    ShownPool,
    Snapshot,
    Tally,
)
from runtime.admin import Readiness
from sidecar.workers import merging

READY, DOWN = Readiness([], ["a notice"]), Readiness(["the engine does not answer"], [])


def test_one_worker_that_serves_is_enough() -> None:
    made = merging.readiness({0: READY, 1: DOWN, 2: None}, is_draining=False)

    assert made.problems == []
    assert made.degraded == ["a notice", "worker 1: the engine does not answer", "worker 2 does not answer"]


def test_a_problem_of_all_workers_is_stated_once() -> None:
    assert merging.readiness({0: DOWN, 1: DOWN}, is_draining=False).problems == DOWN.problems


def test_without_an_answer_and_while_it_drains_a_sidecar_is_not_ready() -> None:
    assert merging.readiness({0: None}, is_draining=False).problems == ["no worker answers"]
    assert merging.readiness({0: READY}, is_draining=True).problems == ["draining"]


def state(running: int, level: float, **more: object) -> dict[str, object]:
    return {
        "pool": "chat",
        "draining": False,
        "config_is_current": True,
        "in_flight": running,
        "engine": {"up": running > 1, "slots": 8.0},
        "lease_store": {"holder": f"w{running}"},
        "handover": None,
        "entitlements": {
            "a": {
                "tier": "elastic",
                "limit": {"concurrency": 8.0},
                "held": {"tokens_per_second": 100.0, "concurrency": float(running)},
                "in_use": {"concurrency": running},
                "demand": {"concurrency": running},
                "level": level,
                "debt": 0.5,
                "outcomes": {"finished": 10, f"own {running}": 1},
                "shadow": None,
            }
        },
        **more,
    }


def test_the_state_of_all_workers_is_that_of_one_sidecar() -> None:
    about = {0: {"worker": 0, "pid": 1}, 1: {"worker": 1, "pid": 2}, 2: {"worker": 2, "pid": None}}

    made = merging.state({0: state(1, 5.0), 1: state(2, 3.0, draining=True, config_is_current=False)}, about)

    assert (made["pool"], made["draining"], made["config_is_current"], made["in_flight"]) == (
        "chat",
        True,
        False,
        3,
    )
    assert made["engine"] == {"up": True, "slots": 8.0}
    assert made["entitlements"]["a"] == {
        "tier": "elastic",
        "limit": {"concurrency": 8.0},
        "held": {"tokens_per_second": 100.0, "concurrency": 3.0},
        "in_use": {"concurrency": 3},
        "demand": {"concurrency": 3},
        "level": 3.0,
        "debt": 0.5,
        "outcomes": {"finished": 20, "own 1": 1, "own 2": 1},
        "shadow": None,
    }
    assert [each["in_flight"] for each in made["workers"]] == [1, 2, None]
    assert made["workers"][1]["lease_store"] == {"holder": "w2"}


def shown(spent: float, in_use: float, **more: object) -> Snapshot:
    entitlement = ShownEntitlement(
        "a",
        "elastic",
        in_use=(None, 10.0, in_use),
        demand=(1.0, 2.0, 3.0),
        spent=spent,
        decisions={"shed": 1},
    )
    pool = ShownPool(
        "chat",
        in_use=(None, 5.0, 1.0),
        replicas=Replicas(sidecars=1, engines_up=int(spent > 1)),
        entitlements=(entitlement, ShownEntitlement(f"only {spent:g}", "spot")),
        tallies={"": Tally({"a": {"finished": 1}})},
        waiting=(("elastic", 1),),
        handover=ShownHandover(peers=1, results=(("taken", 1),), guests=1),
    )
    return Snapshot("sidecar", f"w{spent:g}", (pool,), ("a notice",), "about")


def test_the_live_page_shows_all_workers_as_one_sidecar() -> None:
    made = merging.snapshot({0: shown(1, 4.0), 1: shown(2, 5.0)}, "two workers")

    assert (made.process, made.name, made.notices) == ("sidecar", "two workers", ("a notice",))
    (pool,) = made.pools
    assert (pool.in_use, pool.waiting) == ((None, 10.0, 2.0), (("elastic", 2),))
    assert (pool.replicas.sidecars, pool.replicas.engines_up) == (1, 1)
    assert list(pool.tallies) == ["worker 0 w1", "worker 1 w2"]
    assert pool.handover == ShownHandover(peers=1, results=(("taken", 2),), guests=2)
    assert {each.name for each in pool.entitlements} == {"a", "only 1", "only 2"}
    entitlement = pool.entitlements[0]
    assert (entitlement.in_use, entitlement.demand) == ((None, 10.0, 5.0), (2.0, 4.0, 6.0))
    assert (entitlement.spent, entitlement.decisions) == (3.0, {"shed": 2})


def test_a_lone_sidecar_with_workers_has_no_coordinator() -> None:
    made = merging.snapshot({0: shown(1, 4.0)}, "n", "a lone sidecar")

    assert (made.about, [pool.leader for pool in made.pools]) == ("", ["a lone sidecar"])
    assert merging.snapshot({0: shown(1, 4.0)}, "n").about == "about"


def test_the_live_page_without_workers_says_so() -> None:
    assert merging.snapshot({}, "n").notices == ("no worker answers",)
