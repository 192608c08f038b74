"""Learned costs by route and model, and by prefix. They are bounded for any requests of a tenant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpool.pricing.learned_costs import (
    IDLE_OBSERVATIONS,
    MOST_PREFIXES,
    MOST_TARGETS,
    LearnedByTarget,
    Prefixes,
)

SHORT, LONG, OTHER = 1001, 1002, 1003


def teach(learned_by_target: LearnedByTarget, model: str, output: int, times: int = 1) -> None:
    for _ in range(times):
        for learned in learned_by_target.learners_of(("chat", model)):
            learned.output.observe(output)


def output_of(learned_by_target: LearnedByTarget, model: str) -> int:
    return learned_by_target.of(("chat", model)).output.value


def test_targets_learn_separately_and_a_new_one_begins_with_the_overall_costs() -> None:
    known = LearnedByTarget(0.9)
    teach(known, "a", 10, times=200)
    assert output_of(known, "b") == 10
    teach(known, "b", 500)
    assert output_of(known, "b") == 10  # one observation among the overall ones
    teach(known, "b", 500, times=200)
    assert (output_of(known, "a"), output_of(known, "b")) == (10, 500)
    assert output_of(known, "new") == known.overall.output.value == 500


def test_a_single_target_shares_the_overall_costs() -> None:
    known = LearnedByTarget(0.9)
    assert list(known) == []
    teach(known, "a", 10)
    assert known.of(("chat", "a")) is known.overall
    teach(known, "b", 10)
    assert {target for target, _ in known} == {("chat", "a"), ("chat", "b")}
    assert all(learned is not known.overall for _, learned in known)


def test_an_excess_target_is_priced_by_the_overall_costs_until_another_is_idle() -> None:
    known = LearnedByTarget(0.9)
    for model in range(MOST_TARGETS):
        teach(known, str(model), 10)
    teach(known, "late", 50, times=200)
    assert len(list(known)) == MOST_TARGETS
    assert known.of(("chat", "late")) is known.overall
    assert output_of(known, "late") == 50
    for model in range(1, MOST_TARGETS):
        teach(known, str(model), 10, times=IDLE_OBSERVATIONS // (MOST_TARGETS - 2))
    teach(known, "late", 50)
    targets = {model for (_, model), _ in known}
    assert len(targets) == MOST_TARGETS
    assert ("late" in targets, "0" in targets, "1" in targets) == (True, False, True)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 500)), max_size=300))
def test_no_choice_of_models_exceeds_the_most_targets(seen: list[tuple[int, int]]) -> None:
    known = LearnedByTarget(0.9)
    for model, output in seen:
        teach(known, str(model), output)
        assert len(list(known)) <= MOST_TARGETS


def test_another_quantile_counts_for_every_target() -> None:
    known = LearnedByTarget(0.9)
    for model in "ab":
        teach(known, model, 10, times=60)
        teach(known, model, 90, times=20)
    assert (output_of(known, "a"), known.overall.output.value) == (90, 90)
    known.set_quantile(0.5)
    assert (output_of(known, "a"), known.overall.output.value) == (10, 10)


def test_a_prefix_counts_once_the_engine_has_reported_it() -> None:
    known = Prefixes()
    known.observe((SHORT, LONG), 0)
    assert (known.expect((SHORT, LONG)), len(known)) == (0, 0)
    known.observe((SHORT, LONG), 1000)
    assert known.expect((SHORT, LONG)) == 1000
    assert known.expect(()) == known.expect((OTHER,)) == 0


def test_a_smaller_number_counts_at_once_and_a_larger_one_by_half() -> None:
    known = Prefixes()
    known.observe((SHORT,), 1000)
    known.observe((SHORT,), 2000)
    assert known.expect((SHORT,)) == 1500
    known.observe((SHORT,), 400)
    assert known.expect((SHORT,)) == 400
    known.observe((SHORT,), 0)
    assert (known.expect((SHORT,)), len(known)) == (0, 0)


def test_the_longest_known_prefix_counts() -> None:
    known = Prefixes()
    known.observe((SHORT,), 250)
    known.observe((SHORT, LONG), 250)
    known.observe((SHORT, LONG), 4250)
    assert known.expect((SHORT, LONG)) == 2250
    assert known.expect((SHORT, OTHER)) == 250


def test_an_evicted_prefix_lowers_the_estimates_of_shorter_ones() -> None:
    known = Prefixes()
    known.observe((SHORT, LONG), 1000)
    known.observe((SHORT, LONG), 100)
    assert known.expect((SHORT, OTHER)) == 100
    known.observe((SHORT, LONG), 0)
    assert len(known) == 0


def test_a_restarted_engine_has_no_cached_prefix() -> None:
    known = Prefixes()
    known.observe((SHORT,), 250)
    known.forget()
    assert known.expect((SHORT,)) == 0


@given(st.lists(st.tuples(st.lists(st.integers(0, 600), max_size=3), st.integers(0, 10**6)), max_size=400))
def test_prefixes_are_bounded_in_number_and_never_exceed_the_reports(
    seen: list[tuple[list[int], int]],
) -> None:
    known, most = Prefixes(), 0
    for numbers, cached in seen:
        known.observe(numbers, cached)
        most = max(most, cached)
        assert len(known) <= MOST_PREFIXES
        assert 0 <= known.expect(numbers) <= most


def test_the_least_recently_used_prefix_is_replaced() -> None:
    known = Prefixes()
    for number in range(MOST_PREFIXES):
        known.observe((number,), 16)
    known.observe((0,), 16)
    known.observe((OTHER,), 16)
    assert (known.expect((0,)), known.expect((1,)), len(known)) == (16, 0, MOST_PREFIXES)
