"""The invariants of an allocation for arbitrary trees of groups."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.tokenpool.planning.test_allocation import (
    CAPACITY,
    SLACK,
    amounts,
    capacities,
    claim,
    claims,
    claims_in_all_dimensions,
    not_less,
    scales,
)
from tokenpool.amounts import NOTHING, UNBOUNDED, Amount, Dimension
from tokenpool.entitlements import Tier
from tokenpool.planning.allocation import Division
from tokenpool.planning.claims import Claim, GroupClaim

Tree = tuple[list[Claim], list[GroupClaim]]


def group(name: str, parent: str | None = None, **values: object) -> GroupClaim:
    fields: dict[str, object] = {"weight": 1.0, "guarantee": NOTHING, "ceiling": UNBOUNDED}
    return GroupClaim(name=name, parent=parent, **(fields | values))  # type: ignore[arg-type]


def chain(name: str | None, groups: Sequence[GroupClaim]) -> list[str]:
    parents = {each.name: each.parent for each in groups}
    found = []
    while name is not None:
        found.append(name)
        name = parents[name]
    return found


def members(name: str, made: Sequence[Claim], groups: Sequence[GroupClaim]) -> list[Claim]:
    return [each for each in made if name in chain(each.group, groups)]


@st.composite
def trees(draw: st.DrawFn, made: st.SearchStrategy[list[Claim]] | None = None) -> Tree:
    """Claims in up to five groups. A group's guarantee and ceiling carry its members' guarantees."""
    placed = draw(claims() if made is None else made)
    names: list[str | None] = [None]
    parents: list[tuple[str, str | None]] = []
    for number in range(draw(st.integers(1, 5))):
        parents.append((f"g{number}", draw(st.sampled_from(names))))
        names.append(f"g{number}")
    placed = [replace(each, group=draw(st.sampled_from(names))) for each in placed]
    groups: list[GroupClaim] = []
    promised: dict[str, Amount] = {}
    for name, parent in reversed(parents):
        total = NOTHING
        for each in placed:
            if each.group == name:
                total += each.guarantee
        for child in groups:
            if child.parent == name:
                total += promised[child.name]
        own = draw(st.just(NOTHING) | amounts(CAPACITY * 0.6).map(total.at_least))
        promised[name] = total.at_least(own)
        ceiling = draw(st.just(UNBOUNDED) | amounts(CAPACITY).map(promised[name].at_least))
        groups.append(group(name, parent, weight=draw(st.floats(0.1, 10)), guarantee=own, ceiling=ceiling))
    return placed, groups


def used(division: Division, some: Sequence[Claim]) -> Amount:
    shares = division.shares()
    rows = [shares[c.name].allocation.values() for c in some]
    return Amount(*(math.fsum(row[k] for row in rows) for k in range(3)))


# A guarantee only in a dimension that has no live capacity: its share is 0.
ONLY_TOKENS = Amount(150.0, 0.0, 0.0)
WITHOUT_TOKENS: Tree = (
    [claim("a", Tier.GUARANTEED, guarantee=ONLY_TOKENS, demand=Amount(1600.0, 0.0, 14.0), group="g0")],
    [group("g0", guarantee=Amount(230.0, 4700.0, 8.0), ceiling=Amount(230.0, 4700.0, 8.0))],
)


# The levels at which members become full differ by rounding errors only.
ROUNDED: list[Tree] = [
    (
        [
            claim("a", demand=Amount(2000.0, 0.0, 0.0), weight=0.001, group="g0"),
            claim("b", demand=Amount(0.0, 12839.188175596595, 0.0), weight=0.001, group="g0"),
        ],
        [group("g0")],
    ),
    (
        [
            claim("a", demand=Amount(1000.0, 30000.0, 0.0), group="g0"),
            claim("b", demand=Amount(800.0, 0.0, 0.0)),
            claim("c", demand=Amount(2000.0, 10000.0, 0.0), group="g2"),
        ],
        [
            group("g0", guarantee=Amount(500.0, 0.0, 0.0)),
            group("g1", guarantee=Amount(300.0, 0.0, 0.0)),
            group("g2", "g1", weight=1000.0, ceiling=Amount(122.83837919517721, math.inf, math.inf)),
        ],
    ),
    (
        [
            claim("a", demand=Amount(2000.0, 0.0, 0.0), group="g7"),
            claim("b", demand=Amount(1000.0, 20000.0, 0.0), group="g5"),
        ],
        [
            group("g0"),
            *(group(f"g{n}", f"g{n - 1}", weight=w) for n, w in enumerate([1, 1, 0.001, 7.23, 1, 1], 1)),
            group("g7", "g6", weight=0.001, ceiling=Amount(576.0, math.inf, math.inf)),
        ],
    ),
]


@st.composite
def steep_trees(draw: st.DrawFn) -> Tree:
    """Trees with weights from 0.001 to 1,000."""
    steep = st.floats(-3, 3).map(lambda power: 10**power)
    made, groups = draw(trees())
    return [replace(c, weight=draw(steep)) for c in made], [replace(g, weight=draw(steep)) for g in groups]


@given(steep_trees(), capacities)
@example(ROUNDED[0], CAPACITY)
@example(ROUNDED[1], CAPACITY)
@example(ROUNDED[2], CAPACITY)
def test_weights_of_any_size_exceed_neither_capacity_nor_a_ceiling(tree: Tree, capacity: Amount) -> None:
    check_sums(tree, capacity)


# A room above stops claims that a room below stops, too. Their siblings then grow beyond that stop.
def _within(ceiling: Amount, parent: str | None = None, name: str = "g0") -> GroupClaim:
    return group(name, parent, ceiling=ceiling)


INNER: list[Tree] = [
    (
        [
            claim("a", demand=Amount(760.0, 16600.0, 10.8), guarantee=Amount(0.0, 5600.0, 0.7), group="g0"),
            claim(
                "b", Tier.GUARANTEED, demand=Amount(500.0, 15200.0, 3.0), guarantee=Amount(0.0, 5100.0, 0.0)
            ),
        ],
        [_within(Amount(800.0, 10800.0, 11.0))],
    ),
    (
        [
            claim("a", demand=Amount(300.0, 600.0, 4.5)),
            claim(
                "b",
                Tier.GUARANTEED,
                demand=Amount(160.0, 40000.0, 37.0),
                guarantee=Amount(173.0, 4556.0, 1.6),
                group="g0",
            ),
            claim("c", demand=Amount(330.0, 15000.0, 2.8), group="g0"),
        ],
        [_within(Amount(440.0, 22000.0, 9.0))],
    ),
    (
        [
            claim(
                "a",
                Tier.GUARANTEED,
                demand=Amount(511.0, 22586.0, 0.7),
                guarantee=Amount(192.0, 0.0, 1.2),
                group="g1",
            ),
            claim("b", demand=Amount(500.0, 3351.0, 23.0), guarantee=Amount(170.0, 2413.0, 2.0), group="g0"),
            claim("c", demand=Amount(2868.0, 69735.0, 46.0), guarantee=Amount(150.0, 4634.0, 0.6)),
        ],
        [_within(Amount(480.0, 11700.0, 10.8)), _within(Amount(192.0, 1376.0, 10.3), "g0", "g1")],
    ),
]


@given(trees(), capacities)
@example(INNER[0], Amount(1000.0, 9000.0, 16.0))
@example(INNER[1], Amount(1000.0, 9000.0, 40.0))
@example(INNER[2], Amount(100.0, 30000.0, 16.0))
@example(WITHOUT_TOKENS, Amount(0.0, 0.0, 13.0))
def test_neither_capacity_nor_a_ceiling_of_a_group_is_exceeded(tree: Tree, capacity: Amount) -> None:
    check_sums(tree, capacity)


def check_sums(tree: Tree, capacity: Amount) -> None:
    made, groups = tree
    division = Division(capacity, made, groups)
    for most, some in [
        (capacity, made),
        *((each.ceiling, members(each.name, made, groups)) for each in groups),
    ]:
        sums = used(division, some)
        for dimension in Dimension:
            assert sums.get(dimension) <= most.get(dimension) * (1 + SLACK) + SLACK


@given(trees(), capacities)
def test_a_limit_lies_between_guarantee_and_ceiling(tree: Tree, capacity: Amount) -> None:
    made, groups = tree
    shares = Division(capacity, made, groups).shares()
    for c in made:
        share = shares[c.name]
        assert c.guarantee.fits(share.limit)
        assert share.limit.fits(c.ceiling)
        assert share.assured.fits(share.limit)
        assert all(0 <= share.limit.get(d) < math.inf for d in Dimension)


@given(trees(), capacities, st.randoms(use_true_random=False))
def test_the_order_of_claims_and_groups_does_not_matter(
    tree: Tree, capacity: Amount, shuffler: random.Random
) -> None:
    made, groups = tree
    first = Division(capacity, made, groups)
    others, folders = list(made), list(groups)
    shuffler.shuffle(others)
    shuffler.shuffle(folders)
    second = Division(capacity, others, folders)
    assert first.shares() == second.shares()
    assert first.fair_shares() == second.fair_shares()


@given(trees(), capacities)
def test_work_is_conserved_up_to_the_ceilings_of_groups(tree: Tree, capacity: Amount) -> None:
    """A claim with unmet demand needs a dimension in which the pool or one of its groups is full."""
    made, groups = tree
    division = Division(capacity, made, groups)
    shares, fair = division.shares(), division.fair_shares()
    by_name = {each.name: each for each in groups}
    for c in made:
        if fair[c.name].is_satisfied or any(c.demand.get(d) > 0 and c.ceiling.get(d) <= 0 for d in Dimension):
            continue
        bounds = [(capacity, made)] + [
            (by_name[name].ceiling, members(name, made, groups)) for name in chain(c.group, groups)
        ]
        is_bound = False
        for most, some in bounds:
            sums = used(division, some)
            slots = sum(math.ceil(shares[each.name].allocation.concurrency) for each in some)
            is_bound = is_bound or any(
                (
                    sums.get(d) >= most.get(d) * (1 - SLACK) - SLACK
                    if d is not Dimension.CONCURRENCY
                    else slots >= most.concurrency - 1 - SLACK
                )
                for d in Dimension
                if c.demand.get(d) > 0
            )
        assert is_bound, (c, shares)
        if fair[c.name].bound_by is not None:
            assert fair[c.name].bound_by in chain(c.group, groups)


@given(trees(), capacities)
def test_a_group_with_demand_gets_its_guarantee(tree: Tree, capacity: Amount) -> None:
    """If live capacity carries all guarantees, a group gets its own before others burst, if it can use it."""
    made, groups = tree
    made = [replace(c, ceiling=UNBOUNDED) for c in made]
    tops = [each for each in groups if each.parent is None]
    for d in Dimension:
        total = sum(g.guarantee.get(d) for g in tops) + sum(c.guarantee.get(d) for c in made)
        if total > capacity.get(d):
            return
    division = Division(capacity, made, groups)
    for top in tops:
        some = [c for c in members(top.name, made, groups) if c.tier is not Tier.SPOT]
        below = [g for g in groups if top.name in chain(g.parent, groups)]
        if any(g.ceiling != UNBOUNDED for g in [*below, top]):
            continue
        if not any(c.demand != NOTHING for c in some):
            continue
        sums = used(division, some)
        # Members whose requests need all dimensions stop at the first guaranteed one that is used up.
        named = [d for d in Dimension if top.guarantee.get(d) > 0]
        if named and all(all(c.demand.get(d) > 0 for d in Dimension) for c in some):
            whole = all(
                sums.get(d) >= sum(c.demand.get(d) for c in some) * (1 - SLACK) - SLACK for d in named
            )
            slack = dict.fromkeys(Dimension, SLACK) | {Dimension.CONCURRENCY: len(some) + SLACK}
            assert whole or any(sums.get(d) >= top.guarantee.get(d) * (1 - SLACK) - slack[d] for d in named)


@given(claims(), capacities)
def test_a_tree_without_groups_is_flat(made: list[Claim], capacity: Amount) -> None:
    flat = Division(capacity, made)
    unknown = Division(capacity, [replace(c, group="none") for c in made], [group("empty")])
    for name, share in flat.shares().items():
        other = unknown.shares()[name]
        assert other.limit.values() == pytest.approx(share.limit.values(), rel=SLACK, abs=1e-4)
    assert flat.idle_terms().others_want == unknown.idle_terms().others_want


@given(claims(), capacities, st.integers(1, 3), st.floats(0.1, 10))
def test_one_group_of_all_claims_changes_nothing(
    made: list[Claim], capacity: Amount, depth: int, weight: float
) -> None:
    groups = [group(f"g{n}", f"g{n - 1}" if n else None, weight=weight) for n in range(depth)]
    flat = Division(capacity, made).fair_shares()
    deep = Division(capacity, [replace(c, group=f"g{depth - 1}") for c in made], groups).fair_shares()
    for name, share in flat.items():
        assert deep[name].dominant_share == pytest.approx(share.dominant_share, rel=1e-5, abs=1e-6)


@given(trees(claims_in_all_dimensions()), scales)
def test_more_demand_never_lowers_the_share_of_a_claim(tree: Tree, scale: float) -> None:
    made, groups = tree
    more = [replace(made[0], demand=made[0].demand * scale), *made[1:]]
    before, after = (Division(CAPACITY, some, groups).shares()["e0"] for some in (made, more))
    assert not_less(after.allocation, before.allocation)


@given(trees(claims_in_all_dimensions()), scales)
def test_more_weight_never_lowers_the_allocation_of_a_claim(tree: Tree, scale: float) -> None:
    """Debt is a factor of the weight, so this covers debt too.

    A limit also has the free capacity, and that may become less: a whole sequence moves from one claim to
    another, which uses more tokens with it.
    """
    made, groups = tree
    more = [replace(made[0], weight=made[0].weight * scale), *made[1:]]
    before, after = (Division(CAPACITY, some, groups).shares()["e0"] for some in (made, more))
    assert not_less(after.allocation, before.allocation)


@given(trees(claims_in_all_dimensions()), scales)
def test_more_weight_of_a_group_never_lowers_its_allocation(tree: Tree, scale: float) -> None:
    made, groups = tree
    name = groups[0].name
    more = [replace(groups[0], weight=groups[0].weight * scale), *groups[1:]]
    some = members(name, made, groups)
    before, after = (used(Division(CAPACITY, made, each), some) for each in (groups, more))
    assert after.tokens_per_second >= before.tokens_per_second * (1 - SLACK) - SLACK or any(
        c.tier is Tier.SPOT for c in made
    )


@given(trees())
def test_a_claim_without_demand_gets_the_same_share_inside_and_outside_of_a_division(tree: Tree) -> None:
    made, groups = tree
    bounded = {g.name for g in groups if g.ceiling != UNBOUNDED}
    active = [each for each in made if each.demand != NOTHING]
    whole, part = Division(CAPACITY, made, groups).shares(), Division(CAPACITY, active, groups)
    shares, terms = part.shares(), part.idle_terms()
    for each in made:
        if each.demand != NOTHING:
            assert shares[each.name] == whole[each.name]
        else:
            is_bounded = bool(bounded & set(chain(each.group, groups)))
            idle = terms.share(each.tier, each.guarantee, each.ceiling, each.floor, is_bounded=is_bounded)
            assert idle == whole[each.name]


# --- examples ---
HUNGRY = CAPACITY * 3


def tokens(made: Sequence[Claim], groups: Sequence[GroupClaim]) -> dict[str, float]:
    shares = Division(CAPACITY, made, groups).shares()
    return {name: round(share.allocation.tokens_per_second, 3) for name, share in shares.items()}


def test_the_share_of_a_group_does_not_depend_on_the_number_of_its_members() -> None:
    many = [claim(f"m{n}", demand=HUNGRY, group="many") for n in range(4)]
    made = [*many, claim("one", demand=HUNGRY, group="few"), claim("alone", demand=HUNGRY)]
    groups = [group("many"), group("few", weight=2.0)]
    assert tokens(made, groups) == {
        "m0": 62.5, "m1": 62.5, "m2": 62.5, "m3": 62.5, "one": 500, "alone": 250,
    }  # fmt: skip


def test_what_a_member_leaves_goes_to_its_siblings_first() -> None:
    made = [
        claim("modest", demand=CAPACITY * 0.1, group="a"),
        claim("hungry", demand=HUNGRY, group="a"),
        claim("other", demand=HUNGRY, group="b"),
    ]
    assert tokens(made, [group("a"), group("b")]) == {"modest": 100, "hungry": 400, "other": 500}


def test_weights_count_at_each_level() -> None:
    made = [
        claim("a", demand=HUNGRY, group="x", weight=3.0),
        claim("b", demand=HUNGRY, group="x"),
        claim("c", demand=HUNGRY, group="org"),
        claim("d", demand=HUNGRY, weight=2.0),
    ]
    groups = [group("org", weight=3.0), group("x", "org", weight=2.0)]
    assert tokens(made, groups) == {"a": 300, "b": 100, "c": 200, "d": 400}


def test_a_ceiling_bounds_the_members_together_and_frees_the_rest() -> None:
    ceiling = Amount(math.inf, math.inf, 4)
    made = [
        claim("a", demand=HUNGRY, group="g", weight=3.0),
        claim("b", demand=HUNGRY, group="g"),
        claim("c", demand=HUNGRY),
    ]
    groups = [group("g", ceiling=ceiling)]
    division = Division(CAPACITY, made, groups)
    shares, fair = division.shares(), division.fair_shares()
    assert [shares[n].allocation.concurrency for n in "abc"] == [3, 1, 12]
    assert [shares[n].limit.concurrency for n in "abc"] == [3, 1, 12]
    assert [fair[n].bound_by for n in "abc"] == ["g", "g", None]
    alone = Division(CAPACITY, made[:2], groups)
    assert alone.shares()["a"].limit.concurrency == 3  # the free capacity of the pool is not for them
    assert not alone.others_want


def test_spot_gets_what_others_leave_below_a_ceiling() -> None:
    ceiling = Amount(math.inf, math.inf, 4)
    made = [
        claim("e", demand=CAPACITY * (3 / 16), group="g"),
        claim("s", Tier.SPOT, demand=HUNGRY, group="g"),
        claim("t", Tier.SPOT, demand=HUNGRY),
    ]
    shares = Division(CAPACITY, made, [group("g", ceiling=ceiling)]).shares()
    assert [shares[n].allocation.concurrency for n in "est"] == [3, 1, 12]


def test_members_use_the_rest_of_their_groups_guarantee_before_others_burst() -> None:
    guarantee = CAPACITY * 0.75
    made = [
        claim("owner", Tier.GUARANTEED, demand=CAPACITY * 0.25, guarantee=CAPACITY * 0.5, group="g"),
        claim("a", demand=HUNGRY, group="g"),
        claim("b", demand=HUNGRY, group="g"),
        *(claim(f"o{n}", demand=HUNGRY) for n in range(8)),
    ]
    found = tokens(made, [group("g", guarantee=guarantee)])
    assert (found["owner"], found["a"], found["b"]) == (250, 250, 250)
    assert found["o0"] == pytest.approx(31.25)
    # The owner's return takes it back at once.
    made[0] = replace(made[0], demand=CAPACITY * 0.5)
    found = tokens(made, [group("g", guarantee=guarantee)])
    assert (found["owner"], found["a"], found["b"]) == (500, 125, 125)


def test_a_guarantee_counts_into_the_share_of_its_group() -> None:
    made = [
        claim("owner", Tier.GUARANTEED, demand=CAPACITY * 0.5, guarantee=CAPACITY * 0.5, group="g"),
        claim("sibling", demand=HUNGRY, group="g"),
        claim("other", demand=HUNGRY),
    ]
    assert tokens(made, [group("g")]) == {"owner": 500, "sibling": 0, "other": 500}


def test_the_last_sequence_goes_to_the_group_with_debt() -> None:
    made = [claim("a", demand=HUNGRY, group="x"), claim("b", demand=HUNGRY, group="y")]
    division = Division(Amount(1000, 10000, 3), made, [group("x"), group("y")])
    even = {"a": (1.0, 0.0), "b": (1.0, 0.0)}
    division.reweigh(even, {"x": (1.0, 0.0), "y": (1.0, 1.0)})
    assert [division.shares()[n].allocation.concurrency for n in "ab"] == [1, 2]
    division.reweigh(even, {"x": (1.0, 1.0), "y": (1.0, 0.0)})
    assert [division.shares()[n].allocation.concurrency for n in "ab"] == [2, 1]


def test_rounding_leaves_the_ceiling_of_a_group() -> None:
    ceiling = Amount(math.inf, math.inf, 2.5)
    made = [claim(f"e{n}", demand=HUNGRY, group="g") for n in range(2)]
    shares = Division(CAPACITY, made, [group("g", ceiling=ceiling)]).shares()
    assert sorted(share.allocation.concurrency for share in shares.values()) == [1, 1]


def test_groups_below_a_full_group_stop_too() -> None:
    made = [claim("a", demand=HUNGRY, group="x"), claim("b", demand=HUNGRY, group="org"), claim("c")]
    groups = [group("org", ceiling=Amount(200, math.inf, math.inf)), group("x", "org", weight=3.0)]
    assert tokens(made, groups) == {"a": 150, "b": 50, "c": 0}


@example([0.3, 0.7])
@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=6))
def test_a_guarantee_in_one_dimension_is_divided_by_weight(weights: list[float]) -> None:
    made = [claim(f"e{n}", demand=HUNGRY, weight=w, group="g") for n, w in enumerate(weights)]
    made.append(claim("other", demand=HUNGRY, weight=1e6))
    found = tokens(made, [group("g", guarantee=Amount(600, 0, 0))])
    for n, weight in enumerate(weights):
        assert found[f"e{n}"] == pytest.approx(600 * weight / sum(weights), abs=0.1)
