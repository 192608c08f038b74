"""Times per output token, and requests against their tenants' goals."""

from __future__ import annotations

import pytest

from loadgen import report
from loadgen.records import Attempt, Outcome, TenantMeta
from loadgen.scenario import Slo
from loadgen.slo import time_per_token, verdict
from loadgen.summary import EVERYONE, WHOLE, first_token, summarise
from tests.support.loadgen_builders import attempt, run
from tests.unit.loadgen.test_report import checked


def test_the_time_per_token_is_from_the_first_to_the_last_token_by_the_engines_count() -> None:
    # Four tokens after the first, from 0.2 s to 1.0 s; the number of events does not matter.
    assert time_per_token(attempt(1.0, 0.2, tokens=5, gaps={300: 1})) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "last",
    [
        attempt(1.0, 0.2, tokens=1),
        attempt(1.0, None),  # not streamed
        attempt(1.0, 0.2, tokens=5, is_counted=False),
    ],
)
def test_some_requests_have_no_time_per_token(last: Attempt) -> None:
    assert time_per_token(last) is None


def test_an_event_counts_as_a_token_only_for_an_upper_bound() -> None:
    last = attempt(1.0, 0.2, tokens=5, is_counted=False)
    assert time_per_token(last, counted=False) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("last", "met"),
    [
        (attempt(1.0, 0.2), True),
        (attempt(1.0, 0.4), False),  # the first token is late
        (attempt(1.0, 0.2, lasts_s=2.5), False),  # slow after the first token: 575 ms per token
        (attempt(1.0, 0.2, lasts_s=2.5, tokens=50), True),
        (attempt(1.0, 0.2, lasts_s=3.5, tokens=50), False),  # the end is late
        (attempt(1.0, None, lasts_s=0.2), True),  # not streamed: the first token arrives with the last
        (attempt(1.0, None, lasts_s=0.0, outcome=Outcome.SHED, tokens=0), False),
        (attempt(1.0, None, lasts_s=0.1, outcome=Outcome.BROKEN, tokens=0), False),
        (attempt(1.0, None, lasts_s=0.1, outcome=Outcome.CUT, tokens=0), None),  # not late when it was cut
        (attempt(1.0, None, lasts_s=0.5, outcome=Outcome.CUT, tokens=0), False),
        (attempt(1.0, 0.2, lasts_s=0.5, outcome=Outcome.CUT), None),
        (attempt(1.0, 0.4, lasts_s=0.5, outcome=Outcome.CUT), False),
    ],
)
def test_a_request_meets_its_goals_or_not(last: Attempt, met: bool | None) -> None:
    goals = Slo(ttft_ms=300.0, tpot_ms=250.0, e2e_ms=3000.0)
    assert verdict(last, first_token(last, drain_s=5.0), goals) is met


def test_a_goal_that_is_not_given_is_met() -> None:
    last = attempt(1.0, 9.0, lasts_s=90.0)
    assert verdict(last, first_token(last, 5.0), Slo(tpot_ms=30_000.0)) is True


def test_goodput_counts_requests_within_the_goals_of_their_tenants() -> None:
    made = run(
        *(attempt(float(at), 0.1 if at < 6 else 0.5) for at in range(8)),
        attempt(8.0, None, lasts_s=0.0, outcome=Outcome.SHED, tokens=0),
        attempt(9.9, None, lasts_s=0.0, outcome=Outcome.CUT, tokens=0),
        attempt(1.0, 0.1, tenant="spot"),
        tenants=[TenantMeta("gold", slo=Slo(ttft_ms=300.0)), TenantMeta("spot")],
    )
    summary = summarise(made)
    for name in ("gold", EVERYONE):
        cell = summary.cell(name, WHOLE)
        assert cell is not None
        assert cell.goodput is not None
        assert (cell.goodput.met, cell.goodput.missed) == (6, 3)
        assert cell.goodput.per_s.value == pytest.approx(0.6)
        assert cell.goodput.share is not None
        assert cell.goodput.share.value == pytest.approx(6 / 9)
    told = report.text(made.meta, summary)
    assert "goodput/s" in told
    assert "66.67 %" in told
    page = checked(report.html(made, summary))
    assert "<h2>Goodput</h2>" in page
    spot = summary.cell("spot", WHOLE)
    assert spot is not None
    assert spot.goodput is None


def test_refusals_and_failures_are_counted_by_reason() -> None:
    made = run(
        attempt(1.0, None, outcome=Outcome.SHED, reason="concurrency", is_last=False),
        attempt(1.0, None, outcome=Outcome.UNAVAILABLE, reason="overloaded", attempt=2),
        attempt(2.0, None, outcome=Outcome.BROKEN, reason="stream ended early"),
        attempt(3.0, None, outcome=Outcome.CUT),
    )
    cell = summarise(made).cells[0]
    assert cell.refused_by == {"overloaded": 1}
    assert cell.failed_by == {"broken: stream ended early": 1, "cut": 1}
    assert (cell.refused, cell.failed) == (1, 2)


def test_columns_without_a_number_and_tables_without_goals_are_left_out() -> None:
    made = run(attempt(1.0, None))
    told = report.text(made.meta, summarise(made))
    page = checked(report.html(made, summarise(made)))
    for absent in ("TPOT", "goodput", "Goodput"):
        assert absent not in told
        assert absent not in page


def test_an_open_interval_has_its_reason_in_the_report() -> None:
    made = run(
        *(attempt(float(at) / 10, 0.1 + at % 7 / 100) for at in range(99)), tenants=[TenantMeta("gold")]
    )
    for shown in (report.text(made.meta, summarise(made)), checked(report.html(made, summarise(made)))):
        assert "TTFT p99 has no upper bound. gold: the run counts as about" in shown
        assert "an upper bound of the P99 needs 368. Run longer" in shown
