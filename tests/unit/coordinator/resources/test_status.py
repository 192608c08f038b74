"""The status of a resource: conditions with their times, live use, and nothing written without a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from coordinator.resources.merge import InForce, Merge, Reason, Verdict
from coordinator.resources.reading import Kind, Resource
from coordinator.resources.status import UNKNOWN, Live, Said, Use, enforced, overcommitted, status_of
from tests.support.api_server import definitions
from tests.support.resources import entitlement, guaranteed, key, token_pool, update
from tokenpool.amounts import NO_KV_BOUND, UNBOUNDED, Amount, Dimension

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
ACCEPTED = Verdict(True, Reason.ACCEPTED, "fine")
REFUSED = Verdict(False, Reason.INVALID, "spec.weight is 0; write more than 0")
RESOLVED = Verdict(True, Reason.RESOLVED, "all keys are known")
EVERYWHERE = Said("True", "AllSidecars", "everywhere")
FINE = Live(Said("False", "WithinCapacity", "enough"))


def status(
    resource: Resource,
    accepted: Verdict = ACCEPTED,
    rolled_out: Said = EVERYWHERE,
    live: Live = FINE,
    use: Use | None = None,
    now: str = NOW,
) -> dict[str, Any] | None:
    merge = Merge(None)
    update(merge, token_pool(), resource)
    kept = merge.in_force.get(resource.key)
    return status_of(resource, accepted, RESOLVED, kept, rolled_out, live, use, now)


def stored(resource: Resource, made: dict[str, Any] | None) -> Resource:
    """The resource after a write of its status."""
    assert made is not None
    kept = {name: value for name, value in made.items() if value is not None}
    return replace(resource, status=msgspec.json.encode(msgspec.json.decode(resource.status) | kept))


def conditions(made: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    assert made is not None
    return {each["type"]: each for each in made["conditions"]}


def test_a_status_has_all_conditions_and_fits_its_schema() -> None:
    use = Use(Amount(99.6, 4000, 2), Amount(500, NO_KV_BOUND, 8))
    made = status(guaranteed("a", 2), use=use)
    assert made is not None
    assert {kind: each["status"] for kind, each in conditions(made).items()} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
        "Enforced": "True",
        "Overcommitted": "False",
    }
    assert made["use"] == {"tokensPerSecond": 100, "kvTokens": 4000, "concurrency": 2}
    assert made["limit"] == {"tokensPerSecond": 500, "concurrency": 8}
    assert made["acceptedGeneration"] == made["observedGeneration"] == 1
    whole = {"kind": "Entitlement", "metadata": {"name": "a"}, "spec": {"pool": "chat", "tier": "elastic"}}
    checked = definitions()["entitlements"].check(whole | {"status": made})
    assert checked["status"] == made, "the schema has no field for a part of the status"


def test_a_pool_shows_its_replicas_and_promises() -> None:
    live = Live(FINE.overcommitted, Amount(1, 2, 3), Amount(0, 0, 4), ready=2, desired=3, entitlements=7)
    made = status(token_pool(), live=live, use=Use(Amount(1, 1, 1), Amount(1, 2, 3)))
    assert made is not None
    assert made["replicas"] == {"ready": 2, "desired": 3}
    assert (made["entitlements"], made["promised"]["concurrency"], made["capacity"]["kvTokens"]) == (7, 4, 2)
    whole = {"kind": "TokenPool", "metadata": {"name": "chat"}, "spec": {"models": ["*"]}, "status": made}
    assert definitions()["tokenpools"].check(whole)["status"] == made


def test_nothing_is_written_without_a_change() -> None:
    resource = entitlement("a")
    use = Use(Amount(100, 0, 2), UNBOUNDED)
    resource = stored(resource, status(resource, use=use))
    assert status(resource, use=use, now=LATER) is None
    assert status(resource, use=Use(Amount(108, 0, 2), UNBOUNDED), now=LATER) is None
    assert status(resource, use=None, now=LATER) is None
    for changed in (Amount(120, 0, 2), Amount(100, 1, 2), Amount(100, 0, 0)):
        assert status(resource, use=Use(changed, UNBOUNDED)) is not None


def test_a_transition_has_its_time_and_other_conditions_keep_theirs() -> None:
    resource = entitlement("a")
    resource = stored(resource, status(resource))
    made = conditions(status(resource, REFUSED, now=LATER))
    assert made["Accepted"]["lastTransitionTime"] == LATER
    assert made["Accepted"]["message"] == REFUSED.message
    assert made["Enforced"]["lastTransitionTime"] == NOW


def test_conditions_of_others_stay() -> None:
    theirs = {"type": "Audited", "status": "True", "reason": "Fine", "message": "", "lastTransitionTime": NOW}
    resource = replace(entitlement("a"), status=msgspec.json.encode({"conditions": [theirs, "nonsense", {}]}))
    assert conditions(status(resource))["Audited"] == theirs


def test_a_message_that_counts_sidecars_is_no_change() -> None:
    resource = entitlement("a")
    rolling = Said("False", "RollingOut", "3 of 5 sidecars enforce an older pool file")
    resource = stored(resource, status(resource, rolled_out=rolling))
    assert status(resource, rolled_out=rolling._replace(message="2 of 5")) is None
    assert status(resource, rolled_out=EVERYWHERE) is not None


def test_numbers_that_are_gone_are_removed() -> None:
    resource = entitlement("a")
    resource = stored(resource, status(resource, use=Use(Amount(1, 1, 1), Amount(1, 1, 1))))
    made = status(resource, use=Use(Amount(1, 1, 1), UNBOUNDED))
    assert made is not None
    assert made["limit"] == {"tokensPerSecond": None, "kvTokens": None, "concurrency": None}
    refused = status_of(resource, REFUSED, None, None, EVERYWHERE, FINE, None, LATER)
    assert refused is not None
    assert refused["acceptedGeneration"] is None
    assert conditions(refused)["Overcommitted"]["status"] == "Unknown"


@pytest.mark.parametrize(
    ("promised", "live", "beyond", "reason"),
    [
        (4, 8, [], "WithinCapacity"),
        (4, 2, [], "BeyondLiveCapacity"),
        (4, 8, [Dimension.CONCURRENCY], "BeyondMaximum"),
        (4, None, [], "NoSidecars"),
    ],
)
def test_a_pool_is_overcommitted(
    promised: float, live: float | None, beyond: list[Dimension], reason: str
) -> None:
    capacity = None if live is None else Amount(0, 0, live)
    said = overcommitted(Amount(0, 0, promised), capacity, beyond, 2)
    assert said.reason == reason
    assert said.status == {"WithinCapacity": "False", "NoSidecars": "Unknown"}.get(reason, "True")
    assert (said == UNKNOWN) == (live is None)


def test_only_what_has_a_guarantee_is_overcommitted() -> None:
    over = Live(Said("True", "BeyondLiveCapacity", "too much"))
    assert conditions(status(entitlement("a"), live=over))["Overcommitted"]["reason"] == "NoGuarantee"
    assert conditions(status(guaranteed("a", 1), live=over))["Overcommitted"]["status"] == "True"
    assert conditions(status(token_pool(), live=over))["Overcommitted"]["status"] == "True"


@pytest.mark.parametrize(
    ("is_in_force", "accepted", "sidecars", "is_everywhere", "reason"),
    [
        (False, REFUSED, 3, False, "NotAccepted"),
        (True, REFUSED, 3, True, "EarlierVersion"),
        (True, ACCEPTED, 0, False, "NoSidecars"),
        (True, ACCEPTED, 3, False, "RollingOut"),
        (True, ACCEPTED, 3, True, "AllSidecars"),
    ],
)
def test_enforced_is_true_only_if_all_sidecars_enforce_it(
    is_in_force: bool, accepted: Verdict, sidecars: int, is_everywhere: bool, reason: str
) -> None:
    record = entitlement("a").record
    assert record is not None
    kept = InForce(record, 1) if is_in_force else None
    said = enforced(kept, accepted, is_everywhere=is_everywhere, sidecars=sidecars, behind=1)
    assert said.reason == reason
    assert (said.status == "True") == (reason == "AllSidecars")


def test_the_kind_decides_about_references() -> None:
    assert "ResolvedRefs" not in conditions(status(token_pool()))
    assert key("chat", Kind.POOL) == token_pool().key
