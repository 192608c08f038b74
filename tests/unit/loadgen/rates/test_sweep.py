"""Sweeps on a virtual clock: their points, their knee, the rates that they choose, and their files."""

from __future__ import annotations

import csv
import json
import math
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.fields import ScenarioError
from loadgen.plots import Frame, Series, curves
from loadgen.rates import knee, outcome, report
from loadgen.rates.ladder import next_rate
from loadgen.rates.options import count, positive, rates, share
from loadgen.rates.points import Point, point, pooled
from loadgen.rates.steps import Steps, own_rate
from loadgen.rates.sweep import sweep
from loadgen.records import Attempt, LoopDelay, Outcome, Sample, Stall
from loadgen.run import Order
from loadgen.scenario import Closed, Constant, Fixed, Poisson, Process, Replay, Scenario, Trace, Traced
from loadgen.statistics import Estimate
from loadgen.summary import WHOLE
from tests.support.loadgen_builders import attempt, run, scenario, tenant
from tests.unit.loadgen.rates.virtual import VirtualEngine

TOKENS = 50
STEP_S = 0.02


def capacity_of(slots: int) -> float:
    """Requests per second: a request holds a slot for one step per token."""
    return slots / (TOKENS * STEP_S)


def world(process: Process, duration_s: float = 60.0) -> Scenario:
    return scenario(
        tenant(process=process, output=Fixed(TOKENS)), duration_s=duration_s, warm_up_s=duration_s / 10
    )


def swept(
    tmp_path: Path,
    engine: VirtualEngine,
    made: Scenario,
    chosen: list[float] | None = None,
    **options: object,
) -> tuple[Steps, outcome.Result]:
    steps = Steps(Order(made, ["http://a"], tmp_path, "test"), engine.perform, engine.clock)
    asked = Namespace(**{"rates": chosen, "resolution": 0.2, "most_runs": 14, **options})
    return steps, sweep(steps, asked, lambda line: None)


@pytest.mark.parametrize("slots", [4, 16])
def test_the_knee_of_even_arrivals_is_the_last_rate_that_the_slots_can_serve(
    tmp_path: Path, slots: int
) -> None:
    most = capacity_of(slots)
    chosen = [most * load for load in (0.25, 0.5, 0.75, 0.97, 1.1, 1.3)]
    steps, _ = swept(tmp_path, VirtualEngine(slots), world(Constant(1.0)), chosen)
    found = knee.find(list(steps.points.values()))
    assert found.at == pytest.approx(0.97 * most)
    assert found.keeps_up_to == pytest.approx(0.97 * most)
    assert found.fails_at == pytest.approx(1.1 * most)
    full = steps.points[chosen[-1]]
    assert full.served_per_s == pytest.approx(most, rel=0.03)


def power(slots: int, load: float) -> float:
    """The power of a queue with random arrivals and equal service times of 1, by Erlang's formula.

    The wait is half of that with exponential service times, which is a good approximation for several slots.
    """
    offered = slots * load
    waiting = offered**slots / math.factorial(slots) / (1 - load)
    none = sum(offered**k / math.factorial(k) for k in range(slots))
    wait = waiting / (none + waiting) / (2 * slots * (1 - load))
    return load / (1 + wait)


@pytest.mark.parametrize("slots", [4, 12])
def test_a_sweep_that_chooses_its_rates_finds_the_knee_that_the_slots_predict(
    tmp_path: Path, slots: int
) -> None:
    steps, result = swept(tmp_path, VirtualEngine(slots), world(Poisson(1.0), 150.0))
    most = capacity_of(slots)
    found = knee.find(list(steps.points.values()))
    assert found.at is not None
    assert found.keeps_up_to is not None
    assert found.fails_at is not None
    best = max(power(slots, load / 100) for load in range(1, 100))
    assert power(slots, steps.points[found.at].due_per_s / most) > 0.9 * best
    assert 0.75 * most < found.keeps_up_to < found.fails_at < 1.3 * most
    assert steps.count <= 14
    assert result.marks == [("knee", found.at)]


def test_each_run_has_its_own_seed_folder_and_rate_of_all_tenants(tmp_path: Path) -> None:
    made = scenario(tenant(process=Constant(3.0)), tenant("spot", Constant(1.0)), duration_s=20.0, seed=7)
    steps, _ = swept(tmp_path, VirtualEngine(16), made, [2.0, 8.0])
    (low,), (high,) = steps.runs[2.0], steps.runs[8.0]
    assert [low.meta.seed, high.meta.seed] == [7, 8]
    assert [Path(one.folder).name for one in (low, high)] == ["rate-2-run1", "rate-8-run1"]
    counts = [sum(a.tenant == name for a in high.attempts) for name in ("gold", "spot")]
    assert counts == pytest.approx([120, 40], abs=1)


def test_a_scenario_without_a_rate_cannot_be_swept() -> None:
    with pytest.raises(
        ScenarioError, match="test has no tenant whose requests have a rate, so it cannot run"
    ):
        own_rate(scenario(tenant(process=Closed(3, 0.0))))


def at(rate: float, power: float = 1.0, obstacle: str = "") -> Point:
    """A point with this power."""
    made = point(rate, [run(attempt(), phases=[])])
    return msgspec.structs.replace(
        made, power=Estimate(power, power * 0.99, power * 1.01), obstacle=obstacle
    )  # fmt: skip


def test_the_knee_is_the_rate_with_the_most_power_among_those_that_are_kept_up_with() -> None:
    found = knee.find([at(4, 2.0), at(1), at(8, 9.0, "60% not served"), at(2, 1.995), at(16, 9.0)])
    assert found == knee.Knee(4, 2, 4, 4, 8, "60% not served", False)
    assert knee.told(found) == [
        "The knee is at 4 requests/s: there, served requests per second / mean latency is largest.",
        "From 2 requests/s to 4 requests/s, this number differs by no more than chance.",
        "The server keeps up with 4 requests/s, and not with 8 requests/s (60% not served).",
    ]


def test_a_curve_may_have_no_knee() -> None:
    rising = knee.find([at(1), at(2, 2.0)])
    assert rising.is_open
    assert knee.told(rising) == [
        "The curve has no knee up to 2 requests/s, its highest rate. Give higher --rates."
    ]
    none = knee.find([at(2, 1.0, "60% not served"), at(4, 1.0, "90% not served")])
    assert (none.at, none.fails_at) == (None, 2)
    assert knee.told(none) == [
        "The knee is below the lowest rate, 2 requests/s (60% not served). Give lower --rates."
    ]


def spoilt(rate: float) -> Point:
    """A point whose generator did not keep up."""
    return msgspec.structs.replace(at(rate, 1.0, "the generator did not keep up"), is_reliable=False)


def test_an_unreliable_run_is_left_out_unless_it_is_the_highest() -> None:
    among = knee.find([at(1), spoilt(2), at(4, 2.0), at(8, 1.0, "60% not served")])
    assert (among.at, among.fails_at) == (4, 8)
    highest = knee.find([at(1), at(2, 2.0), spoilt(4), spoilt(8)])
    assert (highest.at, highest.fails_at, highest.fails_by) == (2, 4, "the generator did not keep up")
    assert next_rate([at(1, 2.0), spoilt(2), at(4, 1.0, "x")], 1.0, 0.2) is None  # 2 is between 1 and 4


def test_a_knee_of_short_runs_has_no_interval() -> None:
    short = msgspec.structs.replace(at(1), power=Estimate(0.5))
    found = knee.find([short, at(2, 2.0), at(4, 1.0, "x")])
    assert (found.at, found.low, found.high) == (2, None, None)
    assert "The runs are too short to say how much of this is chance." in knee.told(found)[1]


def test_chosen_rates_double_halve_and_then_close_the_gaps_beside_the_knee() -> None:
    assert next_rate([], 3.0, 0.2) == 3.0
    assert next_rate([at(3)], 3.0, 0.2) == 6.0
    assert next_rate([at(3, 1.0, "x")], 3.0, 0.2) == 1.5
    assert next_rate([at(4, 2.0), at(16, 1.0, "x")], 4.0, 0.2) == pytest.approx(8.0)
    # The knee is at 4: the gap below it is wider than that above.
    assert next_rate([at(1), at(4, 2.0), at(8, 1.0, "x")], 4.0, 0.2) == pytest.approx(2.0)
    assert next_rate([at(3.5), at(4, 2.0), at(4.5, 1.0), at(5, 1.0, "x")], 4.0, 0.2) is None


def test_a_backlog_that_grows_is_seen_and_a_full_server_is_not_one(tmp_path: Path) -> None:
    most = capacity_of(8)
    cold = scenario(tenant(process=Poisson(1.0), output=Fixed(TOKENS)), duration_s=60.0)  # without warm-up
    steps, _ = swept(tmp_path, VirtualEngine(8), cold, [0.8 * most, 1.3 * most])
    good, bad = steps.points.values()
    assert good.keeps_up
    assert bad.obstacle.startswith("requests in flight grew by ")
    assert bad.growth == pytest.approx(0.23, abs=0.06)


@pytest.mark.parametrize(
    ("attempts", "complaints", "obstacle"),
    [
        (
            [attempt(at / 10, outcome=Outcome.SHED, reason="queue_full") for at in range(50)],
            [],
            "100% not served, most often: queue_full",
        ),
        ([attempt(at / 10, outcome=Outcome.CANCELLED) for at in range(90)], [], ""),
        ([attempt()], ["could not keep up"], "the generator did not keep up"),
        ([], [], "no request was due"),
    ],
)
def test_a_point_names_the_reason_why_it_was_not_kept_up_with(
    attempts: list[Attempt], complaints: list[str], obstacle: str
) -> None:
    made = point(5.0, [run(*attempts, phases=[], complaints=complaints)])
    assert (made.obstacle, made.keeps_up) == (obstacle, not obstacle)
    assert made.is_reliable is not bool(complaints)


def test_runs_of_one_rate_are_pooled_by_their_measured_times() -> None:
    measured: dict[str, Any] = {"warm_up_s": 2.0, "cool_down_s": 2.0}
    stalls, loop = [Stall(1.0, 0.05), Stall(3.0, 0.04)], LoopDelay(WHOLE, 0.001, 0.002, 0.04)
    one = run(attempt(0.5, is_measured=False), attempt(3.0), loop=[loop], stalls=stalls, **measured)
    two = run(attempt(4.0), attempt(9.5), stalls=stalls, waited=0.2, ran=0.1, **measured)
    made = pooled([one, two])
    assert made.meta.stalls == [Stall(1.0, 0.04), Stall(7.0, 0.04)]
    assert (made.meta.loop, made.meta.waited, made.meta.ran) == ([loop], 0.2, 0.1)
    assert [(a.request, a.intended_s, a.end_s) for a in made.attempts] == [
        ("0:3.0", 1.0, 2.0), ("1:4.0", 8.0, 9.0),
    ]  # fmt: skip
    assert (made.meta.duration_s, made.meta.warm_up_s, made.meta.phases) == (12.0, 0.0, [])
    assert [a.first_s for a in made.attempts] == [pytest.approx(1.1), pytest.approx(8.1)]


def simulated(at_s: float, late_s: float) -> Sample:
    return Sample(at_s, "http://e", "engine", engine={"steps": at_s, "step_delay_s": late_s, "lost_s": 0.0})


def test_a_simulator_that_does_not_keep_up_is_told_of_each_run() -> None:
    """Its counters grow from run to run, also by runs of other rates in between."""
    one = run(attempt(), samples=[simulated(0.0, 0.0), simulated(10.0, 0.001)])
    two = run(attempt(), samples=[simulated(20.0, 9.0), simulated(30.0, 9.001)])
    late = run(attempt(), samples=[simulated(20.0, 9.0), simulated(30.0, 10.0)])
    assert not any("simulator" in told for told in point(1.0, [one, two]).summary.complaints)
    (found,) = (told for told in point(1.0, [one, late]).summary.complaints if "simulator" in told)
    assert "the tokens of a step of http://e in run 2 came 100 ms late on average" in found
    (found,) = (told for told in point(1.0, [late]).summary.complaints if "simulator" in told)
    assert "a step of http://e came" in found


def replayed(*at_s: float, **fields: Any) -> Scenario:
    who = tenant(process=Replay(), trace=Trace("t", tuple(Traced(at, 16, TOKENS) for at in at_s)))
    return scenario(who, **fields)


def test_a_trace_is_swept_at_its_true_rates_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    """Otherwise the idle time after the trace would hide that one slot cannot serve more than 1/s."""
    engine = VirtualEngine(1, STEP_S)
    made = replayed(*(at * 2.0 for at in range(60)), duration_s=120.0)
    steps, result = swept(tmp_path, engine, made, [0.5, 0.8, 2.0, 4.0])
    assert [one.due_per_s for one in steps.points.values()] == pytest.approx([0.5, 0.8, 2.0, 4.0], rel=0.02)
    assert [one.keeps_up for one in steps.points.values()] == [True, True, False, False]
    assert result.numbers["at"] == 0.8


def test_a_short_trace_has_its_own_rate() -> None:
    assert own_rate(replayed(*range(31), duration_s=120.0)) == pytest.approx(31 / 30)
    two = replayed(*range(31), duration_s=120.0)
    both = replace(two, tenants=(*two.tenants, tenant("spot", Poisson(2.0))))
    assert own_rate(both) == pytest.approx(31 / 30 + 2)


@pytest.mark.parametrize("made", [replayed(0.0, 0.0), replayed(*range(10), warm_up_s=9.5)])
def test_a_trace_that_is_too_short_for_a_rate_is_named(made: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"the trace of gold ends after .* at this rate, so nothing is"):
        own_rate(made)


def test_the_files_of_a_sweep_have_all_points_with_intervals(tmp_path: Path) -> None:
    made = scenario(
        tenant(process=Poisson(3.0), output=Fixed(TOKENS)), tenant("spot", Poisson(1.0)), duration_s=120.0
    )
    steps, result = swept(tmp_path, VirtualEngine(4), made, [1.0, 2.0, 30.0])
    told = outcome.told(steps, result)
    assert "The knee is at 2 requests/s" in told
    assert "no: requests in flight grew by" in told
    assert f"The report is {tmp_path / 'report.html'}" in told
    rows = list(csv.DictReader((tmp_path / report.TABLE).read_text().splitlines()))
    assert {(row["rate"], row["tenant"]) for row in rows} >= {("30.0", "spot"), ("1.0", "all tenants")}
    (rate,) = [r for r in rows if (r["rate"], r["tenant"], r["measure"]) == ("2.0", "gold", "tok/s")]
    assert 0 < float(rate["low"]) <= float(rate["value"]) <= float(rate["high"])
    data = json.loads((tmp_path / report.DATA).read_bytes())
    assert (data["kind"], data["result"]["at"], len(data["points"])) == ("sweep", 2.0, 3)
    page = (tmp_path / report.REPORT).read_text()
    assert "knee at 2.0 requests/s" in page
    assert "requests per second</text>" in page
    assert ">knee</li>" in page


def test_an_interrupted_run_is_left_out_and_said(tmp_path: Path) -> None:
    engine = VirtualEngine(4, interrupts=lambda run: run == 2)
    steps, result = swept(tmp_path, engine, world(Constant(1.0)), [1.0, 2.0, 3.0])
    assert (steps.is_interrupted, list(steps.points)) == (True, [1.0])
    assert "! Interrupted; the last run is not included." in outcome.told(steps, result)
    first = VirtualEngine(4, interrupts=lambda run: True)
    steps, result = swept(tmp_path / "none", first, world(Constant(1.0)), [1.0])
    assert outcome.told(steps, result) == "No run was completed."
    assert not (tmp_path / "none").exists()


def test_a_generator_that_does_not_keep_up_ends_the_rise(tmp_path: Path) -> None:
    engine = VirtualEngine(1000, complaints_from=3.0)
    steps, result = swept(tmp_path, engine, world(Constant(1.0)))
    assert max(steps.points) == pytest.approx(4.0)
    assert "and not with" in result.statements[-1]
    assert "(the generator did not keep up)" in result.statements[-1]
    assert "! At 4 requests/s: this run was late." in outcome.told(steps, result)


def test_rates_and_shares_are_read_from_options() -> None:
    assert rates("4,1,2.5,1") == [1.0, 2.5, 4.0]
    assert rates("auto") is None
    assert (share("5%"), share("0.2")) == (0.05, 0.2)
    assert count("12") == 12


@pytest.mark.parametrize(
    ("read", "text", "error"),
    [
        (rates, "1,x", "'1,x' is neither 'auto' nor numbers such as 1,2,4"),
        (rates, "1,0", "'1,0' has a rate that is not above 0"),
        (rates, "1,inf", "has a rate that is not above 0"),
        (rates, ",".join(map(str, range(1, 102))), "has 101 rates; give at most 100"),
        (share, "0", "'0' is not a share from 0.1% to 100%"),
        (share, "x%", "'x%' is not a share from 0.1% to 100%"),
        (count, "0", "'0' is not a whole number of at least 1"),
        (positive, "-1", "'-1' is not a number above 0"),
        (positive, "x", "'x' is not a number above 0"),
    ],
)
def test_wrong_options_are_named(read: Callable[[str], object], text: str, error: str) -> None:
    with pytest.raises(ArgumentTypeError) as raised:
        read(text)
    assert error in str(raised.value)


def test_an_interval_is_drawn_to_its_known_bounds() -> None:
    series = [Series("p99", [(1.0, 2.0), (2.0, 3.0)], ranges=[(1.0, 1.0, 4.0), (2.0, 2.5, None)])]
    drawn = curves("curve", series, Frame(2.0, axis="requests per second", unit="requests/s"), unit="s")
    (wide, *_) = drawn.split("</svg>")
    assert wide.count('class="point c0"') == 2
    (whiskers,) = re.findall(r'stroke-width="1" d="([^"]*)"', wide)
    assert whiskers.count("h8") == 3
    assert "p99: 3 s at 2 requests/s" in drawn
