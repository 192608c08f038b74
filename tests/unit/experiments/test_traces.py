"""Real traces as tenants: the replay keeps what it promises, and prices are read from spans."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import recorded, traces
from experiments.recorded import SOURCES, Timed, engine_seconds, merged, phases, replayed
from experiments.traces import Priced, Prices, Sizes, Whole, goals, main, result_of
from loadgen.engine.model import Costs
from loadgen.fields import ScenarioError
from loadgen.reading import read as read_scenario
from loadgen.records import Outcome, PhaseMeta, TenantMeta
from loadgen.scenario import Trace, Traced
from tests.support.loadgen_builders import attempt, run
from tokenpool.poolfile.reading import parse as parse_pool
from toolbox.collector import Span
from toolbox.pictures import drawing

EXCERPTS = Path(__file__).parents[2] / "support" / "traces"
COSTS = Costs(0.01, 0.0005, 0.0001, 0.002)


@pytest.fixture(scope="module")
def excerpts() -> dict[str, Trace]:
    return recorded.read(EXCERPTS)


def test_each_trace_is_a_tenant_of_another_tier(excerpts: dict[str, Trace]) -> None:
    assert set(excerpts) == set(SOURCES)
    assert {source.tier for source in SOURCES.values()} == {"guaranteed", "elastic", "spot"}
    assert excerpts["mooncake"].block_tokens == 32


def test_a_folder_without_a_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"has no azure-llm-2023-code\.csv\.gz: give --traces"):
        recorded.read(tmp_path)


def test_all_traces_last_from_the_start_to_the_end(excerpts: dict[str, Trace]) -> None:
    requests = merged(excerpts, 10.0)
    times = [each.request.at_s for each in requests]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= min(trace.requests[-1].at_s for trace in excerpts.values()) - 10.0


def test_a_start_after_the_end_is_refused(excerpts: dict[str, Trace]) -> None:
    with pytest.raises(ScenarioError, match=r"a trace ends at 39 s: let --from be less than 100"):
        merged(excerpts, 100.0)


def test_a_phase_offers_its_part_of_the_work_in_the_order_of_the_trace(excerpts: dict[str, Trace]) -> None:
    requests = merged(excerpts)
    work = engine_seconds(requests, excerpts, COSTS, 8)
    plan = phases((0.5, 1.0, 3.0), 10.0)
    sent = list(replayed(requests, work, plan, engines=2))
    assert [each.request.at_s for each in sent] == sorted(each.request.at_s for each in sent)
    # Beyond its end the trace begins again.
    lengths = [(each.tenant, each.request.input_tokens, each.request.output_tokens) for each in requests]
    assert [(t, r.input_tokens, r.output_tokens) for t, r in sent] == [
        lengths[place % len(lengths)] for place in range(len(sent))
    ]
    done = 0
    for phase in plan:
        count = sum(phase.from_s <= each.request.at_s < phase.to_s for each in sent)
        offered = sum(work[place % len(work)] for place in range(done, done + count))
        assert 0 <= offered - phase.load * 2 * 10.0 < max(work)
        done += count
    assert done == len(sent)


@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.01, 5.0)), min_size=1, max_size=30),
    st.lists(st.floats(0.05, 4.0), min_size=1, max_size=4),
)
def test_requests_keep_their_order_within_the_phases(
    given_: list[tuple[float, float]], loads: list[float]
) -> None:
    times = sorted(at for at, _ in given_)
    requests = [Timed("code", Traced(at - times[0], 1, 1)) for at in times]
    plan = phases(loads, 5.0)
    sent = list(replayed(requests, [work for _, work in given_], plan, engines=1))
    assert all(0 <= each.request.at_s < plan[-1].to_s for each in sent)
    assert all(earlier.request.at_s <= later.request.at_s for earlier, later in pairwise(sent))


def test_written_traces_are_read_again_with_their_lengths_and_prefixes(
    excerpts: dict[str, Trace], tmp_path: Path
) -> None:
    requests = merged(excerpts)
    plan = phases((1.0,), 20.0)
    sent = list(replayed(requests, engine_seconds(requests, excerpts, COSTS, 8), plan, engines=1))
    file = tmp_path / "scenario.yaml"
    file.write_text(traces.scenario(recorded.write(sent, tmp_path), plan))
    made = read_scenario(file, {})
    for tenant in made.tenants:
        assert tenant.trace is not None
        own = [each.request for each in sent if each.tenant == tenant.name]
        assert [(r.input_tokens, r.output_tokens) for r in tenant.trace.requests] == [
            (r.input_tokens, r.output_tokens) for r in own
        ]
        assert [r.blocks for r in tenant.trace.requests] == [r.blocks for r in own]
    assert made.phases[0].name == "1x"


def test_the_pool_file_is_valid() -> None:
    file = parse_pool(traces.pool_file(Sizes()), name="pool.yaml").file
    assert {entitlement.name for entitlement in file.entitlements} == set(SOURCES)


def span(name: str, id_: str, parent: str, at_s: float = 1.0, **attributes: object) -> Span:
    kind = "server" if not parent else "internal"
    start = round(at_s * 1e9)
    return Span(name, "t" + id_[0], id_, parent, kind, start, start + 1, "ok", attributes, {})


def request(number: int, *, ending: str = "finished", reason: str = "", **more: object) -> list[Span]:
    """The spans of one request: 100 tokens were estimated, 20 reserved; its bound is 30."""
    said = {"tokenpool.entitlement": "code", "gen_ai.request.max_tokens": 30, "tokenpool.ending": ending}
    if reason:
        said["tokenpool.reason"] = reason
    else:
        said["gen_ai.usage.input_tokens"] = 80
    cost = {"tokenpool.cost.input_tokens": 100, "tokenpool.cost.output_tokens": 20}
    return [
        span("POST /v1/chat/completions", f"{number}a", "", float(number), **{**said, **more}),
        span("price", f"{number}b", f"{number}a", float(number), **cost),
    ]


def test_prices_are_read_from_spans() -> None:
    other = span("GET /v1/models", "9a", "")
    first, second = traces.priced([other, *request(2), *request(1, reason="concurrency")])
    assert (first.at_s, first.ending, first.input_tokens) == (1.0, "", 0)
    assert second == Priced("code", 2.0, 100, 20, 30, "finished", 80)
    assert second.input_error == pytest.approx(0.25)
    assert not second.is_covered


def test_prices_of_requests_that_an_engine_began() -> None:
    served = Priced("code", 1.0, 110, 30, 20, "finished", 100)
    cut = Priced("code", 1.0, 500, 10, 40, "preempted", 100)
    refused = Priced("code", 1.0, 500, 10, 40, "", 0)
    found = traces.summed([served, cut, refused])
    assert found.requests == 2
    assert found.input_error == pytest.approx(0.1)  # a cut request has no count of its own
    assert found.coverage == 0.5
    assert found.reserved_ratio == pytest.approx(40 / 60)
    nothing = traces.summed([])
    assert nothing.requests == 0
    assert math.isnan(nothing.coverage)


def recorded_run() -> traces.Result:
    made = run(
        attempt(1.0, 0.2, tenant="code"),
        attempt(2.0, None, tenant="conversation", outcome=Outcome.SHED, reason="concurrency", tokens=0),
        attempt(3.0, 0.4, tenant="mooncake", outcome=Outcome.PREEMPTED),
        phases=[PhaseMeta("0.5x", 0.0, 5.0), PhaseMeta("1x", 5.0, 10.0)],
        tenants=[TenantMeta(name) for name in SOURCES],
        started="1970-01-01T00:00:00+00:00",
    )
    found = [
        Priced("code", 1.0, 100, 30, 30, "finished", 100),
        Priced("mooncake", 3.0, 90, 5, 9, "preempted", 0),
    ]
    return result_of(made, found, Sizes(1, 4, (0.5, 1.0), 5.0), phases((0.5, 1.0), 5.0), 12.5, "simulator")


def test_a_run_is_counted_by_load_and_tenant() -> None:
    result = recorded_run()
    code, conversation, mooncake = result.points[:3]
    assert (code.load, code.requests, code.served, code.prices.requests) == (0.5, 1, 1, 1)
    assert conversation.refused == {"concurrency": 1}
    assert (mooncake.served, mooncake.preempted, mooncake.other) == (0, 1, 0)
    assert result.tenants["code"].coverage == 1.0
    assert result.used["1x"] == 0.0
    assert 0 < result.used["0.5x"] < 1
    assert json.loads(json.dumps(asdict(result)))["points"][1]["refused"] == {"concurrency": 1}
    text = traces.tables(result)
    assert "| 0.5 | conversation | 1 | 0 | 1 | 0 | 0 | nan | nan | nan% | nan | concurrency 1 |" in text


def test_the_pictures_are_well_formed() -> None:
    assert ElementTree.fromstring(drawing(traces.picture(recorded_run()))).tag.endswith("svg")
    made = traces.whole_picture({"code": Whole(Prices(2000, 0.0, 0.0, 0.9, 2.0), [0.89, 0.91])})
    assert "M" in drawing(made)


def test_the_goals_are_input_coverage_and_guarantees() -> None:
    good = Prices(1000, 0.01, 0.02, 0.91, 2.0)
    whole = {"code": Whole(good, [])}
    result = recorded_run()
    (first, *live) = goals(whole, [replace(result, tenants={"code": good})])
    assert first[1]
    assert [is_reached for _, is_reached in live] == [True, True, True]
    bad = replace(good, input_error=0.06, coverage=0.87)
    missed = goals({"code": Whole(bad, [])}, [replace(result, tenants={"code": bad})])
    assert [is_reached for _, is_reached in missed] == [False, False, False, True]
    few = replace(bad, requests=50)
    assert len(goals({}, [replace(result, tenants={"code": few})])) == 2
    refused = replace(result.points[0], refused={"concurrency": 1})
    assert not goals({}, [replace(result, tenants={}, points=[refused])])[0][1]


def test_whole_traces_are_priced_by_the_shipped_pricer(excerpts: dict[str, Trace]) -> None:
    found = traces.whole(excerpts["conversation"])
    assert found.prices.requests == pytest.approx(len(excerpts["conversation"].requests), rel=0.06)
    assert 0.8 < found.prices.coverage <= 1.0
    assert found.windows == []


def test_costs_are_those_of_a_calibration(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(asdict(COSTS)))
    assert traces.costs_of(file) == COSTS


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--traces", "nowhere"], "nowhere has no azure-llm-2023-code.csv.gz"),
        (["--traces", str(EXCERPTS)], "let --from be less than 1080"),
        (["--traces", str(EXCERPTS), "--loads", "1,-2"], "'1,-2': give numbers above 0, such as 0.5,1,2"),
        (["--traces", str(EXCERPTS), "--loads", "fast"], "'fast': give numbers above 0"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--computed", "--out", str(tmp_path)])
    assert complaint in capsys.readouterr().err


def test_the_computed_part_needs_no_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--traces", str(EXCERPTS), "--from", "0", "--computed", "--out", str(tmp_path)])
    assert "whole trace, conversation: coverage" in capsys.readouterr().out
