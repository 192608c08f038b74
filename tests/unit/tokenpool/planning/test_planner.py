"""The planner and debt: limits over time."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import entitlement
from tokenpool.accounting.report import Report
from tokenpool.amounts import UNBOUNDED, Amount
from tokenpool.entitlements import Entitlement, Group, Slo, Tier
from tokenpool.planning.debt import moved, weight_factor
from tokenpool.planning.planner import PlanInput, PlannerSettings, plan, slo_factor
from tokenpool.planning.profiles import PROFILE_S, Profile

CAPACITY = Amount(1000, 10_000, 16)
FULL = Report(demand=CAPACITY, service=CAPACITY * 0.5)
WANTING = Report(demand=CAPACITY * 3, service=CAPACITY * 0.1)


def move(debt: float, **values: object) -> float:
    fields: dict[str, object] = {
        "fair_share": 0.5,
        "service": 0.25,
        "has_unmet_demand": True,
        "elapsed_s": 1.0,
        "cap_s": 4.0,
        "decay_s": 4.0,
    }
    return moved(debt, **(fields | values))  # type: ignore[arg-type]


def test_debt_changes_by_the_missing_part_of_the_fair_share() -> None:
    assert move(0.0) == 0.5
    assert move(0.0, service=0.75) == -0.5
    assert move(0.0, service=0.5) == 0.0


def test_debt_is_capped_either_way() -> None:
    assert move(3.9, elapsed_s=10.0) == 4.0
    assert move(-3.9, service=5.0) == -4.0


def test_debt_decays_when_demand_is_met() -> None:
    assert move(2.0, has_unmet_demand=False, elapsed_s=4.0) == pytest.approx(2 / math.e)
    assert move(-2.0, fair_share=0.0, elapsed_s=4.0) == pytest.approx(-2 / math.e)


def test_debt_raises_a_weight_and_credit_lowers_it() -> None:
    assert weight_factor(0.0, 0.6) == 1.0
    assert weight_factor(2.0, 0.6) == pytest.approx(1 / weight_factor(-2.0, 0.6))


@pytest.mark.parametrize(
    ("slo", "factor"),
    [
        (Slo(), 1),
        (Slo(ttft_ms=5000), 1),
        (Slo(ttft_ms=500), 2),
        (Slo(ttft_ms=500, tpot_ms=50), 4),
        (Slo(ttft_ms=1), 4),
    ],
)
def test_a_tight_slo_gives_bounded_precedence(slo: Slo, factor: float) -> None:
    assert slo_factor(slo) == factor


def test_an_entitlement_with_debt_is_served_first() -> None:
    pair = [entitlement("a"), entitlement("b")]
    reports = {"a": WANTING, "b": WANTING}
    made = plan(PlanInput(CAPACITY, pair, reports, {"a": 2.0, "b": 0.0}, 0.25))
    assert made.entitlements["a"].allocation.kv_tokens > made.entitlements["b"].allocation.kv_tokens
    even = plan(PlanInput(CAPACITY, pair, reports, {"a": 2.0}, 0.25, PlannerSettings(debt_gain=0.0)))
    assert even.entitlements["a"].allocation.kv_tokens == pytest.approx(
        even.entitlements["b"].allocation.kv_tokens
    )


def test_debts_are_kept_and_debts_of_removed_entitlements_are_dropped() -> None:
    made = plan(PlanInput(CAPACITY, [entitlement("a")], {}, {"a": 2.0, "gone": 3.0}, 0.25))
    assert set(made.entitlements) == {"a"}
    assert 1.5 < made.entitlements["a"].debt < 2.0


def test_fair_share_is_by_weight_alone() -> None:
    pair = [entitlement("a", weight=3.0), entitlement("b", slo=Slo(ttft_ms=100))]
    made = plan(PlanInput(CAPACITY, pair, {"a": WANTING, "b": WANTING}, {"b": 4.0}, 0.25))
    assert made.entitlements["a"].fair_share == pytest.approx(3 * made.entitlements["b"].fair_share)


def test_the_owner_of_an_idle_guarantee_may_use_it_at_once() -> None:
    guarantee = Amount(500, 5000, 8)
    owner = entitlement("owner", Tier.GUARANTEED, guarantee=guarantee)
    made = plan(PlanInput(CAPACITY, [owner, entitlement("spot", Tier.SPOT)], {"spot": WANTING}, {}, 0.25))
    assert guarantee.fits(made.entitlements["owner"].limit)
    assert guarantee.fits(made.entitlements["owner"].assured)
    assert made.entitlements["spot"].allocation == CAPACITY
    assert made.entitlements["spot"].assured == Amount()


def test_a_plan_without_entitlements_is_no_error() -> None:
    assert (
        plan(PlanInput(Amount(), [entitlement()], {"a": FULL}, {}, 0.0)).entitlements["a"].limit == Amount()
    )
    assert plan(PlanInput(CAPACITY, [], {}, {}, 1.0)).entitlements == {}


tenants = st.lists(
    st.builds(
        lambda tier, weight, demand, debt: (tier, weight, demand, debt),
        st.sampled_from(list(Tier)),
        st.floats(0.1, 5),
        st.floats(0, 3),
        st.floats(-4, 4),
    ),
    min_size=1,
    max_size=8,
)


@given(tenants, st.randoms(use_true_random=False))
def test_a_plan_is_a_function_of_its_input_in_any_order(
    drawn: list[tuple[Tier, float, float, float]], shuffler: random.Random
) -> None:
    made: list[Entitlement] = []
    reports: dict[str, Report] = {}
    debts: dict[str, float] = {}
    for index, (tier, weight, demand, debt) in enumerate(drawn):
        name = f"e{index}"
        guarantee = Amount(100, 1000, 2) if tier is Tier.GUARANTEED else Amount()
        made.append(entitlement(name, tier, weight=weight, guarantee=guarantee))
        reports[name] = Report(demand=CAPACITY * demand)
        debts[name] = debt
    first = plan(PlanInput(CAPACITY, made, reports, debts, 0.25))
    shuffler.shuffle(made)
    assert plan(PlanInput(CAPACITY, made, reports, debts, 0.25)) == first
    for one in made:
        share = first.entitlements[one.name]
        assert one.guarantee.fits(share.limit)
        assert -4 <= share.debt <= 4


def test_grants_of_guarantees_go_to_preemptible_spot_too() -> None:
    unbounded = math.inf
    tenants = [
        entitlement("g", Tier.GUARANTEED, guarantee=Amount(500, 5000, 8)),
        entitlement("s", Tier.SPOT, ceiling=Amount(unbounded, unbounded, 14)),
        entitlement("t", Tier.SPOT),
        entitlement("idle", Tier.SPOT),
    ]
    reports = {
        "g": Report(demand=Amount(400, 4000, 6)),
        "s": Report(demand=CAPACITY * 2),
        "t": Report(demand=CAPACITY * 2),
    }
    kept = plan(PlanInput(CAPACITY, not_preemptible(tenants), reports, {}, 0.25)).entitlements
    extra = plan(PlanInput(CAPACITY, tenants, reports, {}, 0.25)).entitlements
    assert (kept["s"].limit.concurrency, kept["t"].limit.concurrency) == (5, 5)
    assert (extra["s"].limit.concurrency, extra["t"].limit.concurrency) == (
        8,
        8,
    )  # together the whole capacity
    assert extra["s"].limit.tokens_per_second == pytest.approx(kept["s"].limit.tokens_per_second + 200)
    assert extra["s"].allocation == kept["s"].allocation
    assert (extra["g"], extra["idle"]) == (kept["g"], kept["idle"])
    reports["g"] = Report(demand=CAPACITY)
    tenants[0] = entitlement("g", Tier.GUARANTEED, guarantee=CAPACITY)
    full = plan(PlanInput(CAPACITY, tenants, reports, {}, 0.25)).entitlements
    assert (full["s"].limit.concurrency, full["t"].limit.concurrency) == (
        8,
        8,
    )  # spot has no allocation: evenly


def not_preemptible(tenants: Sequence[Entitlement], *names: str) -> list[Entitlement]:
    """The tenants without preemptible spot, or with none among these names."""
    return [replace(t, preemptible=bool(names) and t.name not in names) for t in tenants]


def test_of_two_spot_tenants_only_the_preemptible_one_gets_unused_guarantees() -> None:
    tenants = [
        entitlement("g", Tier.GUARANTEED, guarantee=Amount(500, 5000, 8)),
        entitlement("s", Tier.SPOT),
        entitlement("keeps", Tier.SPOT),
    ]
    reports = {"g": Report(demand=Amount(400, 4000, 6))} | {
        name: Report(demand=CAPACITY * 2) for name in ("s", "keeps")
    }
    kept = plan(PlanInput(CAPACITY, not_preemptible(tenants), reports, {}, 0.25)).entitlements
    made = plan(PlanInput(CAPACITY, not_preemptible(tenants, "keeps"), reports, {}, 0.25)).entitlements
    assert made["keeps"].limit == kept["keeps"].limit
    assert made["s"].limit.concurrency == kept["s"].limit.concurrency + 6
    assert made["s"].limit.tokens_per_second == pytest.approx(kept["s"].limit.tokens_per_second + 400)


@given(tenants, st.data())
def test_without_preemptible_spot_no_limit_exceeds_the_capacity(
    drawn: list[tuple[Tier, float, float, float]], data: st.DataObject
) -> None:
    """Only preemptible spot gets unused guarantees. No other limit depends on the flag."""
    made, reports = [], {}
    for index, (tier, weight, demand, _) in enumerate(drawn):
        name = f"e{index}"
        guarantee = Amount(100, 1000, 2) if tier is Tier.GUARANTEED else Amount()
        made.append(entitlement(name, tier, weight=weight, guarantee=guarantee))
        reports[name] = Report(demand=CAPACITY * demand)
    keeps = data.draw(st.sets(st.sampled_from([e.name for e in made])))
    before = plan(PlanInput(CAPACITY, not_preemptible(made), reports, {}, 0.25)).entitlements
    after = plan(
        PlanInput(CAPACITY, not_preemptible(made, *(keeps or {"none"})), reports, {}, 0.25)
    ).entitlements
    for one in made:
        if one.tier is not Tier.SPOT or one.name in keeps:
            assert after[one.name] == before[one.name]
        else:
            assert before[one.name].limit.fits(after[one.name].limit)


def test_only_guarantees_without_other_demand_go_to_spot() -> None:
    tenants = [
        entitlement("g", Tier.GUARANTEED, guarantee=Amount(250, 2500, 4)),
        entitlement("e", Tier.ELASTIC),
        entitlement("s", Tier.SPOT),
    ]
    reports = {name: Report(demand=Amount(250, 2500, 4)) for name in "ge"} | {"s": Report(demand=CAPACITY)}
    kept = plan(PlanInput(CAPACITY, not_preemptible(tenants), reports, {}, 0.25)).entitlements["s"]
    extra = plan(PlanInput(CAPACITY, tenants, reports, {}, 0.25)).entitlements["s"]
    assert (
        extra.limit.concurrency == kept.limit.concurrency + 4
    )  # not the four of elastic: no request is ended for them
    reports["e"] = Report(demand=CAPACITY)
    assert plan(PlanInput(CAPACITY, tenants, reports, {}, 0.25)).entitlements["s"].limit == Amount()


def test_service_counts_in_one_dimension_though_demand_comes_in_bursts() -> None:
    """By momentary demand, the service of "bursty" would count twice."""
    pair = [entitlement("even"), entitlement("bursty")]
    debts: dict[str, float] = {}
    profiles: dict[str, Profile] = {}
    for tick in range(400):
        is_burst = tick % 4 == 3
        reports = {
            "even": Report(CAPACITY * 2, CAPACITY * 0.5),
            "bursty": Report(
                Amount(4000 if is_burst else 0, 20_000, 40), Amount(1600 if is_burst else 0, 5000, 8)
            ),
        }
        made = plan(PlanInput(CAPACITY, pair, reports, debts, 0.25, profiles=profiles))
        debts = {name: part.debt for name, part in made.entitlements.items()}
        profiles = dict(made.profiles)
    assert abs(debts["bursty"] - debts["even"]) < 0.5


def follow(*services: Amount, elapsed_s: float = 0.25) -> Profile:
    """The profile of an entitlement with this service in successive plans."""
    profiles: Mapping[str, Profile] = {}
    for service in services:
        report = {"a": Report(CAPACITY, service)}
        profiles = plan(
            PlanInput(CAPACITY, [entitlement()], report, {}, elapsed_s, profiles=profiles)
        ).profiles
    return profiles["a"]


def test_a_young_profile_weighs_all_plans_equally() -> None:
    assert follow(Amount(8, 0, 4), Amount(16, 0, 8), Amount(24, 0, 12)).service.values() == (16, 0, 8)


def test_an_old_profile_forgets() -> None:
    old = {"a": Profile(CAPACITY, age_s=1000)}
    later = plan(PlanInput(CAPACITY, [entitlement()], {}, {}, PROFILE_S, profiles=old)).profiles["a"]
    assert later.service.kv_tokens == pytest.approx(CAPACITY.kv_tokens / math.e)


def test_a_plan_without_elapsed_time_changes_no_profile() -> None:
    assert follow(Amount(8, 0, 4), Amount(16, 0, 8), elapsed_s=0).age_s == 0


@pytest.mark.parametrize(
    ("service", "place"), [(Amount(100, 100, 1.4), 0), (Amount(0, 5000, 6), 1), (Amount(100, 100, 1.6), 2)]
)
def test_service_counts_in_the_dimension_with_the_largest_share_of_capacity(
    service: Amount, place: int
) -> None:
    assert follow(service).place == place


def test_a_tie_does_not_change_the_dimension_of_service() -> None:
    """Tokens are charged at admission, so the momentary maximum of the dimensions is always too large."""
    tokens, sequences = Amount(500, 0, 7.5), Amount(500, 0, 8.5)
    assert follow(tokens).place == 2
    assert follow(Amount(500, 0, 4), *([sequences] * 40)).place == 0


# --- groups ---
GROUPS = [Group("x", "pool"), Group("y", "pool")]
IN_GROUPS = [entitlement("a", group="x"), entitlement("b", group="x"), entitlement("c", group="y")]


def in_groups(debts: Mapping[str, float], group_debts: Mapping[str, float], **service: float) -> PlanInput:
    """A plan of three entitlements in two groups that want all, with these parts of capacity as service."""
    reports = {name: Report(CAPACITY * 3, CAPACITY * part) for name, part in service.items()}
    old = {name: Profile(CAPACITY, age_s=1000) for name in reports}
    return PlanInput(
        CAPACITY, IN_GROUPS, reports, debts, 1.0, profiles=old, groups=GROUPS, group_debts=group_debts
    )


def test_debt_compares_siblings() -> None:
    made = plan(in_groups({}, {}, a=0.35, b=0.35, c=0.3))
    # The group has too much; its members have equal parts of that.
    assert made.groups["x"].debt == pytest.approx(-0.4)
    assert made.groups["y"].debt == pytest.approx(0.4)
    assert [made.entitlements[name].debt for name in "abc"] == pytest.approx([0, 0, 0])
    made = plan(in_groups({}, {}, a=0.4, b=0.1, c=0.5))
    assert [made.groups[name].debt for name in "xy"] == pytest.approx([0, 0])
    assert [made.entitlements[name].debt for name in "abc"] == pytest.approx([-0.6, 0.6, 0])


def test_a_group_with_debt_is_served_first() -> None:
    made = plan(in_groups({}, {"y": 2.0}, a=0.25, b=0.25, c=0.5))
    assert made.groups["y"].allocation.kv_tokens > 1.5 * made.groups["x"].allocation.kv_tokens
    assert made.groups["y"].fair_share == pytest.approx(made.groups["x"].fair_share)
    assert made.groups["x"].demand == CAPACITY * 6


def test_a_group_at_its_ceiling_has_no_debt_but_its_members_have() -> None:
    given = in_groups({}, {"x": 1.0}, a=0.2, b=0.05, c=0.5)
    capped = [Group("x", "pool", ceiling=CAPACITY * 0.25), GROUPS[1]]
    made = plan(replace(given, groups=capped))
    assert 0 < made.groups["x"].debt < 1.0
    assert [made.entitlements[name].debt for name in "ab"] == pytest.approx([-0.6, 0.6])
    assert made.bounded == {"x"}


@given(
    st.lists(st.tuples(st.sampled_from(["x", "y", None]), st.floats(0, 3), st.floats(-4, 4)), max_size=8),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_plan_with_groups_is_a_function_of_its_input_in_any_order(
    drawn: list[tuple[str | None, float, float]], shuffler: random.Random, is_capped: bool
) -> None:
    made = [entitlement(f"e{n}", group=group) for n, (group, _, _) in enumerate(drawn)]
    reports = {
        f"e{n}": Report(CAPACITY * demand, CAPACITY * demand * 0.2, Amount(0, 0, 1))
        for n, (_, demand, _) in enumerate(drawn)
    }
    debts = {f"e{n}": debt for n, (_, _, debt) in enumerate(drawn)}
    groups = [
        Group("x", "pool", "y", weight=2.0),
        Group("y", "pool", ceiling=CAPACITY * 0.5 if is_capped else UNBOUNDED),
    ]
    given = PlanInput(CAPACITY, made, reports, debts, 0.25, groups=groups, group_debts={"y": 1.0})
    first = plan(given)
    shuffler.shuffle(made)
    assert plan(replace(given, entitlements=made, groups=groups[::-1])) == first
    for each in made:
        omitted = replace(
            given, entitlements=[e for e in made if e is not each or reports[e.name].demand != Amount()]
        )
        if len(omitted.entitlements) < len(made):
            assert plan(omitted).part(each).limit == first.entitlements[each.name].limit
