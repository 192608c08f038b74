"""One metrics page of several: what adds up, and what does not fall when a worker is started again."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sidecar.workers.metrics_page import ADDED, LEAST, Totals, merged, parsed

ONE = """\
# HELP tokenpool_requests_total Requests by outcome: the ending.
# TYPE tokenpool_requests_total counter
tokenpool_requests_total{entitlement="a b",outcome="finished"} 3.0
tokenpool_requests_total{entitlement="c",outcome="finished"} 1.0
# HELP tokenpool_time Seconds.
# TYPE tokenpool_time histogram
tokenpool_time_bucket{le="1.0"} 1.0
tokenpool_time_bucket{le="+Inf"} 2.0
tokenpool_time_sum 2.5
tokenpool_time_count 2.0
# HELP tokenpool_connections Client connections open.
# TYPE tokenpool_connections gauge
tokenpool_connections 4.0
# HELP tokenpool_engine_up Whether the engine answers.
# TYPE tokenpool_engine_up gauge
tokenpool_engine_up 1.0
# HELP tokenpool_store_up Whether the lease store answers.
# TYPE tokenpool_store_up gauge
tokenpool_store_up 1.0
"""
OTHER = (
    ONE.replace("} 3.0", "} 4.0")
    .replace("connections 4.0", "connections 1.0")
    .replace("up 1.0", "up 0.0")
    .replace('"c"', '"d"')
)


def values(text: str) -> dict[str, float]:
    return {key: value for family in parsed(text).values() for key, value in family.series.items()}


def test_one_page_is_shown_as_it_is() -> None:
    assert merged([parsed(ONE)]) == ONE


def test_counts_add_up_and_gauges_follow_their_meaning() -> None:
    made = values(merged([parsed(ONE), parsed(OTHER)]))

    assert made['tokenpool_requests_total{entitlement="a b",outcome="finished"}'] == 7
    assert made['tokenpool_requests_total{entitlement="d",outcome="finished"}'] == 1
    assert made['tokenpool_time_bucket{le="+Inf"}'] == 4
    assert made["tokenpool_time_sum"] == 5
    assert made["tokenpool_connections"] == 5
    assert made["tokenpool_engine_up"] == 1
    assert made["tokenpool_store_up"] == 0


def test_the_counts_of_an_ended_worker_stay_and_its_gauges_do_not() -> None:
    totals = Totals()
    totals.add(parsed(ONE))

    made = values(merged([parsed(OTHER), totals.page]))

    assert made['tokenpool_requests_total{entitlement="a b",outcome="finished"}'] == 7
    assert made["tokenpool_connections"] == 1
    assert values(merged([])) == {}


def test_a_page_of_totals_does_not_change_while_a_thread_reads_it() -> None:
    totals = Totals()
    totals.add(parsed(ONE))
    before = totals.page
    text = merged([before])

    totals.add(parsed(OTHER))

    assert merged([before]) == text


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans()), max_size=30))
def test_no_total_ever_falls(steps: list[tuple[int, int, bool]]) -> None:
    """Workers count, and some end between two pages."""
    totals, counts, shown = Totals(), [0.0] * 3, 0.0
    head = "# HELP n_total N.\n# TYPE n_total counter\n"
    for worker, more, ends in steps:
        counts[worker] += more
        pages = [parsed(f"{head}n_total {count}\n") for count in counts]
        now = values(merged([*pages, totals.page]))["n_total"]
        assert now >= shown
        shown = now
        if ends:
            totals.add(pages[worker])
            counts[worker] = 0.0


def test_a_label_may_have_any_character_but_a_line_feed() -> None:
    line = 'n_total{issuer="a\u2028b\x85c d"} 1.0\n'
    page = f"# TYPE n_total counter\n{line}"

    assert merged([parsed(page)]) == page


def test_lines_that_are_no_metrics_are_left_out() -> None:
    assert parsed("stray 1\n# EOF\n\nn 1.0\n# TYPE n gauge\nn one\nn\n")["n"].series == {}


def test_each_gauge_with_a_rule_is_a_gauge_of_a_sidecar() -> None:
    pages = Path(__file__).parents[4] / "docs" / "reference" / "metrics.md"
    gauges = set(re.findall(r"^\| `(\w+)` \| gauge", pages.read_text(), re.MULTILINE))

    ours = {name for name in ADDED | LEAST if not name.startswith("process_")}
    assert ours <= gauges
    assert not ADDED & LEAST
