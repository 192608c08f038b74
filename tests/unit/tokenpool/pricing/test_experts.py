"""Price experts by prefix: the expert that prices a request, the conditions for an expert, and the bounds."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import SHAPE, entitlement
from tokenpool.entitlements import OutputEstimate, Pricing
from tokenpool.pricing.cost import Ask, EngineShape, Pricer, Usage
from tokenpool.pricing.estimators import Coverage, OutputQuantile
from tokenpool.pricing.experts import (
    IDLE_OBSERVATIONS,
    MOST_CANDIDATES,
    MOST_EXPERTS,
    REPEATED,
    PriceExperts,
)

CHAT = ("chat", "m")
SHORT, LONG, OTHER = 1001, 1002, 1003
OPEN = EngineShape(16, None)


class Trie:
    """Experts of one target, with its number of observations."""

    def __init__(self) -> None:
        self.experts = PriceExperts(0.9)
        self.count = 0

    def see(self, *prefixes: int, output: int | None = 10, cached: int = 0, times: int = 1) -> None:
        for _ in range(times):
            self.count += 1
            self.experts.observe(CHAT, prefixes, self.count, output, cached)

    def cached(self, *prefixes: int) -> int:
        nodes = self.experts.of(CHAT) or {}
        return next(
            (n.cached_tokens for p in reversed(prefixes) if (n := nodes.get(p)) and n.cached_tokens), 0
        )

    @property
    def prefixes(self) -> set[int]:
        return {node.prefix for node in self.experts}


def teach(pricer: Pricer, prefixes: tuple[int, ...], output: int, times: int = 1) -> None:
    for _ in range(times):
        pricer.learn(Ask(text_bytes=2000, target=CHAT, prefixes=prefixes), Usage(500, output))


def reserved(pricer: Pricer, *prefixes: int) -> tuple[int, int]:
    """The reserved output, and the depth of the expert that estimated it."""
    cost = pricer.price(Ask(text_bytes=2000, target=CHAT, prefixes=prefixes), OPEN)
    return cost.output_tokens, cost.expert


def two_templates(estimate: float | None = 0.9) -> Pricer:
    """A pricer that knows short answers behind one prefix and long ones behind another."""
    pricer = Pricer(entitlement(output_estimate=OutputEstimate(estimate)), Pricing())
    for _ in range(40):
        teach(pricer, (SHORT,), 10)
        teach(pricer, (OTHER,), 500)
    return pricer


def test_each_template_has_the_price_of_its_own_outputs() -> None:
    pricer = two_templates()
    assert reserved(pricer, SHORT) == (10, 1)
    assert reserved(pricer, OTHER) == (500, 1)
    assert reserved(pricer) == reserved(pricer, LONG) == (500, 0)
    assert reserved(pricer, SHORT, LONG) == (10, 1)  # the deepest certified one


def test_max_still_reserves_the_whole_bound() -> None:
    pricer = two_templates(None)
    ask = Ask(text_bytes=2000, target=CHAT, prefixes=(SHORT,), output_bound=1000)
    assert pricer.price(ask, SHAPE).output_tokens == 1000
    assert pricer.experts.certified == 0


def test_the_bound_of_a_request_is_never_exceeded() -> None:
    ask = Ask(text_bytes=2000, target=CHAT, prefixes=(OTHER,), output_bound=20)
    assert two_templates().price(ask, SHAPE).output_tokens == 20


def test_an_expert_without_a_certificate_raises_the_price_and_never_lowers_it() -> None:
    pricer = two_templates()
    teach(pricer, (SHORT, LONG), 10, times=3)
    for number in range(12):
        teach(pricer, (SHORT, OTHER + 1), 80 + number)
        teach(pricer, (SHORT, OTHER + 2), 4)
    nodes = pricer.experts.of(CHAT)
    assert nodes is not None
    assert not nodes[OTHER + 1].is_certified
    assert reserved(pricer, SHORT, OTHER + 1)[0] >= 80
    assert not nodes[OTHER + 2].is_certified
    assert reserved(pricer, SHORT, OTHER + 2)[0] >= 10


def test_an_expert_whose_outputs_grow_loses_its_certificate() -> None:
    pricer = two_templates()
    while reserved(pricer, SHORT)[1] == 1:
        growing = reserved(pricer, SHORT)[0] + 10
        assert growing < 5000
        teach(pricer, (SHORT,), growing)
        teach(pricer, (OTHER,), 5000)
    assert reserved(pricer, SHORT)[0] >= 500


def test_a_certificate_needs_enough_predictions_and_few_misses() -> None:
    quantile = OutputQuantile(0.9)
    for _ in range(OutputQuantile.ENOUGH + 9):
        quantile.observe(10)
    assert (quantile.is_certified, quantile.coverage.predictions) == (False, 9)
    quantile.observe(10)
    assert quantile.is_certified
    quantile.observe(11)
    assert quantile.is_certified
    quantile.observe(12)
    assert not quantile.is_certified
    assert quantile.coverage.share == pytest.approx(10 / 12)


def test_a_promise_beyond_the_window_is_never_certified() -> None:
    quantile = OutputQuantile(0.999)
    for _ in range(1000):
        quantile.observe(10)
    assert not quantile.is_certified


def test_another_quantile_ends_the_certificates() -> None:
    pricer = two_templates()
    assert pricer.experts.certified == 2
    pricer.reprice(entitlement(output_estimate=OutputEstimate(0.8)), Pricing())
    assert pricer.experts.certified == 0
    for _ in range(10):
        teach(pricer, (SHORT,), 10)
        teach(pricer, (OTHER,), 500)
    assert pricer.experts.certified == 2


def test_a_cut_request_teaches_the_experts_on_its_path() -> None:
    pricer = two_templates()
    for _ in range(40):
        pricer.learn_cut(Ask(text_bytes=2000, target=CHAT, prefixes=(SHORT, LONG)), 300)
    assert reserved(pricer, SHORT)[0] >= 300


def test_the_same_prefix_of_two_models_has_two_experts() -> None:
    pricer = Pricer(entitlement(), Pricing())
    for _ in range(40):
        for model, output in (("a", 10), ("b", 300)):
            for prefix in (SHORT, OTHER):
                ask = Ask(text_bytes=2000, target=("chat", model), prefixes=(prefix,))
                pricer.learn(ask, Usage(500, output))
    assert len(pricer.experts) == 4
    costs = [
        pricer.price(Ask(text_bytes=2000, target=("chat", model), prefixes=(SHORT,)), OPEN) for model in "ab"
    ]
    assert [cost.output_tokens for cost in costs] == [10, 300]


# --- the conditions for an expert ---


def test_a_prefix_becomes_an_expert_when_it_is_repeated_among_others() -> None:
    trie = Trie()
    trie.see(OTHER)
    trie.see(SHORT, times=REPEATED - 1)
    assert trie.prefixes == set()
    trie.see(OTHER)
    trie.see(SHORT)
    assert trie.prefixes == {SHORT}
    expert = next(iter(trie.experts))
    assert expert.output is not None
    assert expert.output.observations == REPEATED  # it knows the outputs before


def test_a_prefix_that_is_all_that_its_parent_sees_gets_no_expert() -> None:
    trie = Trie()
    trie.see(SHORT, LONG, times=200)
    assert trie.prefixes == set()
    for _ in range(2 * REPEATED):
        trie.see(OTHER)
        trie.see(SHORT, LONG)
    assert trie.prefixes == {SHORT, OTHER}
    for _ in range(2 * REPEATED):
        trie.see(SHORT, LONG + 100)
        trie.see(SHORT, LONG)
    assert trie.prefixes == {SHORT, OTHER, LONG, LONG + 100}


def test_a_request_without_output_makes_no_expert() -> None:
    trie = Trie()
    for _ in range(20):
        trie.see(SHORT, output=None)
        trie.see(OTHER, output=None)
    assert trie.prefixes == set()


# --- bounds ---


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 600), max_size=3, unique=True), st.integers(0, 10**6)), max_size=300
    )
)
def test_nodes_are_bounded_and_cached_tokens_never_exceed_the_reports(
    seen: list[tuple[list[int], int]],
) -> None:
    trie, most = Trie(), 0
    for numbers, cached in seen:
        trie.see(*numbers, cached=cached)
        most = max(most, cached)
        assert trie.experts.candidates <= MOST_CANDIDATES
        assert 0 <= trie.cached(*numbers) <= most
    assert len(trie.experts) <= MOST_EXPERTS


def test_random_prefixes_displace_no_expert_in_use() -> None:
    trie, chance = Trie(), random.Random(1)
    for _ in range(2 * REPEATED):
        trie.see(SHORT)
        trie.see(OTHER)
    for number in range(6 * IDLE_OBSERVATIONS):
        trie.see(SHORT if number % 500 == 0 else chance.getrandbits(50), chance.getrandbits(50))
    assert trie.prefixes >= {SHORT}
    assert (len(trie.experts), trie.experts.candidates) == (2, MOST_CANDIDATES)


def test_repeated_random_prefixes_fill_the_free_places_only() -> None:
    trie = Trie()
    for _ in range(2 * REPEATED):
        trie.see(SHORT)
        trie.see(OTHER)
    for number in range(4 * MOST_EXPERTS):
        trie.see()
        trie.see(10_000 + number, 20_000 + number, times=REPEATED + 1)
        if number % 50 == 0:
            trie.see(SHORT)
        assert len(trie.experts) <= MOST_EXPERTS
    assert SHORT in trie.prefixes


def test_an_idle_expert_makes_place_for_a_new_one() -> None:
    trie = Trie()
    for number in range(MOST_EXPERTS):
        trie.see(number, times=2)
        trie.see()
        trie.see(number, times=2)
    assert len(trie.experts) == MOST_EXPERTS
    assert 0 in trie.prefixes
    trie.see(5000, times=2)
    trie.see()
    trie.see(5000, times=2)
    assert 5000 not in trie.prefixes
    trie.see(times=IDLE_OBSERVATIONS)
    trie.see(5000)
    assert 5000 in trie.prefixes
    assert 0 not in trie.prefixes
    assert len(trie.experts) == MOST_EXPERTS


# --- coverage ---


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.floats(1, 7), st.floats(0.1, 1.0)), min_size=2, max_size=6),
    st.sampled_from([0.8, 0.9, 0.95]),
)
def test_coverage_is_never_below_that_of_one_quantile_per_route(
    seed: int, templates: list[tuple[float, float]], promise: float
) -> None:
    """On steady mixes, coverage is within a certificate's tolerance, for all requests and each template."""
    chance = random.Random(seed)
    deep = Pricer(entitlement(output_estimate=OutputEstimate(promise)), Pricing())
    flat = Pricer(entitlement(output_estimate=OutputEstimate(promise)), Pricing())
    met: Counter[int] = Counter()
    covered: Counter[tuple[str, int]] = Counter()
    for number in range(1500):
        template = chance.randrange(len(templates))
        output = max(round(chance.lognormvariate(*templates[template])), 1)
        for name, pricer, prefixes in (("deep", deep, (template,)), ("flat", flat, ())):
            ask = Ask(text_bytes=2000, target=CHAT, prefixes=prefixes)
            if number >= 300:
                covered[name, template] += output <= pricer.price(ask, OPEN).output_tokens
            pricer.learn(ask, Usage(500, output))
        met[template] += number >= 300
    share = {name: sum(covered[name, t] for t in met) / met.total() for name in ("deep", "flat")}
    assert share["deep"] >= min(share["flat"], promise) - OutputQuantile.MARGIN
    for template, count in met.items():
        # It is below the route's coverage only where that was above the promise.
        least = min(covered["flat", template] / count, promise)
        allowed = OutputQuantile.MARGIN + 2 * math.sqrt(promise * (1 - promise) / count)
        assert covered["deep", template] / count >= least - allowed


def test_coverage_counts_the_last_predictions() -> None:
    coverage = Coverage()
    assert (coverage.share, coverage.all_misses) == (1.0, 0)
    for number in range(300):
        coverage.observe(is_missed=number % 4 == 0)
    assert (coverage.predictions, coverage.share) == (Coverage.WINDOW, 0.75)
    assert (coverage.misses(1), coverage.misses(4)) == (0, 1)
    coverage.lend(40, 5)
    assert (coverage.predictions, coverage.all_misses) == (40, 5)
    coverage.lend(10**9, 10**9)
    assert coverage.all_misses == Coverage.WINDOW
    for is_missed in (True, True, False):
        coverage.observe(is_missed=is_missed)
    coverage.lend(40, 4, kept=2)
    assert (coverage.predictions, coverage.all_misses, coverage.misses(2)) == (42, 5, 1)
    coverage.lend(1000, 100, kept=28)
    assert (coverage.predictions, coverage.all_misses - coverage.misses(28)) == (Coverage.WINDOW, 10)


def test_a_pricer_publishes_the_coverage_and_size_of_its_reservations() -> None:
    pricer = Pricer(entitlement(), Pricing())
    assert (pricer.coverage.share, pricer.reserved_ratio) == (1.0, 0.0)
    for output in (10, 10, 10, 30):
        ask = Ask(text_bytes=2000, target=CHAT, output_bound=20)
        pricer.learn(ask, Usage(500, output), pricer.price(ask, OPEN))
    assert pricer.coverage.share == 0.75
    assert pricer.reserved_ratio == pytest.approx(80 / 60, abs=0.02)


# --- cached tokens ---


def test_a_prefix_counts_once_the_engine_has_reported_it() -> None:
    trie = Trie()
    trie.see(SHORT, LONG)
    assert (trie.cached(SHORT, LONG), trie.experts.cached_prefixes) == (0, 0)
    trie.see(SHORT, LONG, cached=1000)
    assert trie.cached(SHORT, LONG) == 1000
    assert trie.cached() == trie.cached(OTHER) == 0


def test_a_smaller_number_counts_at_once_and_a_larger_one_by_half() -> None:
    trie = Trie()
    trie.see(SHORT, cached=1000)
    trie.see(SHORT, cached=2000)
    assert trie.cached(SHORT) == 1500
    trie.see(SHORT, cached=400)
    assert trie.cached(SHORT) == 400
    trie.see(SHORT, cached=0)
    assert (trie.cached(SHORT), trie.experts.cached_prefixes) == (0, 0)


def test_the_longest_known_prefix_counts() -> None:
    trie = Trie()
    trie.see(SHORT, cached=250)
    trie.see(SHORT, LONG, cached=250)
    trie.see(SHORT, LONG, cached=4250)
    assert trie.cached(SHORT, LONG) == 2250
    assert trie.cached(SHORT, OTHER) == 250


def test_an_evicted_prefix_lowers_the_estimates_of_shorter_ones() -> None:
    trie = Trie()
    trie.see(SHORT, LONG, cached=1000)
    trie.see(SHORT, LONG, cached=100)
    assert trie.cached(SHORT, OTHER) == 100
    trie.see(SHORT, LONG, cached=0)
    assert trie.experts.cached_prefixes == 0


def test_a_restarted_engine_has_no_cached_prefix() -> None:
    trie = Trie()
    trie.see(SHORT, cached=250)
    trie.experts.forget_cache()
    assert trie.cached(SHORT) == 0


def test_the_least_recently_used_candidate_is_replaced() -> None:
    trie = Trie()
    for number in range(MOST_CANDIDATES):
        trie.see(number, cached=16)
    trie.see(0, cached=16)
    trie.see(OTHER, cached=16)
    assert (trie.cached(0), trie.cached(1), trie.experts.candidates) == (16, 0, MOST_CANDIDATES)


def test_the_expert_that_priced_a_request_is_corrected_by_its_own_prediction() -> None:
    pricer = two_templates()
    ask = Ask(text_bytes=2000, target=CHAT, prefixes=(OTHER,))
    cost = pricer.price(ask, OPEN)
    assert (cost.expert, cost.predicted) == (1, 500)
    nodes = pricer.experts.of(CHAT)
    assert nodes is not None
    expert, route = nodes[OTHER].output, pricer.overall.output
    assert expert is not None
    before, route_before = expert.level, route.level
    pricer.learn(ask, Usage(500, 500), cost.changed(predicted=400))
    assert expert.level > before  # its prediction was exceeded, though its value is not
    assert route.level <= route_before  # the route did not price the request


def test_a_raised_price_is_not_the_prediction_of_the_route() -> None:
    """A prefix without a certificate raises the reservation. The route itself has predicted less."""
    pricer = Pricer(entitlement(), Pricing())
    for number in range(60):
        teach(pricer, (2000 + number,), 10)
    for output in range(400, 409):
        teach(pricer, (SHORT,), output)
        teach(pricer, (OTHER,), 10, times=30)
    cost = pricer.price(Ask(text_bytes=2000, target=CHAT, prefixes=(SHORT,)), OPEN)
    assert cost.expert == 0
    assert cost.output_tokens >= 400
    assert cost.predicted == pricer.overall.output.value < 400
