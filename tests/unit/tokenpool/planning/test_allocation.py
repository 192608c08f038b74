"""The invariants of an allocation, for arbitrary claims."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount, Dimension
from tokenpool.entitlements import Tier
from tokenpool.planning.allocation import Division
from tokenpool.planning.claims import Claim, FairShare, Share

CAPACITY = Amount(1000.0, 10000.0, 16.0)
SLACK = 1e-6


def claim(name: str = "a", tier: Tier = Tier.ELASTIC, **values: object) -> Claim:
    fields: dict[str, object] = {
        "weight": 1.0,
        "guarantee": NOTHING,
        "ceiling": UNBOUNDED,
        "demand": NOTHING,
    }
    return Claim(name=name, tier=tier, **(fields | values))  # type: ignore[arg-type]


def amounts(most: Amount, *, zero: bool = True) -> st.SearchStrategy[Amount]:
    def values(bound: float) -> st.SearchStrategy[float]:
        some = st.floats(bound * 0.001, bound)
        return some if not zero else st.just(0.0) | some

    return st.builds(Amount, values(most.tokens_per_second), values(most.kv_tokens), values(most.concurrency))


@st.composite
def claims(draw: st.DrawFn, *, most: int = 8) -> list[Claim]:
    made = []
    for index in range(draw(st.integers(0, most))):
        tier = draw(st.sampled_from(list(Tier)))
        guarantee = NOTHING if tier is Tier.SPOT else draw(st.just(NOTHING) | amounts(CAPACITY * 0.4))
        ceiling = draw(st.just(UNBOUNDED) | amounts(CAPACITY * 2))
        demand = draw(st.just(NOTHING) | amounts(CAPACITY * 3))
        made.append(
            claim(
                f"e{index}",
                tier,
                weight=draw(st.floats(0.1, 10)),
                guarantee=guarantee,
                ceiling=ceiling.at_least(guarantee),
                demand=demand,
                floor=draw(st.just(NOTHING) | amounts(CAPACITY * 0.2)),
                priority=draw(st.floats(-4, 4)),
            )
        )
    return made


capacities = st.one_of(st.just(CAPACITY), st.just(NOTHING), amounts(CAPACITY * 2))


def allocate(capacity: Amount, made: list[Claim]) -> dict[str, Share]:
    return Division(capacity, made).shares()


def fair_shares(capacity: Amount, made: list[Claim]) -> dict[str, FairShare]:
    return Division(capacity, made).fair_shares()


def used(shares: dict[str, Share], dimension: Dimension) -> float:
    return sum(share.allocation.get(dimension) for share in shares.values())


@given(claims(), capacities)
def test_allocation_never_exceeds_live_capacity(made: list[Claim], capacity: Amount) -> None:
    shares = allocate(capacity, made)
    for dimension in Dimension:
        assert used(shares, dimension) <= capacity.get(dimension) * (1 + SLACK) + SLACK


@given(claims(), capacities)
def test_a_limit_lies_between_guarantee_and_ceiling(made: list[Claim], capacity: Amount) -> None:
    shares = allocate(capacity, made)
    for c in made:
        share = shares[c.name]
        assert c.guarantee.fits(share.limit)
        assert share.limit.fits(c.ceiling)
        assert share.assured.fits(share.limit)
        assert all(0 <= share.limit.get(d) < float("inf") for d in Dimension)


@given(claims(), capacities, st.randoms(use_true_random=False))
def test_the_order_of_claims_does_not_matter(
    made: list[Claim], capacity: Amount, shuffler: random.Random
) -> None:
    shuffled = list(made)
    shuffler.shuffle(shuffled)
    assert allocate(capacity, made) == allocate(capacity, shuffled)


@given(claims(), capacities)
def test_work_is_conserved(made: list[Claim], capacity: Amount) -> None:
    """A claim with unmet demand below its ceiling needs a dimension without free capacity."""
    shares, fair = allocate(capacity, made), fair_shares(capacity, made)
    for c in made:
        if fair[c.name].is_satisfied or not any(c.demand.get(d) > 0 for d in Dimension):
            continue
        if any(c.demand.get(d) > 0 and c.ceiling.get(d) <= 0 for d in Dimension):
            continue  # its ceiling excludes its requests
        slack = {
            Dimension.TOKENS_PER_SECOND: SLACK * 1000,
            Dimension.KV_TOKENS: SLACK * 10000,
            Dimension.CONCURRENCY: 1.0,  # no further whole sequence fits
        }
        # Sequences are whole: a part of a sequence needs a slot.
        slots = sum(math.ceil(share.allocation.concurrency) for share in shares.values())
        taken = {d: used(shares, d) for d in Dimension} | {Dimension.CONCURRENCY: slots}
        full = [d for d in Dimension if taken[d] >= capacity.get(d) - slack[d] - SLACK]
        assert any(c.demand.get(d) > 0 for d in full), (c, shares)


@given(claims(), capacities)
def test_guarantees_come_before_everything(made: list[Claim], capacity: Amount) -> None:
    """If live capacity is enough for the demanded guarantees, each one is granted in full."""
    inside = {c.name: c.guarantee.at_most(c.demand) for c in made}
    if not all(sum(a.get(d) for a in inside.values()) <= capacity.get(d) for d in Dimension):
        return
    shares = allocate(capacity, made)
    for c in made:
        if any(c.demand.get(d) > c.ceiling.get(d) for d in Dimension):
            continue  # a ceiling in one dimension scales the demand in all others
        granted = shares[c.name].allocation
        assert granted.tokens_per_second >= inside[c.name].tokens_per_second * (1 - SLACK)
        assert granted.kv_tokens >= inside[c.name].kv_tokens * (1 - SLACK)


def test_guarantees_shrink_in_proportion_when_capacity_cannot_carry_them() -> None:
    made = [
        claim("a", Tier.GUARANTEED, guarantee=Amount(600, 0, 0), demand=Amount(900, 0, 0)),
        claim("b", Tier.GUARANTEED, guarantee=Amount(200, 0, 0), demand=Amount(900, 0, 0)),
        claim("c", Tier.ELASTIC, demand=Amount(900, 0, 0)),
    ]
    shares = allocate(Amount(400, 1000, 16), made)
    assert shares["a"].allocation.tokens_per_second == pytest.approx(300)
    assert shares["b"].allocation.tokens_per_second == pytest.approx(100)
    assert shares["c"].allocation.tokens_per_second == pytest.approx(0)
    assert shares["a"].limit.tokens_per_second == 600


def test_an_idle_guarantee_is_used_by_others_and_returned_at_once() -> None:
    owner = claim("owner", Tier.GUARANTEED, guarantee=Amount(500, 5000, 8))
    spot = claim("spot", Tier.SPOT, demand=CAPACITY * 2)
    shares = allocate(CAPACITY, [owner, spot])
    back = allocate(CAPACITY, [replace(owner, demand=Amount(500, 5000, 8)), spot])
    assert shares["spot"].allocation == CAPACITY
    assert shares["owner"].limit == Amount(500, 5000, 8)
    assert back["spot"].allocation == Amount(500, 5000, 8)


@given(st.sampled_from(list(Tier)), amounts(CAPACITY * 3, zero=False))
def test_a_lone_tenant_may_use_the_whole_pool(tier: Tier, demand: Amount) -> None:
    idle = [claim(f"i{i}", Tier.ELASTIC) for i in range(3)]
    shares = allocate(CAPACITY, [claim("a", tier, demand=demand), *idle])
    assert shares["a"].limit == CAPACITY


def test_tiers_are_served_in_order() -> None:
    made = [
        claim("g", Tier.GUARANTEED, guarantee=Amount(300, 3000, 4), demand=Amount(300, 3000, 4)),
        claim("e", Tier.ELASTIC, demand=Amount(500, 5000, 8)),
        claim("s", Tier.SPOT, demand=CAPACITY),
    ]
    shares = allocate(CAPACITY, made)
    assert shares["g"].allocation == Amount(300, 3000, 4)
    assert shares["e"].allocation == Amount(500, 5000, 8)
    assert shares["s"].allocation.concurrency == 4  # from 3.2: the fourth slot is free
    assert shares["s"].allocation.tokens_per_second == pytest.approx(200)


def test_dominant_shares_rise_together_by_weight() -> None:
    made = [
        claim("tokens", demand=Amount(3000, 3000, 8)),
        claim("cache", demand=Amount(300, 30000, 8), weight=2.0),
    ]
    shares = allocate(CAPACITY, made)
    fair = fair_shares(CAPACITY, made)
    assert fair["cache"].dominant_share == pytest.approx(2 * fair["tokens"].dominant_share)
    assert used(shares, Dimension.KV_TOKENS) == pytest.approx(10000)


def test_a_bound_in_one_dimension_leaves_the_other_dimensions_usable() -> None:
    bound = claim("bound", demand=Amount(1000, 1000, 16), ceiling=Amount(1000, 10000, 2))
    free = claim("free", demand=Amount(2000, 2000, 32))
    shares = allocate(CAPACITY, [bound, free])
    assert shares["bound"].allocation.tokens_per_second == pytest.approx(125)
    assert shares["free"].allocation.tokens_per_second == pytest.approx(875)


def test_whole_sequences_neither_waste_nor_exceed_capacity() -> None:
    made = [claim(f"e{i}", demand=Amount(100, 100, 8)) for i in range(5)]
    shares = allocate(Amount(1000, 10000, 8), made)
    given_out = sorted(share.allocation.concurrency for share in shares.values())
    assert given_out == [1, 1, 2, 2, 2]


def test_the_last_sequence_goes_to_the_claim_with_debt() -> None:
    made = [claim("a", demand=Amount(100, 100, 8)), claim("b", demand=Amount(100, 100, 8), priority=1.0)]
    shares = allocate(Amount(1000, 10000, 3), made)
    assert (shares["a"].allocation.concurrency, shares["b"].allocation.concurrency) == (1, 2)


def test_a_new_claim_gets_capacity_although_spot_holds_all() -> None:
    newcomer = claim("new", Tier.ELASTIC, floor=Amount(0, 200, 1))
    spot = claim("spot", Tier.SPOT, demand=CAPACITY * 2)
    shares = allocate(CAPACITY, [newcomer, spot])
    assert shares["new"].assured == Amount(0, 200, 1)
    assert shares["spot"].assured == NOTHING


def test_spot_has_no_floor_while_others_have_unmet_demand() -> None:
    spot = [claim(f"spot-{n}", Tier.SPOT, demand=CAPACITY, floor=Amount(0, 200, 1)) for n in range(8)]
    others = [claim("idle", Tier.ELASTIC), claim("modest", Tier.ELASTIC, demand=CAPACITY * 0.05)]
    hungry = claim("hungry", Tier.ELASTIC, demand=CAPACITY * 2)
    shares = allocate(CAPACITY, [*others, hungry, *spot])
    assert all(shares[s.name].limit.concurrency < 1 for s in spot)
    rest = claim("rest", Tier.ELASTIC, demand=CAPACITY * 0.9)
    shares = allocate(CAPACITY, [*others, rest, *spot])
    assert all(shares[s.name].limit.concurrency >= 1 for s in spot)


scales = st.floats(1.0, 4.0)
positive = amounts(CAPACITY * 2, zero=False)


@st.composite
def claims_in_all_dimensions(draw: st.DrawFn) -> list[Claim]:
    """Realistic claims: every request needs every dimension."""
    return [
        claim(
            f"e{i}",
            draw(st.sampled_from([Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT])),
            weight=draw(st.floats(0.2, 5)),
            demand=draw(positive),
        )
        for i in range(draw(st.integers(1, 6)))
    ]


def not_less(after: Amount, before: Amount) -> bool:
    """Whether no dimension fell. One whole sequence may go to another claim."""
    return (
        after.tokens_per_second >= before.tokens_per_second * (1 - SLACK) - SLACK
        and after.kv_tokens >= before.kv_tokens * (1 - SLACK) - SLACK
        and after.concurrency >= before.concurrency - 1
    )


@given(claims_in_all_dimensions(), scales)
def test_more_demand_never_lowers_the_share_of_a_claim(made: list[Claim], scale: float) -> None:
    more = [replace(made[0], demand=made[0].demand * scale), *made[1:]]
    before, after = allocate(CAPACITY, made)["e0"], allocate(CAPACITY, more)["e0"]
    assert not_less(after.allocation, before.allocation)


@example(
    [
        claim("e0", Tier.GUARANTEED, demand=Amount(2, 20, 4.5)),
        claim("e1", Tier.SPOT, demand=Amount(2, 20, 1)),
        claim("e2", Tier.GUARANTEED, weight=3.0, demand=Amount(2, 20, 12)),
    ],
    2.0,
)  # half a sequence is left, and spot cannot use it
@example(
    [
        claim("e0", Tier.GUARANTEED, demand=Amount(2, 20, 4.5)),
        claim("e1", Tier.SPOT, demand=Amount(2, 20, 0.3)),
        claim("e2", Tier.GUARANTEED, weight=3.0, demand=Amount(2, 20, 12)),
    ],
    2.0,
)  # less than half a sequence is left
@given(claims_in_all_dimensions(), scales)
def test_more_weight_never_lowers_the_limit_of_a_claim(made: list[Claim], scale: float) -> None:
    """Debt is a factor of the weight, so this covers debt too."""
    more = [replace(made[0], weight=made[0].weight * scale), *made[1:]]
    before, after = allocate(CAPACITY, made)["e0"], allocate(CAPACITY, more)["e0"]
    assert not_less(after.limit, before.limit)


def test_a_division_without_claims_or_capacity_is_no_error() -> None:
    assert allocate(CAPACITY, []) == {}
    share = allocate(NOTHING, [claim(demand=CAPACITY)])["a"]
    assert share.allocation == NOTHING
    assert share.limit == NOTHING


@given(claims())
def test_a_claim_without_demand_gets_the_same_share_inside_and_outside_of_a_division(
    made: list[Claim],
) -> None:
    active = [each for each in made if each.demand != NOTHING]
    whole, part = allocate(CAPACITY, made), Division(CAPACITY, active)
    shares, terms = part.shares(), part.idle_terms()
    for each in made:
        if each.demand != NOTHING:
            assert shares[each.name] == whole[each.name]
        else:
            idle = terms.share(each.tier, each.guarantee, each.ceiling, each.floor)
            assert idle == whole[each.name]
