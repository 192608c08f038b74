"""Learned costs by route and model. They are bounded for any requests of a tenant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpool.pricing.experts import IDLE_OBSERVATIONS
from tokenpool.pricing.learned_costs import MOST_TARGETS, LearnedByTarget


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
