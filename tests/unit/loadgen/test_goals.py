"""Goals of runs and regressions of comparisons: their texts, verdicts and exit statuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen import compare, goals, regressions, report
from loadgen.__main__ import main
from loadgen.conditions import GoalError
from loadgen.measures import METRICS, Kind, shown, written
from loadgen.records import TenantMeta
from loadgen.scenario import Slo
from loadgen.statistics import Estimate
from loadgen.summary import EVERYONE, WHOLE, summarise
from tests.unit.loadgen.test_report import busy, checked, compared, saved

TENANTS = [
    TenantMeta("gold", "guaranteed", Slo(ttft_ms=300.0)),
    TenantMeta("v1.2", "guaranteed"),
    TenantMeta("x"),
]


@pytest.mark.parametrize(
    ("text", "who", "bound"),
    [
        ("guaranteed.ttft.p99<=300ms", "guaranteed", 0.3),
        (" gold.e2e.mean < 1.5 s ", "gold", 1.5),
        ("a tenant.tpot.p50<=.5us", "a tenant", 5e-7),
        ("v1.2.gap.p99<=1e2ms", "v1.2", 0.1),
        ("all.goodput.share>=99.5%", "all", 0.995),
        ("all.goodput.rate>=25/s", "all", 25.0),
        ("all.tokens.rate>25", "all", 25.0),
        ("all.failed.count<=0", "all", 0.0),
    ],
)
def test_goals_are_read(text: str, who: str, bound: float) -> None:
    goal = goals.parse(text)
    assert (goal.text, goal.who, goal.bound) == (text, who, pytest.approx(bound))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gold.ttft.p99", "has no operator; write one of <=, >=, <, >"),
        ("gold.ttft.p99==1s", "has no operator"),
        ("gold.ttft.p99<=", "has no value"),
        ("ttft.p99<=1s", "has no tenant"),
        (".ttft.p99<=1s", "has no tenant"),
        ("gold.tttf.p99<=1s", "unknown metric 'tttf'; use one of ttft, "),
        ("gold.ttft.p98<=1s", "unknown statistic 'p98' of ttft; use one of p50, p90, p95, p99, mean"),
        ("gold.ttft.p99<=300", "has the value '300'; write a number with us or ms or s, such as 300ms"),
        ("gold.ttft.p99<=x", "has the value 'x'"),
        ("gold.served.share>=0.9", "write a number with %, such as 99%"),
        ("gold.failed.count<=1s", "write a number without a unit, such as 0"),
    ],
)
def test_a_goal_that_cannot_be_read_names_the_fix(text: str, told: str) -> None:
    with pytest.raises(GoalError) as raised:
        goals.parse(text)
    assert told in str(raised.value)
    assert repr(text) in str(raised.value)


def test_a_goal_is_for_a_tenant_each_of_a_tier_or_all() -> None:
    assert goals.tenants("", "gold", TENANTS) == ["gold"]
    assert goals.tenants("", "guaranteed", TENANTS) == ["gold", "v1.2"]
    assert goals.tenants("", "all", TENANTS) == [EVERYONE]
    assert goals.tenants("", "all", TENANTS[:1]) == ["gold"]
    with pytest.raises(
        GoalError, match=r"names 'spot'.*the tenants gold, v1.2, x, the tiers guaranteed, or 'all'"
    ):
        goals.tenants("t", "spot", TENANTS)


@pytest.mark.parametrize("who", ["x", "guaranteed"])
def test_goodput_needs_goals_in_the_scenario(who: str) -> None:
    goals.check([goals.parse("all.goodput.rate>1"), goals.parse("gold.goodput.rate>1")], TENANTS)
    with pytest.raises(GoalError, match="has no slo; add 'slo:"):
        goals.check([goals.parse(f"{who}.goodput.rate>1")], TENANTS)
    with pytest.raises(GoalError, match="the tenants have no slo"):
        goals.check([goals.parse("all.goodput.rate>1")], TENANTS[1:])


def test_every_metric_is_read_from_every_cell() -> None:
    cell = summarise(busy()).cell(EVERYONE, WHOLE)
    assert cell is not None
    for metric, statistics in METRICS.items():
        for name, number in statistics.items():
            assert (number.read(cell) is not None) == (metric != "goodput"), name


def result(
    text: str, value: float | None, low: float | None = None, high: float | None = None
) -> goals.GoalResult:
    measured = None if value is None else Estimate(value, low, high)
    goal = goals.parse(text)
    is_met = value is not None and value <= goal.bound
    return goals.GoalResult(text, "gold", Kind.TIME, goal.operator, goal.bound, measured, is_met)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ((0.2, 0.1, 0.3), "met"),
        ((0.2, 0.1, 0.4), "met; the interval includes the goal"),
        ((0.4, 0.35, 0.5), "missed"),
        ((0.4, 0.2, 0.5), "missed; the interval includes the goal"),
        ((0.4, None, None), "missed"),
        ((0.4, 0.35, None), "missed"),  # the unknown bound is above
        ((0.2, 0.1, None), "met; the interval includes the goal"),
        ((None, None, None), "missed"),
    ],
)
def test_a_verdict_says_whether_the_interval_includes_the_goal(
    measured: tuple[float | None, float | None, float | None], verdict: str
) -> None:
    assert result("gold.ttft.p99<=300ms", *measured).verdict == verdict


def test_goals_are_judged_over_the_whole_run_and_shown() -> None:
    made = busy()
    summary = summarise(made)
    asked = [goals.parse(text) for text in ("guaranteed.ttft.p50<=150ms", "spot.refused.share<10%")]
    judged = goals.judge(asked, summary, made.meta.tenants)
    assert [(each.tenant, each.is_met) for each in judged] == [("gold", True), ("spot", False)]
    told = report.text(made.meta, summary, judged)
    assert "guaranteed.ttft.p50<=150ms" in told
    assert "25 %" in told
    page = checked(report.html(made, summary, judged))
    assert "1 met, 1 missed." in page


def test_numbers_are_written_with_their_units() -> None:
    assert [written(0.5, kind) for kind in Kind] == ["500 ms", "0.5/s", "50 %", "0.5"]
    assert shown(Estimate(1.0, 0.5, None), Kind.TIME) == "1 s [500 ms to ?]"
    assert shown(Estimate(1.0), Kind.COUNT) == "1"
    assert shown(None, Kind.TIME) == "nothing measured"


@pytest.mark.parametrize(
    ("text", "who", "change", "is_relative"),
    [
        ("ttft.p99>+10%", "all", 0.1, True),
        ("gold.goodput.rate<-5%", "gold", -0.05, True),
        ("v1.2.ttft.p99>+50ms", "v1.2", 0.05, False),
        ("all.served.share<-1%", "all", -0.01, False),
        ("failed.count>+0", "all", 0.0, False),
    ],
)
def test_regressions_are_read(text: str, who: str, change: float, is_relative: bool) -> None:
    made = regressions.parse(text)
    assert (made.who, made.change, made.is_relative) == (who, pytest.approx(change), is_relative)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ttft>+10%", "has no statistic"),
        ("ttft.p99>10%", "write a change with its sign"),
        ("ttft.p99+10%", "has no operator"),
        ("ttft.p99>+10", "write a number with us or ms or s"),
        ("gold.x.p99>+10%", "unknown metric 'x'"),
    ],
)
def test_a_regression_that_cannot_be_read_names_the_fix(text: str, told: str) -> None:
    with pytest.raises(GoalError) as raised:
        regressions.parse(text)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("text", "before", "after", "written_", "verdict"),
    [
        ("ttft.p99>+10%", Estimate(1.0), Estimate(1.2), "+20.0 %", "failed"),
        ("ttft.p99>+10%", Estimate(1.0), Estimate(1.05), "+5.0 %", "passed"),
        ("ttft.p99>+50ms", Estimate(1.0), Estimate(0.9), "-100 ms", "passed"),
        (
            "ttft.p99>+10%",
            Estimate(1.0, 0.9, 1.3),
            Estimate(1.2, 1.1, 1.4),
            "+20.0 %",
            "failed; the intervals overlap",
        ),
        ("ttft.p99>+10%", Estimate(1.0, 0.9, 1.1), Estimate(1.5, 1.4, 1.6), "+50.0 %", "failed"),
        ("ttft.p99>+10%", None, Estimate(1.2), "-", "failed: nothing measured"),
        (
            "ttft.p99>+10%",
            Estimate(1.0, 0.9, None),
            Estimate(1.2, 1.1, 1.3),
            "+20.0 %",
            "failed; the intervals overlap",
        ),
        ("failed.count>+10%", Estimate(0.0), Estimate(2.0), "+ from 0", "failed"),
        ("failed.count>+10%", Estimate(0.0), Estimate(0.0), "+0.0 %", "passed"),
    ],
)
def test_a_change_is_judged(
    text: str, before: Estimate | None, after: Estimate | None, written_: str, verdict: str
) -> None:
    made = regressions.parse(text).result("all", "new", before, after)
    assert (made.written, made.verdict) == (written_, verdict)
    assert made.is_failed == verdict.startswith("failed")


def test_regressions_are_judged_for_each_label_and_shown() -> None:
    made = compared(busy("alone"), busy("ours", slow=2.0), busy("same"))
    judged = compare.judge([regressions.parse("guaranteed.ttft.p50>+10%")], made)
    assert [(each.label, each.is_failed) for each in judged] == [("ours", True), ("same", False)]
    assert "+100.0 %" in compare.text(made, judged)
    assert "Regressions" in checked(compare.html(made, judged))


@pytest.mark.parametrize(("limit", "status"), [("+10%", 1), ("+150%", 0)])
def test_a_regression_decides_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, status: int
) -> None:
    one, two = saved(tmp_path / "one", busy("alone")), saved(tmp_path / "two", busy("ours", slow=2.0))
    assert main(["compare", str(one), str(two), "--fail-if", f"gold.ttft.p50>{limit}"]) == status
    assert "+100.0 %" in capsys.readouterr().out


def test_a_regression_needs_two_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = saved(tmp_path / "one", busy("alone"))
    assert main(["compare", str(one), "--fail-if", "ttft.p50>+1%"]) == 2
    assert "give runs of two labels" in capsys.readouterr().err
