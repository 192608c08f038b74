"""Summaries of attempts, and their tables, pages and comparisons."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadgen import compare, figures, report, words
from loadgen.__main__ import main
from loadgen.plots import log_ticks, nice_ticks
from loadgen.records import (
    META,
    REQUESTS,
    EntitlementSample,
    FaultResult,
    Lines,
    Outcome,
    Run,
    RunUnreadable,
    Sample,
    TenantMeta,
    load,
    save,
)
from loadgen.sampling import page_url, samples
from loadgen.statistics import Estimate
from loadgen.summary import EVERYONE, WHOLE, Cell, Percentiles, first_token, summarise
from tests.support.loadgen_builders import attempt, run

VOID = {"meta", "path", "rect", "circle", "br"}


class Strict(HTMLParser):
    """Fails for tags that do not match; keeps attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(page: str) -> str:
    """A page, after a check that its tags match and that it loads no other resource."""
    reader = Strict()
    reader.feed(page)
    assert reader.open == []
    assert not {name for name, _ in reader.attributes} & {"src", "href", "xlink:href", "srcset"}
    assert not re.search(r"url\(|@import|<script|<link", page)
    assert "nan" not in page.replace("tenan", "")
    return page


def busy(label: str = "tokenpool", slow: float = 1.0, **fields: object) -> Run:
    """A run of ten seconds with two tenants, of which one is sometimes shed."""
    made = []
    for tenth in range(100):
        at = tenth / 10
        made.append(attempt(at, slow * (0.1 + tenth / 1000), gaps={300: 4}))
        ended = Outcome.SHED if tenth % 4 == 0 else Outcome.SERVED
        ttft = None if ended is Outcome.SHED else 0.5
        tokens, reason = (0, "concurrency") if ended is Outcome.SHED else (5, "")
        made.append(attempt(at, ttft, tenant="spot", outcome=ended, tokens=tokens, reason=reason))
    shown = {"gold": EntitlementSample({"tokens_per_second": 100.0}, debt=0.5), "other": EntitlementSample()}
    seen = [
        Sample(at / 2, "http://c#pool", "coordinator", {"tokens_per_second": 200.0}, shown)
        for at in range(20)
    ] + [Sample(at / 2, "http://e", "engine", engine={"running": 2.0, "waiting": 1.0}) for at in range(20)]
    return run(*made, samples=seen, label=label, **fields)


def cell_of(made: Run, tenant: str = "gold", phase: str = WHOLE) -> Cell:
    cell = summarise(made).cell(tenant, phase)
    assert cell is not None
    return cell


def test_requests_are_counted_by_their_last_attempt() -> None:
    made = run(
        attempt(1.0, None, outcome=Outcome.SHED, is_last=False, tokens=0, reason="concurrency"),
        attempt(1.0, 0.5, attempt=2, sent_s=1.3),
        attempt(2.0, None, outcome=Outcome.SHED, tokens=0, reason="kv_tokens"),
    )
    cell = cell_of(made)
    assert (cell.requests, cell.attempts) == (2, 3)
    assert cell.outcomes == {Outcome.SERVED: 1, Outcome.SHED: 1}
    assert cell.reasons == {"concurrency": 1, "kv_tokens": 1}
    assert cell.ttft.p50 is not None
    assert cell.ttft.p50.value == pytest.approx(0.5)  # from the due time
    assert cell.ttft_sent.p50 is not None
    assert cell.ttft_sent.p50.value == pytest.approx(0.2)  # from the sending


def test_requests_belong_to_the_phase_in_which_they_were_due() -> None:
    made = run(attempt(1.0), attempt(4.9, 3.0), attempt(5.0, 0.2))
    alone, together = (cell_of(made, phase=phase) for phase in ("alone", "together"))
    assert (alone.requests, together.requests) == (2, 1)
    assert together.ttft.p99 is not None
    assert together.ttft.p99.value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("last", "counted"),
    [
        (attempt(1.0, 0.5), (0.5, False)),
        (attempt(1.0, None, lasts_s=2.0), (2.0, False)),  # not streamed
        (attempt(1.0, None, lasts_s=9.0, outcome=Outcome.TIMEOUT), (9.0, True)),
        (attempt(1.0, None, lasts_s=9.0, outcome=Outcome.CUT), (9.0, True)),
        (attempt(1.0, None, lasts_s=1.0, outcome=Outcome.CUT), None),  # cut before it waited long enough
        (attempt(1.0, 0.5, outcome=Outcome.PREEMPTED), (0.5, False)),
        (attempt(1.0, None, outcome=Outcome.SHED), None),
        (attempt(1.0, None, outcome=Outcome.BROKEN), None),
    ],
)
def test_a_request_without_a_token_counts_with_its_wait(
    last: object, counted: tuple[float, bool] | None
) -> None:
    assert first_token(last, drain_s=5.0) == (counted and (pytest.approx(counted[0]), counted[1]))  # type: ignore[arg-type]


def test_tokens_count_in_the_phase_of_their_arrival() -> None:
    # 50 tokens from 4 s to 6 s: half of them in each phase, which last 5 s each.
    made = run(attempt(3.0, 1.0, lasts_s=3.0, tokens=50, prompt_tokens=20))
    rates = [cell_of(made, phase=phase).output_tokens_per_s for phase in ("alone", "together")]
    assert [rate.value for rate in rates if rate] == pytest.approx([5.0, 5.0])
    totals = [cell_of(made, phase=phase).tokens_per_s for phase in ("alone", "together")]
    assert [rate.value for rate in totals if rate] == pytest.approx([9.0, 5.0])


def test_a_phase_that_was_not_reached_has_no_cell() -> None:
    summary = summarise(run(attempt(1.0), is_interrupted=True, ended_s=3.0))
    assert {cell.phase for cell in summary.cells} == {WHOLE, "alone"}
    assert summary.cells[0].seconds == 3.0


def test_all_tenants_together_have_a_cell() -> None:
    summary = summarise(busy())
    everyone = summary.cell(EVERYONE, WHOLE)
    assert everyone is not None
    assert (everyone.requests, everyone.ended(Outcome.SHED)) == (200, 25)
    assert summary.fairness == pytest.approx((500 + 375) ** 2 / (2 * (500**2 + 375**2)))


def test_a_run_without_requests_is_reported_too() -> None:
    made = run()
    checked(report.html(made, summarise(made)))
    assert "gold" in report.text(made.meta, summarise(made))


def test_the_page_needs_no_other_file_and_names_its_contents() -> None:
    made = busy(
        faults=[FaultResult(6.0, "docker stop <engine>", "done")], complaints=["could not keep up: late"]
    )
    page = checked(report.html(made, summarise(made)))
    for shown in ("gold (guaranteed)", "concurrency", "Limits", "Debt", "waiting", "capacity", "together",
                  "docker stop &lt;engine&gt; at 6.0 s", "This run could not keep up: late."):  # fmt: skip
        assert shown in page
    assert page.count('<svg class="wide"') == page.count('<svg class="narrow"') == 15


def test_names_cannot_break_the_page() -> None:
    made = run(attempt(1.0, tenant="<b>&"), tenants=[TenantMeta("<b>&", "<i>")])
    page = checked(report.html(made, summarise(made)))
    assert "<b>" not in page


def test_the_smaller_of_many_tenants_share_a_plot() -> None:
    tenants = [TenantMeta(f"t{index}") for index in range(30)]
    made = run(*(attempt(1.0, tenant=one.name) for one in tenants), tenants=tenants)
    page = checked(report.html(made, summarise(made)))
    assert "The 18 tenants with fewer requests, P99, per 0.5 s" in page
    assert "18 others" in page


def test_the_table_for_the_terminal_has_warnings_below() -> None:
    made = busy(is_interrupted=True, unread_states={"http://x": 3})
    told = report.text(made.meta, summarise(made))
    rows = [line.split() for line in told.splitlines()]
    assert rows[2][:7] == ["gold", "whole", "run", "100", "100", "0", "0"]
    assert "! Interrupted after 11 of 10 s." in told
    assert "! 3 reads of the state page http://x failed;" in told


def test_short_responses_are_a_warning_unless_the_model_may_end_them() -> None:
    tenants = [TenantMeta("gold"), TenantMeta("spot", ignores_eos=False)]
    attempts = [attempt(float(n), tenant=name, tokens=3) for n, name in enumerate(("gold", "spot", "spot"))]
    made = run(*attempts, tenants=tenants)
    told = report.text(made.meta, summarise(made)).splitlines()
    assert "! 1 responses were shorter than requested: the engine does not apply ignore_eos." in told
    assert "2 responses were shorter than requested, because the model ended them." in told
    # Without the engine's count, an event may have carried several tokens.
    events = run(attempt(tokens=3, is_counted=False), tenants=tenants)
    assert "were shorter" not in report.text(events.meta, summarise(events))


@pytest.mark.parametrize(
    ("processes", "words"),
    [(1, "the generator used 20%"), (3, "the busiest of 3 processes used 20% of a core")],
)
def test_the_use_of_cores_is_that_of_the_busiest_process(processes: int, words: str) -> None:
    made = busy(processes=processes)
    assert words in report.text(made.meta, summarise(made))
    assert ("busiest of 3" in report.html(made, summarise(made))) is (processes == 3)


def test_capacity_is_the_coordinators_or_the_sidecars_sum() -> None:
    sidecars = [Sample(0.2, f"http://s{i}", "sidecar", {"tokens_per_second": 100.0}) for i in range(3)]
    assert figures.capacity_points(sidecars) == [(0.5, 300.0)]
    led = [*sidecars, Sample(0.4, "http://c#p", "coordinator", {"tokens_per_second": 250.0})]
    assert figures.capacity_points(led) == [(0.5, 250.0)]


def test_a_capacity_without_a_known_bound_is_not_drawn() -> None:
    samples = [
        Sample(float(at), "http://s", "sidecar", {"tokens_per_second": rate})
        for at, rate in enumerate((1e9, 500.0))
    ]
    assert figures.capacity_points(samples) == [(1.5, 500.0)]


STATE = {
    "capacity": {"tokens_per_second": 900.0, "kv_tokens": None},
    "entitlements": {
        "gold": {"limit": {"tokens_per_second": 5}, "demand": {}, "in_use": None, "level": 1.5, "debt": 0}
    },
}


def test_pages_of_sidecars_coordinators_and_engines_are_read() -> None:
    gold = EntitlementSample({"tokens_per_second": 5.0}, {}, {}, 1.5, 0.0)
    sidecar = json.dumps({**STATE, "engine": {"running": 2, "kv_usage": None}}).encode()
    assert samples(sidecar, 1.0, "u") == [
        Sample(1.0, "u", "sidecar", {"tokens_per_second": 900.0}, {"gold": gold}, {"running": 2.0})
    ]
    coordinator = json.dumps({"pools": {"p": STATE, "unled": {"leads": False}}}).encode()
    assert samples(coordinator, 1.0, "u") == [
        Sample(1.0, "u#p", "coordinator", {"tokens_per_second": 900.0}, {"gold": gold})
    ]
    metrics = (
        b'# HELP x\nvllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3.0\nbad\n'
    )
    assert samples(metrics, 1.0, "u") == [Sample(1.0, "u", "engine", engine={"running": 5.0})]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"<html>", b'{"entitlements": 3}', b"\xff", b"vllm:num_requests_running x"]
)
def test_unknown_pages_give_no_samples(content: bytes) -> None:
    assert all(not sample.entitlements and not sample.engine for sample in samples(content, 1.0, "u"))


def test_the_url_of_a_server_means_its_state_page() -> None:
    assert page_url("http://h:1/") == page_url("http://h:1") == "http://h:1/debug/state"
    assert page_url("http://h:1/metrics") == "http://h:1/metrics"


def test_numbers_have_suitable_units() -> None:
    assert [words.seconds(s) for s in (0.00012, 0.0123, 0.5, 0.9999, 12.345, 250)] == [
        "0.12 ms", "12.3 ms", "500 ms", "1 s", "12.3 s", "250 s",
    ]  # fmt: skip
    assert [words.amount(n) for n in (0, 3.14159, 250, 9999, 12_345, 2.5e6)] == [
        "0", "3.14", "250", "9999", "12.3k", "2.5M",
    ]  # fmt: skip
    assert words.interval(Estimate(1.0, 0.5, None), rate=False) == "500 ms to ?"
    assert words.interval(None, rate=False) == words.interval(Estimate(1.0), rate=True) == ""


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert nice_ticks(10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.37)[-1] >= 0.37
    assert nice_ticks(0) == [0.0, 1.0]
    assert log_ticks(0.03, 0.7) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    assert len(log_ticks(0.1, 0.1)) >= 2
    assert len(log_ticks(1e-5, 1e3)) <= 10


def compared(*runs: Run) -> list[compare.Group]:
    return compare.groups(runs, [summarise(one) for one in runs])


def test_runs_are_compared_with_the_first_label() -> None:
    made = compare.rows(compared(busy("alone"), busy("ours", slow=2.0)))
    first, second = (row for row in made if (row.tenant, row.phase) == ("gold", WHOLE))
    assert (first.label, second.label, first.runs) == ("alone", "ours", 1)
    assert first.measures["TTFT p50"].ratio is None
    assert second.measures["TTFT p50"].ratio == pytest.approx(2.0)
    assert second.measures["e2e p50"].interval.low is not None
    assert second.measures["TTFT p50"].worst is None
    assert (first.served, first.refused) == (1.0, 0)


def test_runs_of_one_label_are_shown_by_median_and_worst() -> None:
    runs = [busy("ours", slow=slow, seed=seed) for seed, slow in enumerate((3.0, 1.0, 2.0))]
    row = next(row for row in compare.rows(compared(*runs)) if row.tenant == "gold")
    assert row.runs == 3
    number = row.measures["TTFT p50"]
    assert (number.median, number.worst) == (pytest.approx(2 * 0.149), pytest.approx(3 * 0.149))
    # Across three runs: the geometric mean of 1, 2 and 3, and 4.303 standard errors on a logarithmic scale.
    assert (number.interval.low, number.interval.high) == (
        pytest.approx(0.0687, rel=1e-2),
        pytest.approx(1.066, rel=1e-2),
    )
    rate = row.measures["tok/s"]
    assert rate.worst is not None
    assert rate.worst <= rate.median


def test_a_comparison_is_shown_as_text_and_as_a_page() -> None:
    made = compared(busy("alone"), busy("ours", slow=2.0), busy("ours", slow=3.0, seed=2))
    told = compare.text(made)
    assert "worst" in told
    assert "x)" in told
    page = checked(compare.html(made))
    assert "alone / ours" in page
    assert "seeds 1, 2" in page


def saved(folder: Path, made: Run) -> Path:
    folder.mkdir()
    lines = Lines(folder / REQUESTS)
    for one in made.attempts:
        lines.write(one)
    lines.close()
    save(folder / META, made.meta)
    return folder


def test_folders_are_compared_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = saved(tmp_path / "one", busy("alone")), saved(tmp_path / "two", busy("ours", slow=2.0))
    assert load(one).attempts == busy("alone").attempts
    assert main(["compare", str(one), str(two), "--out", str(tmp_path / "page.html")]) == 0
    assert "2.00x" in capsys.readouterr().out
    checked((tmp_path / "page.html").read_text())


def test_a_folder_without_a_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "has no run" in capsys.readouterr().err
    (tmp_path / META).write_text("{}")
    with pytest.raises(RunUnreadable, match="cannot be read"):
        load(tmp_path)


def test_cells_without_observations_are_dashes() -> None:
    nothing = Percentiles()
    cell = Cell(
        tenant="a", phase=WHOLE, seconds=1.0, requests=0, attempts=0, outcomes={}, reasons={}, refused_by={},
        failed_by={}, bounds=0, served_share=None, refused_share=None, failed_share=None, short=0,
        ttft=nothing, ttft_sent=nothing, e2e=nothing, tpot=nothing,
        uncounted=0, gap_p50_s=None, gap_p99_s=None, output_tokens_per_s=None, tokens_per_s=None,
        goodput=None,
    )  # fmt: skip
    assert report.counts(cell) == ["0", "0", "0", "0"]
    assert words.estimate(cell.ttft.p50, rate=False) == "-"
