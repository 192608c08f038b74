"""One tick: from reports to limits, and records between processes of different versions."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import entitlement
from tokenpool.accounting.report import Report
from tokenpool.accounting.retries import MOST_REMEMBERED, Retries
from tokenpool.amounts import NO_KV_BOUND, NOTHING, Amount
from tokenpool.capacity.model import UNLEARNED_TOKENS_PER_SECOND
from tokenpool.entitlements import Group, KeyRef, KeySource, Pool, PoolFile, Tier
from tokenpool.leases.messages import EntitlementRecord, Limit, PoolSnapshot
from tokenpool.leases.resting import NO_DEBT
from tokenpool.leases.tick import RETIRE_S, Memory, tick
from tokenpool.leases.wire import (
    SidecarReport,
    WireError,
    decode_file,
    decode_report,
    encode_file,
    encode_report,
)
from tokenpool.planning.idle import idle_share
from tokenpool.planning.planner import PlanInput, plan
from tokenpool.planning.profiles import Profile

REPLICA = Amount(1000, 10_000, 8)


ONLY = {"a": entitlement()}
BOTH = {**ONLY, "b": entitlement("b")}


def snapshot(reports: int, **records: EntitlementRecord) -> PoolSnapshot:
    packed = encode_report(SidecarReport(REPLICA, REPLICA, True))
    return PoolSnapshot(records, {f"s{n}": packed for n in range(reports)}, 1, True)


def test_capacity_is_the_sum_over_all_engines() -> None:
    demand = EntitlementRecord(demand=Amount(1e4, 1e5, 100), floor=Amount(300, 100, 1))
    made = tick(snapshot(3, a=demand), ONLY, None)
    assert made.plan.capacity == REPLICA * 3
    assert made.replica == REPLICA
    assert made.limits["a"].amount == REPLICA * 3
    assert made.limits["a"].depth == 3000
    assert made.limits["a"].assured_concurrency == 24


def test_the_workers_of_a_sidecar_are_one_engine() -> None:
    part = encode_report(SidecarReport(REPLICA * 0.25, REPLICA, True, workers=4))
    down = encode_report(SidecarReport(NOTHING, REPLICA, False))
    reports = {f"s/{worker}": part for worker in range(4)} | {"lone": down}

    made = tick(PoolSnapshot({}, reports, 1, True), ONLY, None)

    assert (made.engines, made.engines_up) == (2, 1)
    assert (made.plan.capacity, made.replica) == (REPLICA, REPLICA)


def test_the_limit_of_a_group_is_its_ceiling_and_keeps_its_debt() -> None:
    groups = (
        Group("capped", "pool", ceiling=Amount(math.inf, math.inf, 3)),
        Group("free", "pool"),
    )
    members = {"a": entitlement(group="capped"), "b": entitlement("b", group="free"), "c": entitlement("c")}
    busy = EntitlementRecord(demand=REPLICA * 3)
    own = {f"group:{name}": EntitlementRecord(Limit(debt=2.0), in_use=REPLICA) for name in ("capped", "gone")}
    made = tick(snapshot(2, a=busy, b=busy, c=busy, **own), members, None, groups=groups)

    assert made.limits["group:capped"].concurrency == 3
    assert min(made.limits["group:free"].amount.values()) == 1e12
    assert made.limits["group:capped"].debt == pytest.approx(2.0, abs=0.1)
    assert "group:gone" not in made.limits
    assert made.limits["a"].concurrency == 3
    assert (set(made.records), set(made.groups)) == ({"a", "b", "c"}, {"capped", "gone"})
    assert made.plan.groups["free"].demand == REPLICA * 3


def test_an_engine_without_a_kv_bound_counts_in_the_other_dimensions() -> None:
    """``NO_KV_BOUND`` is neither in the mean that scale hints use nor in JSON."""
    unbounded = Amount(UNLEARNED_TOKENS_PER_SECOND, NO_KV_BOUND, 16)
    packed = [encode_report(SidecarReport(a, a, True)) for a in (REPLICA, unbounded, unbounded)]
    demand = EntitlementRecord(demand=Amount(1e4, 1e5, 100), floor=Amount(300, 100, 1))
    records = {"a": demand, "b": demand}
    lease_store = PoolSnapshot(records, {f"s{n}": report for n, report in enumerate(packed)}, 1, True)
    made = tick(lease_store, BOTH, None)
    assert made.replica == Amount(1000, 10_000, (8 + 16 + 16) / 3)
    assert [made.limits[name].amount.concurrency for name in "ab"] == [20, 20]
    assert all(math.isfinite(number) for limit in made.limits.values() for number in limit.amount.values())
    assert made.limits["a"].amount.as_dict()["kv_tokens"] is None
    alone = tick(replace(lease_store, reports={"s1": packed[1]}), [entitlement()], None)
    assert alone.replica == Amount(0, 0, 16)


def test_the_lease_store_keeps_debt() -> None:
    busy = EntitlementRecord(Limit(debt=2.0), demand=Amount(1e4, 1e5, 100), served=Amount(50, 600, 7))
    served = EntitlementRecord(
        Limit(debt=-1.0), demand=Amount(1e4, 1e5, 100), served=Amount(50, 600, 7) + REPLICA * 0.25
    )
    before = replace(snapshot(1, a=busy, b=msgspec.structs.replace(served, served=busy.served)), at=10.0)
    made = tick(replace(snapshot(1, a=busy, b=served), at=10.25), BOTH, before)
    assert made.service == {"a": NOTHING, "b": REPLICA}
    assert made.limits["a"].debt == pytest.approx(2.25)
    assert made.limits["b"].debt == pytest.approx(-1.25)


def test_the_first_tick_leaves_debts_as_they_are() -> None:
    record = EntitlementRecord(Limit(debt=2.0), demand=Amount(1e4, 1e5, 100), served=Amount(1e6, 1e6, 1e6))
    made = tick(snapshot(1, a=record), ONLY, None)
    assert made.service == {}
    assert made.limits["a"].debt == 2.0


def test_a_lease_store_that_lost_its_content_reports_no_service() -> None:
    """The totals restart, so their difference is no service."""
    old = EntitlementRecord(Limit(debt=2.0), demand=Amount(1e4, 1e5, 100), served=Amount(1e6, 1e6, 1e4))
    new = msgspec.structs.replace(old, served=Amount(500, 5000, 4))
    before = replace(snapshot(1, a=old), at=10.0)
    profiles = {"a": Profile(Amount(500, 5000, 4), age_s=100)}
    for is_open in (False, True):
        empty = replace(snapshot(1, a=new), at=14.0, is_open=is_open)
        made = tick(empty, ONLY, before, memory=Memory(profiles))
        assert made.service == {}
        assert made.plan.profiles["a"].place == 2
        assert min(made.plan.profiles["a"].service.values()) >= 0


def test_a_clock_that_steps_back_changes_no_debt() -> None:
    record = EntitlementRecord(Limit(debt=2.0), demand=Amount(1e4, 1e5, 100), served=Amount(50, 600, 7))
    before = replace(snapshot(1, a=record), at=5000.0)
    profiles = {"a": Profile(Amount(100, 2000, 4), age_s=0.5)}
    made = tick(replace(snapshot(1, a=record), at=10.0), ONLY, before, memory=Memory(profiles))
    assert made.limits["a"].debt == 2.0
    assert made.plan.profiles["a"] == profiles["a"]


def test_after_a_pause_of_the_coordinator_debts_change_for_one_second_at_most() -> None:
    record = EntitlementRecord(Limit(debt=0.0), demand=Amount(1e4, 1e5, 100))
    other = EntitlementRecord(Limit(debt=0.0), demand=Amount(1e4, 1e5, 100), served=REPLICA * 60)
    before = replace(snapshot(1, a=record, b=record), at=0.0)
    made = tick(replace(snapshot(1, a=record, b=other), at=60.0), BOTH, before)
    assert made.limits["a"].debt == pytest.approx(1.0)


def test_a_bucket_holds_two_typical_requests() -> None:
    record = EntitlementRecord(demand=Amount(10, 100, 1), floor=Amount(5000, 100, 1))
    assert tick(snapshot(1, a=record), ONLY, None).limits["a"].depth == 10_000


def test_a_report_that_cannot_be_decoded_is_named_and_does_not_count() -> None:
    seen = snapshot(1)
    made = tick(PoolSnapshot({}, {**seen.reports, "bad": b"\xff"}, 1, True), ONLY, None)
    assert made.unreadable == ["bad"]
    assert made.plan.capacity == REPLICA


def test_reports_of_other_versions_are_read() -> None:
    newer = msgspec.msgpack.encode({"engine_up": True, "colour": "red", "schema": 9})
    assert decode_report(newer) == SidecarReport(engine_up=True, schema=9)
    with pytest.raises(WireError, match="report"):
        decode_report(b"\xc1")


def test_a_published_pool_file_has_no_plain_keys() -> None:
    keys = (KeyRef(KeySource.PLAIN, "secret", 3), KeyRef(KeySource.ENV, "KEY", 4))
    file = PoolFile((Pool("pool"),), (entitlement(tier=Tier.SPOT, api_keys=keys),), "a")
    version, content = encode_file(file)
    assert b"secret" not in content
    back = decode_file(content)
    assert back.entitlements[0].ceiling == file.entitlements[0].ceiling
    digest = hashlib.sha256(b"secret").hexdigest()
    assert back.entitlements[0].api_keys == (KeyRef(KeySource.SHA256, digest), KeyRef(KeySource.ENV, "KEY"))
    assert encode_file(back)[0] == version
    with pytest.raises(WireError, match="pool file"):
        decode_file(b"[]")


def test_a_published_pool_file_states_which_spot_is_preemptible() -> None:
    made = [entitlement(tier=Tier.SPOT), entitlement("b", Tier.SPOT, preemptible=False), entitlement("c")]
    _, content = encode_file(PoolFile((Pool("pool"),), tuple(made), None))
    assert [e.is_preemptible for e in decode_file(content).entitlements] == [True, False, False]
    plain = msgspec.msgpack.decode(content)
    for each in plain["entitlements"]:
        del each["preemptible"]
    older = decode_file(msgspec.msgpack.encode(plain))
    assert [e.is_preemptible for e in older.entitlements] == [True, True, False]


def test_a_recently_shed_request_is_a_retry_once() -> None:
    retries = Retries()
    assert not retries.is_retry(b"x", 0)
    retries.shed(b"x", 0)
    assert retries.is_retry(b"x", 59)
    assert not retries.is_retry(b"y", 1)
    assert not retries.is_retry(b"x", 61)
    retries.admitted(b"x")
    assert not retries.is_retry(b"x", 2)


def test_retries_are_bounded() -> None:
    retries = Retries()
    for number in range(MOST_REMEMBERED + 1):
        retries.shed(b"%d" % number, 0)
    assert not retries.is_retry(b"0", 1)
    assert retries.is_retry(b"1", 1)


def test_an_entitlement_without_a_record_is_in_no_plan_and_follows_from_the_terms() -> None:
    record = EntitlementRecord(demand=Amount(10, 100, 1))
    many = {f"e{number}": entitlement(f"e{number}") for number in range(1000)}
    made = tick(snapshot(3, a=record), {**ONLY, **many}, None)
    assert set(made.limits) == {"a"}
    whole = tick(snapshot(3, a=record, e7=EntitlementRecord()), {**ONLY, **many}, None)
    idle = idle_share(many["e7"], made.plan.idle, Amount(0, 0, 1))
    assert whole.limits["e7"].amount == idle.limit


def test_an_entitlement_with_a_long_idle_time_has_no_published_limit() -> None:
    full = EntitlementRecord(Limit(100, 1000, 4, depth=200), level=200.0)
    seen, memory = snapshot(1, a=full), Memory()
    for at, has_limit in ((10.0, True), (10.0 + RETIRE_S - 1, True), (10.0 + RETIRE_S, False)):
        made = tick(replace(seen, at=at), ONLY, None, memory=memory)
        memory = made.memory
        assert ("a" in made.limits) is has_limit
    busy = snapshot(1, a=msgspec.structs.replace(full, demand=Amount(1, 1, 1)))
    assert "a" in tick(replace(busy, at=99.0), ONLY, None, memory=memory).limits


@pytest.mark.parametrize(
    "record",
    [
        EntitlementRecord(Limit(100, 1000, 4, 200, debt=-0.5), level=200.0),
        EntitlementRecord(Limit(100, 1000, 4, 200), level=150.0),
        EntitlementRecord(Limit(100, 1000, 4, 200), level=200.0, held=Amount(0, 0, 1)),
        EntitlementRecord(Limit(100, 1000, 4, 200), level=200.0, in_use=Amount(0, 16, 1)),
    ],
)
def test_debt_an_empty_bucket_or_a_lease_keeps_a_limit(record: EntitlementRecord) -> None:
    memory = Memory(idle_since={"a": 0.0})
    made = tick(replace(snapshot(1, a=record), at=1000.0), ONLY, None, memory=memory)
    assert "a" in made.limits


# --- an incremental tick and a plan with all entitlements ---
MANY = {
    f"e{n}": entitlement(
        f"e{n}",
        tier=(Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT)[n % 3],
        guarantee=Amount(100, 1000, 1) if n % 3 == 0 else NOTHING,
        weight=1.0 + n,
        group="capped" if n % 2 else None,
    )
    for n in range(6)
}
CAPPED = [Group("capped", "pool", ceiling=Amount(math.inf, math.inf, 9))]
uses = st.dictionaries(
    st.sampled_from([*MANY]),
    st.tuples(st.sampled_from([0.0, 1.0, 20.0]), st.sampled_from([0.0, 2.0]), st.sampled_from([0.0, 5.0])),
)


@given(st.lists(uses, min_size=2, max_size=8))
def test_an_incremental_tick_is_a_plan_with_all_entitlements(
    steps: list[dict[str, tuple[float, ...]]],
) -> None:
    """Each step changes the demand, the service and the floor of some entitlements."""
    records = {name: EntitlementRecord() for name in MANY}
    before, memory = None, Memory()
    debts: dict[str, float] = {}
    group_debts: dict[str, float] = {}
    owned: dict[str, EntitlementRecord] = {}
    profiles: dict[str, Profile] = {}
    for number, changes in enumerate(steps):
        for name, (demand, service, floor) in changes.items():
            served = records[name].served + Amount(service * 10, service * 100, service)
            records[name] = msgspec.structs.replace(
                records[name],
                demand=Amount(100, 1000, 1) * demand,
                served=served,
                floor=Amount(0, 100, floor),
            )
        now = replace(snapshot(2, **records, **owned), at=float(number))
        made = tick(now, MANY, before, memory=memory, groups=CAPPED)

        served_before = before.records if before is not None else records
        whole = plan(
            PlanInput(
                REPLICA * 2,
                [*MANY.values()],
                {
                    name: Report(
                        record.demand,
                        record.served - served_before[name].served,
                        Amount(0, record.floor.kv_tokens, max(record.floor.concurrency, 1.0)),
                    )
                    for name, record in records.items()
                },
                debts,
                0.0 if before is None else 1.0,
                profiles=profiles,
                groups=CAPPED,
                group_debts=group_debts,
            )
        )
        for name, part in whole.entitlements.items():
            own = made.plan.entitlements[name]
            assert own.limit.values() == pytest.approx(part.limit.values(), rel=1e-9)
            assert own.assured.values() == pytest.approx(part.assured.values(), rel=1e-9)
            assert own.allocation.values() == pytest.approx(part.allocation.values(), rel=1e-9)
            assert own.debt == pytest.approx(part.debt, abs=NO_DEBT)
            assert made.limits[name].amount == own.limit
        # A debt below ``NO_DEBT`` counts as zero while an entitlement is idle.
        debts = {name: part.debt for name, part in made.plan.entitlements.items()}
        group_debts = {name: each.debt for name, each in made.plan.groups.items()}
        profiles = dict(whole.profiles)
        records = {
            name: msgspec.structs.replace(record, limit=made.limits[name], level=made.limits[name].depth)
            for name, record in records.items()
        }
        owned = {"group:capped": EntitlementRecord(made.limits["group:capped"])}
        before, memory = now, made.memory


def test_a_tick_computes_no_limit_again_for_an_idle_entitlement_that_nobody_wrote() -> None:
    records = {name: EntitlementRecord(Limit(), 1e9) for name in MANY}
    first = tick(snapshot(2, **records), MANY, None)
    second = tick(replace(snapshot(2, **records), at=1.0), MANY, snapshot(2, **records), memory=first.memory)
    assert all(second.limits[name] is first.limits[name] for name in MANY)

    records["e1"] = replace_floor(records["e1"], Amount(0, 500, 3))
    third = tick(replace(snapshot(2, **records), at=2.0), MANY, snapshot(2, **records), memory=second.memory)
    assert third.limits["e1"] is not second.limits["e1"]
    assert third.limits["e2"] is second.limits["e2"]


def replace_floor(record: EntitlementRecord, floor: Amount) -> EntitlementRecord:
    return msgspec.structs.replace(record, floor=floor)
