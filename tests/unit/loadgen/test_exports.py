"""A run as a table, and in the formats of other tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from loadgen.exports import FILES, FORMATS, formats, table
from loadgen.exports.measured import interpolated, measured
from loadgen.records import Attempt, Outcome, Run, TenantMeta
from loadgen.scenario import Slo
from loadgen.summary import EVERYONE, WHOLE, summarise
from tests.support.loadgen_builders import attempt, crowd, run

SCENARIO = {"model": "tiny", "endpoint": "chat", "stream": True}


def mixed(*more: Attempt, **fields: object) -> Run:
    """Ten requests of 1 s with 5 tokens, a shed one, and one that the end of the run cut."""
    served = [attempt(1.0 + at / 2, 0.1 + at / 100, gaps={300: 4}, prompt_tokens=20) for at in range(10)]
    return run(
        *served,
        attempt(2.1, None, tenant="spot", outcome=Outcome.SHED, tokens=0, reason="kv_tokens", lasts_s=0.1),
        attempt(3.1, None, tenant="spot", outcome=Outcome.CUT, tokens=0, lasts_s=0.5),
        *more,
        scenario=SCENARIO,
        **fields,
    )


def exported(made: Run, folder: Path) -> dict[str, Any]:
    formats.write(folder, made, summarise(made), FORMATS)
    return {name: json.loads((folder / FILES[name]).read_bytes()) for name in FORMATS}


def test_the_table_has_a_line_for_each_tenant_phase_and_measure() -> None:
    made = crowd(3, 300)
    rows = list(csv.DictReader(table.text(summarise(made)).splitlines()))
    assert tuple(rows[0]) == table.HEAD
    places = {(row["tenant"], row["phase"], row["measure"]) for row in rows}
    assert len(places) == len(rows)
    by = {row["measure"]: row for row in rows if (row["tenant"], row["phase"]) == (EVERYONE, WHOLE)}
    assert (by["requests"]["value"], by["requests"]["unit"]) == ("300", "count")
    assert by["ttft.p50"]["unit"] == "s"
    assert float(by["ttft.p50"]["low"]) < float(by["ttft.p50"]["value"]) < float(by["ttft.p50"]["high"])
    assert (by["ttft.p99"]["high"], by["ttft.p99"]["reason"][:20]) == ("", "the run counts as ab")
    assert (by["served.share"]["unit"], by["output_tokens.rate"]["unit"]) == ("share", "1/s")
    assert int(by["refused by: tokens_per_second"]["value"]) > 0
    assert int(by["failed by: broken: reset"]["value"]) > 0


def test_names_in_the_table_are_quoted() -> None:
    made = run(attempt(1.0, tenant='a,"b"\nc'), tenants=[TenantMeta('a,"b"\nc')])
    rows = list(csv.DictReader(table.text(summarise(made)).splitlines(keepends=True)))
    assert {row["tenant"] for row in rows} == {'a,"b"\nc'}


def test_the_file_of_vllm_bench_has_its_keys_and_definitions(tmp_path: Path) -> None:
    late = attempt(8.0, 0.9, sent_s=8.5, lasts_s=1.0, prompt_tokens=20)
    made = exported(
        mixed(late, tenants=[TenantMeta("gold", slo=Slo(e2e_ms=2000)), TenantMeta("spot")]), tmp_path
    )
    found = made["vllm-bench"]
    keys = {
        "date",
        "endpoint_type",
        "backend",
        "label",
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "rtfx",
    }
    keys |= {
        f"{statistic}_{latency}_ms"
        for latency in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    }
    assert keys <= set(found)
    assert (found["completed"], found["failed"], found["num_prompts"]) == (11, 2, 13)
    assert (found["backend"], found["model_id"]) == ("openai-chat", "tiny")
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (220, 55)
    assert found["duration"] == pytest.approx(9.0)
    assert found["request_throughput"] == pytest.approx(11 / 9)
    assert found["request_goodput"] == pytest.approx(11 / 9)
    assert found["max_concurrent_requests"] == 2
    # From the sending: the late one has 0.4 s, although it was due 0.9 s before its first token.
    assert found["p99_ttft_ms"] == pytest.approx(
        interpolated([*(100 + 10 * at for at in range(10)), 400], 0.99)
    )
    assert found["mean_itl_ms"] == found["p99_itl_ms"] == pytest.approx(3.84, rel=0.02)


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    made = exported(run(scenario=SCENARIO), tmp_path)
    found = made["vllm-bench"]
    assert (found["completed"], found["p99_ttft_ms"], found["mean_itl_ms"]) == (0, None, None)
    assert found["request_goodput"] is None
    (benchmark,) = made["guidellm"]["benchmarks"]
    assert benchmark["metrics"]["time_to_first_token_ms"]["successful"]["count"] == 0


def test_the_report_of_guidellm_has_requests_and_their_distributions(tmp_path: Path) -> None:
    found = exported(mixed(), tmp_path)["guidellm"]
    assert found["metadata"]["version"] == 2
    assert found["config"]["spec"]["backend"]["target"] == "http://127.0.0.1:1"
    (benchmark,) = found["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"] == {"successful": 10, "errored": 1, "incomplete": 1, "total": 12}
    assert {status: len(group or ()) for status, group in benchmark["requests"].items()} == {
        "successful": 10, "errored": 1, "incomplete": 1, "total": 0,
    }  # fmt: skip
    first = metrics["time_to_first_token_ms"]["successful"]
    assert (first["count"], first["min"], first["max"]) == (10, pytest.approx(100), pytest.approx(190))
    assert first["percentiles"]["p50"] == pytest.approx(140)  # the fifth of ten
    assert first["mean"] == pytest.approx(145)
    between = metrics["inter_token_latency_ms"]["successful"]
    assert between["count"] == 40  # weighted by the tokens after the first
    assert metrics["output_token_count"]["total"]["total_sum"] == 50
    rate = metrics["requests_per_second"]["total"]
    assert rate["mean"] == pytest.approx(12 / rate["count"])
    request = benchmark["requests"]["successful"][0]
    times = request["info"]["timings"]
    assert times["first_token_iteration"] - times["request_start"] == pytest.approx(0.1, abs=1e-5)
    assert request["info"]["agent_id"] == "gold"
    assert benchmark["requests"]["errored"][0]["info"]["error"] == "kv_tokens"


def test_warm_up_and_earlier_attempts_are_left_out() -> None:
    made = run(
        attempt(0.5), attempt(3.0, None, request="r", outcome=Outcome.SHED, tokens=0),
        attempt(3.0, request="r", attempt=2, sent_s=4.0), warm_up_s=1.0,
    )  # fmt: skip
    kept = measured(made)
    assert [(last.request, last.attempt) for last in kept.lasts] == [("r", 2)]
    assert kept.from_s == 1.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.99, 3.97), (1.0, 4.0)])
def test_percentiles_are_interpolated(share: float, value: float) -> None:
    assert interpolated([1.0, 2.0, 3.0, 4.0], share) == pytest.approx(value)


def test_an_unknown_format_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "x.yaml", "--url", "http://h", "--out", "o", "--export", "vllm-bench,excel"])
    assert ended.value.code == 2
    assert "'excel' is not a format; use vllm-bench or guidellm" in capsys.readouterr().err
