"""The comparison of load generators: result files, the engine's figures, commands, tables and goals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.instruments import command, comparison, own, readers
from experiments.instruments.environments import Package, Unavailable, suitable
from experiments.instruments.own import Own
from experiments.instruments.readers import Figures, Unreadable
from experiments.instruments.running import Result
from experiments.instruments.tools import INSTRUMENTS, Call, Instrument, Target
from experiments.instruments.workload import (
    Files,
    Workload,
    fitted_prompts,
    prompt_lines,
    simulator_prompts,
    words,
    write_simulator_tokenizer,
)
from loadgen.engine.tokens import WORDS, count_of

FIGURES = Figures(
    served=2,
    failed=1,
    rate=20.0,
    ttft_mean_s=0.03,
    ttft_p50_s=0.029,
    ttft_p99_s=0.05,
    between_mean_s=0.021,
    between_p50_s=0.0209,
    e2e_mean_s=1.35,
    e2e_p50_s=1.34,
)
OWN = Own(
    requests=3,
    ttft_mean_s=0.028,
    between_mean_s=0.021,
    e2e_mean_s=1.35,
    input_tokens=64,
    output_tokens=64,
    delay_mean_s=0.001,
    lost_s=0.0,
)
GOOD = Result("loadgen", 20.0, 3, replace(FIGURES, served=3, failed=0), OWN, 1.5)
TARGET = Target("http://127.0.0.1:8000", "small")
LOAD = Workload.of(20.0, 5.0, 64, 32)

LOADGEN = {
    "cells": [
        {
            "requests": 3,
            "outcomes": {"served": 2, "error": 1},
            "ttft": {"mean": {"value": 9.0}},
            "ttft_sent": {"mean": {"value": 0.03}, "p50": {"value": 0.029}, "p99": {"value": 0.05}},
            "tpot": {"mean": {"value": 0.021}},
            "gap_p50_s": 0.0209,
            "e2e": {"mean": {"value": 1.35}, "p50": {"value": 1.34}},
        }
    ]
}
VLLM_BENCH = {
    "completed": 2,
    "failed": 1,
    "start_times": [4719.0, 4719.05, 4719.1],
    "mean_ttft_ms": 30.0,
    "p50_ttft_ms": 29.0,
    "p99_ttft_ms": 50.0,
    "mean_itl_ms": 21.0,
    "p50_itl_ms": 20.9,
    "mean_e2el_ms": 1350.0,
    "p50_e2el_ms": 1340.0,
}


def _guidellm(mean: float, p50: float, p99: float) -> dict[str, Any]:
    return {"successful": {"mean": mean, "percentiles": {"p50": p50, "p99": p99}}}


GUIDELLM = {
    "benchmarks": [
        {
            "requests": {
                "successful": [{"request_start_time": 1795982061.0}, {"request_start_time": 1795982061.05}],
                "errored": [{}],
                "incomplete": None,
            },
            "metrics": {
                "time_to_first_token_ms": _guidellm(30.0, 29.0, 50.0),
                "inter_token_latency_ms": _guidellm(21.0, 20.9, 22.0),
                "request_latency": _guidellm(1.35, 1.34, 1.4),
            },
        }
    ]
}
AIPERF = {
    "request_count": {"unit": "requests", "avg": 2.0},
    "time_to_first_token": {"unit": "ms", "avg": 30.0, "p50": 29.0, "p99": 50.0},
    "inter_token_latency": {"unit": "ms", "avg": 21.0, "p50": 20.9, "p99": 22.0},
    "request_latency": {"unit": "ms", "avg": 1350.0, "p50": 1340.0, "p99": 1400.0},
}
AIPERF_RECORDS = [
    {"metadata": {"request_start_ns": 1795981939_000_000_000 + 50_000_000 * n}} for n in range(3)
]
INFERENCE_PERF = {
    "successes": {
        "count": 2,
        "latency": {
            "time_to_first_token": {"mean": 0.03, "median": 0.029, "p99": 0.05},
            "inter_token_latency": {"mean": 0.021, "median": 0.0209, "p99": 0.022},
            "request_latency": {"mean": 1.35, "median": 1.34, "p99": 1.4},
        },
    },
    "failures": {"count": 1},
}
STARTS = [{"start_time": 4474.0}, {"start_time": 4474.05}, {"start_time": 4474.1}]


@pytest.mark.parametrize(
    "figures",
    [
        readers.loadgen(LOADGEN, [{"sent_s": 0.0}, {"sent_s": 0.1}, {"sent_s": 0.05}]),
        readers.vllm_bench(VLLM_BENCH),
        readers.guidellm(GUIDELLM),
        readers.aiperf(AIPERF, AIPERF_RECORDS),
        readers.inference_perf(INFERENCE_PERF, STARTS),
    ],
    ids=["loadgen", "vllm bench serve", "GuideLLM", "aiperf", "inference-perf"],
)
def test_every_instruments_results_are_the_same_figures(figures: Figures) -> None:
    assert figures == replace(FIGURES, rate=pytest.approx(20.0, rel=1e-4))


def test_results_without_a_served_request_have_no_figures() -> None:
    nothing: Mapping[str, Any] = {"requests": {"successful": [], "errored": [{}], "incomplete": []}}
    with pytest.raises(Unreadable, match="no request was served"):
        readers.loadgen({"cells": [LOADGEN["cells"][0] | {"outcomes": {"error": 3}}]}, [])
    with pytest.raises(Unreadable, match="no request was served"):
        readers.vllm_bench(VLLM_BENCH | {"completed": 0})
    with pytest.raises(Unreadable, match="no request was served"):
        readers.guidellm({"benchmarks": [nothing]})
    with pytest.raises(Unreadable, match="no request was served"):
        readers.aiperf({"request_count": {"avg": 0.0}}, [])
    with pytest.raises(Unreadable, match="no request was served"):
        readers.inference_perf({"successes": {"count": 0, "latency": None}}, [])


def test_one_request_has_no_rate() -> None:
    with pytest.raises(Unreadable, match="1 requests have no rate"):
        readers.sent_rate([3.0])


def _page(requests: int, *, is_simulated: bool = True) -> str:
    histograms = {
        "vllm:time_to_first_token_seconds": 0.028,
        "vllm:inter_token_latency_seconds": 0.021,
        "vllm:e2e_request_latency_seconds": 1.35,
        "vllm:request_prompt_tokens": 64.0,
        "vllm:request_generation_tokens": 32.0,
    }
    if is_simulated:
        histograms["loadgen_engine_step_delay_seconds"] = 0.001
    lines = []
    for name, mean in histograms.items():
        lines += [f"# TYPE {name} histogram"]
        for engine in (0, 1):
            lines += [
                f'{name}_bucket{{engine="{engine}",le="+Inf"}} {requests}',
                f'{name}_count{{engine="{engine}"}} {requests}',
                f'{name}_sum{{engine="{engine}"}} {mean * requests}',
            ]
    if is_simulated:
        name = "loadgen_engine_lost_seconds_total"
        lines += [f"# TYPE {name} counter", f"{name} {requests / 1000}"]
    return "\n".join(lines) + "\n"


def test_the_engines_own_figures_are_those_between_two_pages() -> None:
    made = own.between(_page(10), _page(40))
    assert made is not None
    assert made.requests == 60
    assert made.ttft_mean_s == pytest.approx(0.028)
    assert made.between_mean_s == pytest.approx(0.021)
    assert made.e2e_mean_s == pytest.approx(1.35)
    assert (made.input_tokens, made.output_tokens) == (pytest.approx(64), pytest.approx(32))
    assert made.delay_mean_s == pytest.approx(0.001)
    assert made.lost_s == pytest.approx(0.03)


def test_a_real_engine_has_no_delay_of_its_own() -> None:
    made = own.between(_page(1, is_simulated=False), _page(2, is_simulated=False))
    assert made is not None
    assert made.delay_mean_s is made.lost_s is None


def test_no_ended_request_has_no_figures() -> None:
    assert own.between(_page(3), _page(3)) is None


def test_prompts_have_the_tokens_that_the_simulator_counts() -> None:
    prompts = list(simulator_prompts(64, 20, seed=1))
    assert len(set(prompts)) == 20
    assert {count_of(len(prompt), 0.25) for prompt in prompts} == {64}
    lines = [json.loads(line) for line in prompt_lines(iter(prompts), 32).splitlines()]
    assert lines[0] == {"text": prompts[0], "prompt": prompts[0], "output_tokens_count": 32}


def test_prompts_are_fitted_to_the_tokens_of_any_engine() -> None:
    prompts = list(fitted_prompts(64, 5, 1, lambda text: len(text) // 3))
    assert [len(prompt) // 3 for prompt in prompts] == [64] * 5


def test_the_tokenizer_knows_the_prompts_and_the_responses(tmp_path: Path) -> None:
    write_simulator_tokenizer(tmp_path, seed=1)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = made["model"]["vocab"]
    assert {*words(1), *WORDS} <= vocabulary.keys()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["unk_token"] == "<unk>"


def test_a_low_rate_has_sixty_requests() -> None:
    assert Workload.of(5.0, 5.0, 64, 64).requests == 60
    assert Workload.of(5.0, 5.0, 64, 64).seconds == 12.0
    assert Workload.of(300.0, 5.0, 64, 64).requests == 1500


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda instrument: instrument.name)
def test_every_command_carries_the_load(instrument: Any, tmp_path: Path) -> None:
    call = Call(LOAD, TARGET, Files(tmp_path / "tok", tmp_path / "prompts.jsonl"), tmp_path, 7)
    parts = instrument.command(Path("/programs"), call)
    text = " ".join([*parts, *(file.read_text() for file in tmp_path.iterdir())])
    assert TARGET.url in text
    assert TARGET.model in text
    assert "20" in text
    named = {"GuideLLM": "prompts.jsonl"}
    assert named.get(instrument.name, "32") in text


def test_results_are_read_from_the_files_of_the_instruments(tmp_path: Path) -> None:
    by_name = {instrument.name: instrument for instrument in INSTRUMENTS}
    files: dict[str, dict[str, str]] = {
        "loadgen": {
            "run/summary.json": json.dumps(LOADGEN),
            "run/requests.jsonl": '{"sent_s": 0.0}\n{"sent_s": 0.1}\n{"sent_s": 0.05}\n',
        },
        "vllm bench serve": {"result.json": json.dumps(VLLM_BENCH)},
        "GuideLLM": {"report.json": json.dumps(GUIDELLM)},
        "aiperf": {
            "profile_export_aiperf.json": json.dumps(AIPERF),
            "profile_export.jsonl": "".join(json.dumps(line) + "\n" for line in AIPERF_RECORDS),
        },
        "inference-perf": {
            "summary_lifecycle_metrics.json": json.dumps(INFERENCE_PERF),
            "per_request_lifecycle_metrics.json": json.dumps(STARTS),
        },
    }
    assert files.keys() == by_name.keys()
    for name, texts in files.items():
        for file, text in texts.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert by_name[name].read(tmp_path / name).served == 2
        with pytest.raises(OSError, match="No such file"):
            by_name[name].read(tmp_path / "missing")


def test_the_table_has_the_errors() -> None:
    off = replace(
        GOOD,
        instrument="aiperf",
        figures=replace(FIGURES, ttft_mean_s=0.037, between_mean_s=0.02, rate=12.0),
        rate=20.0,
    )
    failed = Result("GuideLLM", 200.0, 60, None, OWN, 3.0, "did not end within 75 s")
    first, second, third = comparison.table([failed, GOOD, off]).splitlines()[2:]
    assert "| 20 | loadgen | 20.0 | 3 of 3 | 29.0, 50.0 | 30.0 | 28.0 | +2.0 | 1.0 |" in first
    assert "| 12.0 (too slow) | 2 of 3 |" in second
    assert "| +9.0 |" in second
    assert "| -4.76 |" in second
    assert "| 200 | GuideLLM | did not end within 75 s |" in third
    assert {line.count("|") for line in comparison.table([failed, GOOD, off]).splitlines()} == {18}


def test_the_cost_is_a_line_through_the_runs_that_kept_up() -> None:
    runs = [
        replace(
            GOOD,
            rate=rate,
            requests=requests,
            cpu_s=2.0 + requests / 1000,
            figures=replace(FIGURES, failed=0, rate=rate),
        )
        for rate, requests in ((20.0, 100), (100.0, 500), (200.0, 1000))
    ]
    slow = replace(GOOD, rate=300.0, requests=1500, cpu_s=60.0)
    assert "| loadgen | 1.00 | 2.0 | 200 |" in comparison.cost_table([*runs, slow])
    assert "| loadgen | - | - | none |" in comparison.cost_table([slow])


@pytest.mark.parametrize(
    ("result", "reached"),
    [
        (GOOD, [True, True]),
        (replace(GOOD, figures=replace(FIGURES, between_mean_s=0.0213)), [False, True]),
        (replace(GOOD, figures=replace(FIGURES, ttft_mean_s=0.0325)), [True, False]),
        (replace(GOOD, figures=None, problem="ended with status 1"), [False]),
        (replace(GOOD, own=None), [False]),
        (replace(GOOD, rate=300.0), [True, True, False]),
        (replace(GOOD, rate=300.0, figures=replace(FIGURES, failed=0, rate=299.0)), [True, True, True]),
        (replace(GOOD, instrument="aiperf", figures=None), []),
    ],
)
def test_the_goals_are_those_of_loadgen(result: Result, reached: list[bool]) -> None:
    assert [is_reached for _, is_reached in comparison.goals([result])] == reached


def test_a_late_simulator_is_named_and_its_first_tokens_are_not_judged() -> None:
    late = replace(GOOD, own=replace(OWN, delay_mean_s=0.009), figures=replace(FIGURES, ttft_mean_s=0.06))
    assert [goal for goal, _ in comparison.goals([late])] == [
        "loadgen at 20/s: +0.00 % between tokens, within 1 %"
    ]
    (note,) = comparison.notes([GOOD, late, replace(late, instrument="aiperf")])
    assert "not judged, because the simulator itself was 9.0 ms late" in note
    real = replace(late, own=replace(OWN, delay_mean_s=None))
    assert [is_reached for _, is_reached in comparison.goals([real])] == [True, False]
    assert comparison.notes([real]) == []


def test_the_record_has_the_errors() -> None:
    made = comparison.record([GOOD, replace(GOOD, figures=None)], {"commit": "abc"})
    assert made["commit"] == "abc"
    assert made["results"][0]["first_error_s"] == pytest.approx(0.002)
    assert made["results"][0]["keeps_up"] is True
    assert made["results"][1]["between_error"] is None
    json.dumps(made)


def test_the_first_interpreter_that_is_new_enough_is_taken() -> None:
    package = Package("inference-perf==0.7.0", (3, 12))
    known = {"old": (3, 11), "new": (3, 13), "newer": (3, 14)}
    assert suitable(package, ["missing", *known], known.get) == "new"
    with pytest.raises(Unavailable, match=r"inference-perf==0.7.0 needs Python 3.12 or newer; name one with"):
        suitable(package, ["old", "missing"], known.get)


def test_an_instrument_that_cannot_be_installed_is_named_and_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    absent = Instrument("absent", Package("absent==1"), lambda _, __: [], lambda _: FIGURES)
    assert [one.name for one, _ in command.available([INSTRUMENTS[0], absent], [])] == ["loadgen"]
    assert "absent is left out: absent==1 needs Python 3.10 or newer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "wrk"], "'wrk' is not an instrument; these are loadgen, vllm bench serve"),
        (["--rates", "20,fast"], "write numbers separated by commas"),
        (["--rates", "0"], "rates, seconds and tokens must be above 0"),
        (["--seconds", "-1"], "rates, seconds and tokens must be above 0"),
    ],
)
def test_a_wrong_option_is_an_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err
