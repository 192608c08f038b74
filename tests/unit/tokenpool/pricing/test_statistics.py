"""Shared statistics: nothing counts twice, the order does not matter, and a new sidecar starts from them."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import entitlement
from tokenpool.entitlements import OutputEstimate, Pricing
from tokenpool.pricing.cost import Ask, EngineShape, Pricer, Usage
from tokenpool.pricing.estimators import InputTokens, OutputQuantile
from tokenpool.pricing.experts import MOST_EXPERTS
from tokenpool.pricing.statistics import (
    MOST_OUTPUTS,
    EntitlementStatistics,
    OutputStatistics,
    PoolStatistics,
    Statement,
    TargetStatistics,
    combined_lines,
    combined_outputs,
    thinned,
)

CHAT = ("chat", "m")
OPEN = EngineShape(16, None)
MEDIANS = {1: 12, 2: 150, 3: 900}
"""Output tokens of three templates, by prefix."""

statements = st.builds(
    Statement,
    st.integers(0, 3),
    st.dictionaries(st.sampled_from("ab"), st.binary(max_size=2), max_size=2),
)
pools = st.builds(PoolStatistics, st.dictionaries(st.sampled_from(["s1", "s2", "s3"]), statements))


def used(seed: int, requests: int, promise: float = 0.9) -> Pricer:
    """A pricer after requests of the three templates."""
    pricer = Pricer(entitlement(output_estimate=OutputEstimate(promise)), Pricing())
    serve(pricer, random.Random(seed), requests)
    return pricer


def draw(chance: random.Random) -> tuple[Ask, Usage]:
    prefix = chance.choice(list(MEDIANS))
    size = round(chance.lognormvariate(8, 0.5))
    ask = Ask(text_bytes=size, target=CHAT, prefixes=(prefix,))
    tokens = round(30 + 0.3 * size * chance.gauss(1, 0.03))
    return ask, Usage(tokens, max(round(chance.lognormvariate(math.log(MEDIANS[prefix]), 0.4)), 1))


def serve(pricer: Pricer, chance: random.Random, requests: int) -> list[tuple[float, bool]]:
    """Price and learn; returns the ratio of each input estimate and whether the output was covered."""
    met = []
    for _ in range(requests):
        ask, usage = draw(chance)
        cost = pricer.price(ask, OPEN)
        pricer.learn(ask, usage, cost)
        met.append((cost.input_tokens / usage.input_tokens, usage.output_tokens <= cost.output_tokens))
    return met


def lend(pricer: Pricer, *parts: EntitlementStatistics) -> Pricer:
    for _ in pricer.lend(parts):
        pass
    return pricer


def new(*parts: EntitlementStatistics, promise: float = 0.9) -> Pricer:
    return lend(Pricer(entitlement(output_estimate=OutputEstimate(promise)), Pricing()), *parts)


# --- the merge ---


@given(pools, pools)
def test_a_merge_is_commutative(one: PoolStatistics, two: PoolStatistics) -> None:
    assert one.merged(two).statements == two.merged(one).statements


@given(pools, pools, pools)
def test_a_merge_is_associative(one: PoolStatistics, two: PoolStatistics, three: PoolStatistics) -> None:
    assert one.merged(two).merged(three).statements == one.merged(two.merged(three)).statements


@given(pools, pools)
def test_a_merge_is_idempotent(one: PoolStatistics, two: PoolStatistics) -> None:
    assert one.merged(one).statements == one.statements
    assert one.merged(two).merged(two).statements == one.merged(two).statements


def test_the_later_statement_of_a_sidecar_counts() -> None:
    early, late = Statement(1, {"a": b"1"}), Statement(2, {"a": b"2", "b": b"3"})
    pool = PoolStatistics({"s1": late}).merged(PoolStatistics({"s1": early, "s0": early}))
    assert pool.entitlements() == ["a", "b"]
    assert (pool.of("a"), pool.of("b")) == ([b"1", b"2"], [b"3"])


outputs = st.builds(
    lambda values, count, n, m, level: OutputStatistics(
        tuple(sorted(values)), len(values) + count, n, min(n, m), level
    ),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=MOST_OUTPUTS),
    st.integers(0, 100),
    st.integers(0, 128),
    st.integers(0, 128),
    st.sampled_from([0.0, 0.5, 0.86, 0.9, 1.0]),
)


@given(st.lists(outputs, max_size=6), st.randoms(use_true_random=False))
def test_combined_outputs_do_not_depend_on_the_order(
    parts: list[OutputStatistics], chance: random.Random
) -> None:
    shuffled = chance.sample(parts, len(parts))
    whole = combined_outputs(parts)
    assert combined_outputs(shuffled) == whole
    assert len(whole.outputs) == min(sum(part.count for part in parts), OutputQuantile.WINDOW)
    assert set(whole.outputs) <= {value for part in parts for value in part.outputs}
    assert list(whole.outputs) == sorted(whole.outputs)


lines = st.builds(
    lambda sums, prompts: TargetStatistics("chat", "m", sums, prompts),
    st.tuples(*[st.floats(0, 1e9)] * 5),
    st.integers(0, 1000),
)


@given(st.lists(lines, max_size=6), st.randoms(use_true_random=False))
def test_combined_lines_do_not_depend_on_the_order(
    parts: list[TargetStatistics], chance: random.Random
) -> None:
    assert combined_lines(chance.sample(parts, len(parts))) == pytest.approx(combined_lines(parts))


def test_points_have_the_ranks_of_a_sample() -> None:
    assert thinned(range(10), 20) == tuple(range(10))
    assert thinned(range(1, 100), 4) == (20, 40, 60, 80)
    assert thinned(range(1, 193), 64)[58] == round(193 * 59 / 65)
    few, many = OutputStatistics((10,), 1), OutputStatistics((20,), 9)
    assert combined_outputs([few, many]).outputs == (10, *[20] * 9)
    assert combined_outputs([OutputStatistics((10,) * 64, 640), many], most=10).outputs == (10,) * 10
    thirds = [OutputStatistics(tuple(range(first, 193, 3)), 64) for first in (1, 2, 3)]
    assert combined_outputs(thirds, most=64).outputs == thinned(range(1, 193), 64)
    # A point that stands for three outputs has the ranks of all three.
    heavy = OutputStatistics((10, 20, 30), 9)
    assert combined_outputs([heavy], most=9).outputs == (10,) * 3 + (20,) * 3 + (30,) * 3


def test_the_combined_level_is_the_mean_of_known_levels_by_predictions() -> None:
    def level(*parts: tuple[int, float]) -> float:
        return combined_outputs(OutputStatistics((1,), 1, n, 0, value) for n, value in parts).level

    assert level((30, 0.8), (90, 0.9)) == pytest.approx(0.875)
    assert level((30, 0.8), (90, 0.0), (0, 0.5), (9, math.nan), (9, math.inf), (9, -1.0)) == 0.8
    assert level((90, 0.0)) == level() == 0.0


# --- its own observations only ---


def test_lent_knowledge_is_not_among_a_sidecars_own() -> None:
    teacher = used(1, 400).statistics()
    student = new(teacher)
    assert student.statistics().targets == ()
    serve(student, random.Random(2), 30)
    (target,) = student.statistics().targets
    assert (target.prompts, target.output.count) == (30, 30)
    assert target.output.predictions == 30
    assert sum(one.count for one in target.experts.values()) <= 30
    weight = sum(InputTokens.DECAY**n for n in range(30))
    alone = used(2, 30).statistics().targets[0]
    assert target.line[0] == pytest.approx(alone.line[0], rel=1e-9)
    assert 0 < target.line[0] < weight


def test_what_returns_to_the_pool_does_not_grow() -> None:
    """Two sidecars lend to each other again and again, without a request: nothing changes."""
    first, second = used(1, 200), used(2, 200)
    before = first.statistics(), second.statistics()
    prices = first.price(Ask(text_bytes=3000, target=CHAT, prefixes=(1,)), OPEN)
    for _ in range(5):
        lend(first, second.statistics())
        lend(second, first.statistics())
    assert (first.statistics(), second.statistics()) == before
    assert first.price(Ask(text_bytes=3000, target=CHAT, prefixes=(1,)), OPEN) == prices


def test_a_read_before_the_first_request_replaces_the_one_before() -> None:
    one, two = used(1, 300).statistics(), used(2, 300).statistics()
    again = lend(new(one), one, two)
    at_once = new(one, two)
    asks = [Ask(text_bytes=3000, target=CHAT, prefixes=(prefix,)) for prefix in MEDIANS]
    assert [again.price(ask, OPEN) for ask in asks] == [at_once.price(ask, OPEN) for ask in asks]
    assert lend(again).price(asks[0], OPEN) == at_once.price(asks[0], OPEN)


# --- a new sidecar ---


def test_a_new_sidecar_starts_within_bounds() -> None:
    met: list[tuple[float, bool]] = []
    for seed in range(20):
        student = new(*(used(100 * seed + n, 400).statistics() for n in range(3)))
        met += serve(student, random.Random(seed), 20)
    assert median(abs(ratio - 1) for ratio, _ in met) <= 0.05
    assert sum(covered for _, covered in met) / len(met) == pytest.approx(0.9, abs=0.03)


def covered(pricer: Pricer, prefix: int) -> float:
    """The exact share of a template's outputs that the present reservation covers."""
    cost = pricer.price(Ask(text_bytes=3000, target=CHAT, prefixes=(prefix,)), OPEN)
    return NormalDist(math.log(MEDIANS[prefix]), 0.4).cdf(math.log(cost.output_tokens + 0.5))


def test_each_template_of_a_new_sidecar_has_the_promised_coverage() -> None:
    """The mean over new sidecars is within 2 points of the promise, for each template from the start on."""
    students = [new(*(used(100 * seed + n, 500).statistics() for n in range(3))) for seed in range(40)]
    chances = [random.Random(seed) for seed in range(40)]
    for more in (0, 5, 15, 30):
        for student, chance in zip(students, chances, strict=True):
            serve(student, chance, more)
        for prefix in MEDIANS:
            assert fmean(covered(each, prefix) for each in students) == pytest.approx(0.9, abs=0.02)


def expert(outputs: list[int], level: float = 0.9) -> EntitlementStatistics:
    """The statistics of a sidecar with one expert, of prefix 1."""
    known = OutputStatistics(tuple(outputs), 64, 100, 10, level)
    return EntitlementStatistics(0.9, (TargetStatistics("chat", "m", experts={1: known}),))


def after(*outputs: int) -> Pricer:
    """A pricer that knows these outputs of prefix 1, and as many of another prefix."""
    pricer = Pricer(entitlement(), Pricing())
    for output in outputs:
        pricer.learn(Ask(text_bytes=2000, target=CHAT, prefixes=(1,)), Usage(500, output))
        pricer.learn(Ask(text_bytes=2000, target=CHAT, prefixes=(2,)), Usage(500, 500))
    return pricer


def reserved(pricer: Pricer) -> tuple[int, int]:
    """The output tokens and the depth of the expert, for a request with prefix 1."""
    cost = pricer.price(Ask(text_bytes=2000, target=CHAT, prefixes=(1,)), OPEN)
    return cost.output_tokens, cost.expert


@pytest.mark.parametrize("few", [1, 5, 12])
def test_an_expert_with_few_own_outputs_is_completed_from_the_pool(few: int) -> None:
    pricer = after(*[20] * few)
    assert pricer.experts.certified == 0
    own = pricer.statistics()
    for output in (30, 30, 40):  # each read replaces the outputs of the one before
        lend(pricer, expert([output] * 64))
        assert reserved(pricer) == (output, 1)
        if few >= OutputQuantile.ENOUGH:
            assert pricer.statistics() == own


def test_only_own_outputs_are_shared_after_others_have_completed_them() -> None:
    pricer = lend(after(*[20] * 10), expert([30] * 64))
    for output in range(100, 110):
        pricer.learn(Ask(text_bytes=2000, target=CHAT, prefixes=(1,)), Usage(500, output))
    (target,) = pricer.statistics().targets
    assert target.experts[1].outputs == (*[20] * 10, *range(100, 110))
    assert target.experts[1].predictions <= 20


def test_a_new_expert_starts_at_the_pools_level() -> None:
    """The level is within its bounds. An unknown one is the quantile, and an own one stays."""
    outputs = list(range(101, 165))
    found = [reserved(new(expert(outputs, level)))[0] for level in (0.8, 0.0, 0.9, 0.01, 1.0, math.nan)]
    assert found == [152, 159, 159, 140, 164, 159]
    corrected = after(*[20] * 9)
    lend(corrected, expert(outputs, 0.6))
    assert reserved(corrected)[0] > 150


def test_a_lent_expert_is_certified_at_once() -> None:
    student = new(used(1, 600).statistics(), used(2, 600).statistics())
    assert student.experts.certified >= 2
    cost = student.price(Ask(text_bytes=3000, target=CHAT, prefixes=(1,)), OPEN)
    assert (cost.expert, cost.output_tokens < 40) == (1, True)


def test_predictions_for_another_promise_certify_nothing() -> None:
    student = new(used(1, 600).statistics(), promise=0.8)
    assert student.experts.certified == 0
    assert len(student.experts) == len(MEDIANS)


def test_own_observations_are_not_replaced() -> None:
    pricer = used(1, 300)
    cost = pricer.price(Ask(text_bytes=3000, target=CHAT, prefixes=(1,)), OPEN)
    other = TargetStatistics(
        "chat",
        "m",
        output=OutputStatistics((5000,) * 64, 64),
        experts={1: OutputStatistics((5000,) * 64, 64)},
    )
    lend(pricer, EntitlementStatistics(0.9, (other,)))
    assert pricer.price(Ask(text_bytes=3000, target=CHAT, prefixes=(1,)), OPEN) == cost


def test_a_prefix_that_only_others_have_seen_is_added() -> None:
    pricer = used(1, 300)
    known = {9: OutputStatistics((7,) * 64, 64, 100, 5)}
    lend(pricer, EntitlementStatistics(0.9, (TargetStatistics("chat", "m", experts=known),)))
    cost = pricer.price(Ask(text_bytes=3000, target=CHAT, prefixes=(9,)), OPEN)
    assert (cost.output_tokens, cost.expert) == (7, 1)


def test_each_target_starts_from_its_own() -> None:
    teacher = Pricer(entitlement(), Pricing())
    for _ in range(60):
        for model, tokens, output in (("a", 200, 10), ("b", 400, 90)):
            teacher.learn(Ask(text_bytes=1000, target=("chat", model)), Usage(tokens, output))
    student = new(teacher.statistics())
    a, b = (student.price(Ask(text_bytes=1000, target=("chat", model)), OPEN) for model in "ab")
    assert (a.input_tokens, a.output_tokens) == (pytest.approx(200, abs=2), 10)
    assert (b.input_tokens, b.output_tokens) == (pytest.approx(400, abs=2), 90)
    assert student.overall.output.value == 90
    lone = Pricer(entitlement(), Pricing())
    lone.learn(Ask(text_bytes=1000, target=("chat", "a")), Usage(200, 10))
    lend(lone, teacher.statistics())
    assert lone.price(Ask(text_bytes=1000, target=("chat", "b")), OPEN).output_tokens == 90


numbers = st.integers(-(2**63), 2**63 - 1)
anything = st.builds(
    OutputStatistics,
    st.lists(numbers, max_size=70).map(tuple),
    numbers,
    numbers,
    numbers,
    st.floats(),
)


@given(st.lists(st.tuples(anything, st.dictionaries(st.integers(0, 400), anything, max_size=6), numbers)))
def test_any_statistics_leave_prices_in_their_bounds(
    parts: list[tuple[OutputStatistics, dict[int, OutputStatistics], int]],
) -> None:
    known = [
        EntitlementStatistics(0.9, (TargetStatistics("chat", "m", (1.0,) * 5, prompts, output, experts),))
        for output, experts, prompts in parts
    ]
    pricer = new(*known)
    for prefix in (1, 2, 3):
        cost = pricer.price(Ask(text_bytes=1000, target=CHAT, prefixes=(prefix,)), OPEN)
        assert 1 <= cost.output_tokens <= OutputQuantile.MOST
        assert 20 <= cost.input_tokens <= 2000 + 1024
        pricer.learn(Ask(text_bytes=1000, target=CHAT, prefixes=(prefix,)), Usage(100, 10), cost)
    assert len(pricer.experts) <= MOST_EXPERTS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_invalid_sums_are_refused_without_a_change(bad: float) -> None:
    pricer = Pricer(entitlement(), Pricing())
    part = TargetStatistics("chat", "m", (1.0, 1.0, bad, 1.0, 1.0), 10)
    with pytest.raises(ValueError, match="finite"):
        lend(pricer, EntitlementStatistics(0.9, (part,)))
    assert pricer.price(Ask(text_bytes=1000, target=CHAT), OPEN).input_tokens == 250
