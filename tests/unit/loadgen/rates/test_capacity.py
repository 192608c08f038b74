"""The search for the capacity: its steps, its verdicts, and whole searches on a virtual clock."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from loadgen import goals
from loadgen.fields import ScenarioError
from loadgen.goals import GoalResult
from loadgen.measures import Kind
from loadgen.rates import outcome, report
from loadgen.rates.capacity import capacity, decided, verdict
from loadgen.rates.points import point
from loadgen.rates.search import Search, Verdict
from loadgen.rates.steps import Steps
from loadgen.run import Order
from loadgen.scenario import Constant, Fixed, Poisson, Scenario
from loadgen.statistics import Estimate
from tests.support.loadgen_builders import attempt, run, scenario, tenant
from tests.unit.loadgen.rates.virtual import VirtualEngine

TOKENS, STEP_S = 50, 0.02


def searched(truth: Callable[[float], Verdict], first: float = 1.0, most_runs: int = 3) -> Search:
    """A whole search against a server that meets the goals as ``truth`` says."""
    search = Search(first, 0.05, most_runs)
    for _ in range(100):
        rate = search.next_rate()
        if rate is None:
            return search
        search.note(rate, truth(rate))
    raise AssertionError("the search does not end")


def test_a_rate_without_a_reliable_run_is_repeated_and_bounds_the_search() -> None:
    search = searched(lambda rate: Verdict.UNRELIABLE if rate > 5 else Verdict.MET)
    assert search.met is not None
    assert search.met <= 5 < search.above
    assert search.runs[search.above] == 3
    assert search.missed is None


def test_a_run_in_which_the_generator_failed_is_left_out_if_another_did_not(tmp_path: Path) -> None:
    engine = VirtualEngine(8, complaints_from=0.0)
    steps = Steps(Order(world(60.0), ["http://a"], tmp_path, "test"), engine.perform, engine.clock)
    first = steps.step(2.0)
    engine.complaints_from = math.inf
    second = steps.step(2.0)
    assert first is not None
    assert second is not None
    assert (first.is_reliable, second.is_reliable, second.runs) == (False, True, 1)


def met_until(limit: float) -> Callable[[float], Verdict]:
    return lambda rate: Verdict.MET if rate <= limit else Verdict.MISSED


@pytest.mark.parametrize("limit", [0.003, 0.3, 1.0, 7.7, 900.0])
def test_the_search_encloses_the_capacity_by_the_resolution(limit: float) -> None:
    search = searched(met_until(limit))
    assert search.met is not None
    assert search.met <= limit < search.above <= search.met * 1.05 * (1 + 1e-6)
    assert search.missed == search.above
    assert set(search.runs.values()) == {1}
    assert len(search.runs) <= 2 * abs(math.log2(limit)) + 8


def test_an_unclear_rate_is_repeated_and_then_left_undecided() -> None:
    def truth(rate: float) -> Verdict:
        return Verdict.LIKELY_MET if 5 < rate < 6 else met_until(5)(rate)

    search = searched(truth)
    unclear = [rate for rate in search.runs if 5 < rate < 6]
    assert unclear
    assert {search.runs[rate] for rate in unclear} == {3}
    assert {n for rate, n in search.runs.items() if rate not in unclear} == {1}
    assert search.met is not None
    assert search.met <= 5 < search.above < 6 < (search.missed or 0)
    assert search.above <= search.met * 1.05 * (1 + 1e-6)
    assert 5 < (search.likely or 0) < 6


def test_a_repeated_rate_that_becomes_clear_is_not_repeated_again() -> None:
    search = Search(4.0, 0.05, 5)
    search.note(4.0, Verdict.LIKELY_MISSED)
    assert search.next_rate() == 4.0
    search.note(4.0, Verdict.MET)
    assert search.next_rate() == 8.0
    assert search.runs == {4.0: 2}


def test_few_requests_at_low_rates_do_not_stop_the_rise() -> None:
    def truth(rate: float) -> Verdict:
        return Verdict.LIKELY_MET if rate < 20 else met_until(50)(rate)

    search = searched(truth)
    assert search.met is not None
    assert search.met <= 50 < search.above <= search.met * 1.05 * (1 + 1e-6)
    assert {n for rate, n in search.runs.items() if rate < 20} == {1}


def test_where_no_rate_is_certain_the_measured_values_decide() -> None:
    search = searched(lambda rate: Verdict.LIKELY_MET if rate <= 5 else Verdict.LIKELY_MISSED)
    assert search.met is None
    assert search.likely is not None
    assert search.likely <= 5 < search.above <= search.likely * 1.05 * (1 + 1e-6)
    assert (search.runs[search.likely], search.missed) == (3, None)


def test_a_search_ends_also_if_all_rates_or_none_meet_the_goals() -> None:
    every, none = searched(met_until(math.inf)), searched(met_until(0.0))
    assert (every.met, every.above) == (2.0**20, math.inf)
    assert (none.met, none.missed) == (None, 2.0**-10)


@pytest.mark.parametrize(
    ("operator", "measured", "expected"),
    [
        ("<=", Estimate(0.2, 0.1, 0.29), Verdict.MET),
        ("<=", Estimate(0.2, 0.1, 0.31), Verdict.LIKELY_MET),
        ("<=", Estimate(0.4, 0.31, None, "few"), Verdict.MISSED),
        ("<=", Estimate(0.2, 0.1, None, "few"), Verdict.LIKELY_MET),
        ("<=", Estimate(0.31, 0.1, 0.4), Verdict.LIKELY_MISSED),
        ("<=", Estimate(0.2, None, 0.29), Verdict.MET),
        (">=", Estimate(0.4, 0.31, 0.5), Verdict.MET),
        (">=", Estimate(0.2, 0.1, 0.29), Verdict.MISSED),
        (">=", Estimate(0.29, 0.2, 0.4), Verdict.LIKELY_MISSED),
        ("<=", Estimate(0.2), Verdict.MET),
        ("<=", Estimate(0.4), Verdict.MISSED),
        ("<=", Estimate(0.2, reason="too few"), Verdict.LIKELY_MET),
        ("<=", None, Verdict.MISSED),
    ],
)
def test_a_goal_is_decided_by_its_interval(
    operator: str, measured: Estimate | None, expected: Verdict
) -> None:
    is_met = measured is not None and (measured.value <= 0.3) is (operator == "<=")
    assert decided(GoalResult("g", "gold", Kind.TIME, operator, 0.3, measured, is_met)) is expected


def test_a_rate_that_is_not_kept_up_with_is_missed_and_one_that_the_generator_spoilt_says_nothing() -> None:
    good = point(1.0, [run(*(attempt(at / 10) for at in range(60)), phases=[])])
    fine = GoalResult("g", "gold", Kind.COUNT, "<=", 1, Estimate(0.0), True)
    assert verdict(good, [fine]) is Verdict.MET
    assert verdict(msgspec.structs.replace(good, obstacle="60% not served"), [fine]) is Verdict.MISSED
    spoilt = msgspec.structs.replace(good, obstacle="x", is_reliable=False)
    assert verdict(spoilt, [fine]) is Verdict.UNRELIABLE


def world(duration_s: float = 120.0) -> Scenario:
    return scenario(
        tenant(process=Poisson(1.0), output=Fixed(TOKENS)), duration_s=duration_s, warm_up_s=duration_s / 10
    )


def found(
    tmp_path: Path, engine: VirtualEngine, made: Scenario, *asked: str, **options: object
) -> tuple[Steps, outcome.Result]:
    steps = Steps(Order(made, ["http://a"], tmp_path, "test"), engine.perform, engine.clock)
    limits = Namespace(
        **{"resolution": 0.1, "most_runs": 2, "most_time": 1e9, "first": None, **options}
    )  # fmt: skip
    return steps, capacity(steps, [goals.parse(text) for text in asked], limits, lambda line: None)


@pytest.mark.parametrize("slots", [4, 12])
def test_the_capacity_of_even_arrivals_is_that_of_the_slots(tmp_path: Path, slots: int) -> None:
    made = scenario(
        tenant(process=Constant(1.0), output=Fixed(TOKENS)), duration_s=60.0, warm_up_s=6.0
    )  # fmt: skip
    _, result = found(tmp_path, VirtualEngine(slots), made, "gold.ttft.p95<=100ms", resolution=0.05)
    most = slots / (TOKENS * STEP_S)
    # The measured values are equal in each period, so few of them are independent.
    met, not_met = result.numbers["likely_met_at"], result.numbers["not_met_at"]
    assert isinstance(met, float)
    assert isinstance(not_met, float)
    assert 0.9 * most < met <= most * 1.02
    assert met < not_met <= met * 1.05 * (1 + 1e-6)
    assert result.statements[0].startswith("Capacity: ")


def test_a_search_with_random_arrivals_repeats_states_and_writes(tmp_path: Path) -> None:
    steps, result = found(
        tmp_path, VirtualEngine(8), world(), "gold.ttft.p50<=200ms", "all.served.share>=90%"
    )
    met = result.numbers["met_at"]
    assert isinstance(met, float)
    assert 4.0 < met < 8.0
    assert max(len(runs) for runs in steps.runs.values()) == 2
    seeds = [one.meta.seed for runs in steps.runs.values() for one in runs]
    assert sorted(seeds) == list(range(len(seeds)))
    told = outcome.told(steps, result)
    assert "the highest rate that meets all goals at 95 % confidence" in told
    assert "Each rate is judged alone." in told
    assert "gold.ttft.p50<=200ms" in told
    data = json.loads((tmp_path / report.DATA).read_bytes())
    assert (data["kind"], data["result"]["met_at"]) == ("capacity", met)
    assert "<h2>Goals</h2>" in (tmp_path / report.REPORT).read_text()


def test_a_search_is_bounded_in_time(tmp_path: Path) -> None:
    engine = VirtualEngine(8)
    steps, result = found(tmp_path, engine, world(), "gold.ttft.p50<=200ms", most_time=500.0)
    assert engine.seconds <= 500.0
    assert 2 <= steps.count <= 4
    assert result.numbers["is_out_of_time"] is True
    assert "The time limit ended the search early." in result.statements[-1]
    with pytest.raises(
        ScenarioError, match="takes 120 s, which is more than --most-time; give a longer time"
    ):
        found(tmp_path, engine, world(), "gold.ttft.p50<=200ms", most_time=100.0)


def test_a_generator_that_does_not_keep_up_bounds_the_search(tmp_path: Path) -> None:
    engine = VirtualEngine(1000, complaints_from=6.0)
    _, result = found(tmp_path, engine, world(), "gold.ttft.p50<=200ms", resolution=0.5)
    assert isinstance(result.numbers["met_at"], float)
    assert "so higher rates say nothing about the server. Use more --processes." in result.statements[1]


def test_a_goal_that_no_rate_meets_is_said(tmp_path: Path) -> None:
    def cut(number: int) -> bool:
        return number == 4

    engine = VirtualEngine(8, interrupts=cut)
    steps, result = found(tmp_path, engine, world(), "gold.ttft.p50<=1ms")
    assert result.numbers["met_at"] is None
    assert result.statements[0] == "Capacity: none found; the goals are not met at 0.25 requests/s."
    assert "At 0.25 requests/s, gold.ttft.p50<=1ms of gold, measured 20 ms" in result.statements[1]
    assert steps.is_interrupted
