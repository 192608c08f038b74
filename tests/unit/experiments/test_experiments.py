"""Parts of the experiments: options, goals, and the baseline with a fixed limit."""

from __future__ import annotations

import gzip
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import fidelity, overload, pool, prices, scarcity, soak
from experiments.__main__ import _headline, _keep, _kept, _overload_goals, _replaced, main
from experiments.fixed_limit import Window
from experiments.service import sequence_seconds
from loadgen.reading import parse
from tests.support.harness import settings_of
from tests.support.loadgen_builders import attempt, run
from tokenpool.admission.queue import QueueSettings
from tokenpool.poolfile.reading import parse as parse_pool


def test_a_fixed_limit_refuses_requests_above_it_with_the_time_to_wait() -> None:
    window = Window(100)
    assert window.wait_s(0.0) == 0
    window.charge(60, 0.0)
    window.charge(60, 10.0)
    assert window.wait_s(20.0) == 40
    assert window.wait_s(60.1) == 0


SYSTEMS = overload.BASELINES + overload.WRONG + overload.ABLATIONS


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_has_a_valid_scenario(system: overload.System, tmp_path: Path) -> None:
    text = overload.scenario(system, overload.Sizes())
    made = parse(text, "scenario.yaml", {}, tmp_path)
    assert [tenant.name for tenant in made.tenants] == [overload.GUARANTEED, overload.SPOT]
    assert (made.tenants[0].priority is not None) is system.sends_priority


def test_scarcity_counts_service_by_weight(tmp_path: Path) -> None:
    made = parse(scarcity.scenario(scarcity.Sizes()), "scenario.yaml", {}, tmp_path)
    assert {tenant.name for tenant in made.tenants} == set(scarcity.WEIGHTS)
    assert made.phases[1].to_s - made.phases[1].from_s == scarcity.Sizes().one


def test_the_other_scenarios_are_valid(tmp_path: Path) -> None:
    made = parse(pool.scenario(pool.Sizes()), "scenario.yaml", {}, tmp_path)
    assert len(made.tenants) == 30
    file = parse_pool(pool.pool_file(), name="pool.yaml").file
    assert {e.name for e in file.entitlements} == {tenant.name for tenant in made.tenants}
    tiers = parse_pool(soak.POOL, name="pool.yaml").file
    lasting = parse(soak.SCENARIO.format(duration=60), "scenario.yaml", {}, tmp_path)
    assert {tenant.name for tenant in lasting.tenants} < {e.name for e in tiers.entitlements}
    mixed = parse(fidelity.scenario(fidelity.Sizes()), "scenario.yaml", {}, tmp_path)
    assert [phase.name for phase in mixed.phases] == list(fidelity.PHASES)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_has_a_valid_pool_file_and_valid_options(system: overload.System) -> None:
    file = parse_pool(overload.pool_file(system, overload.Sizes()), name="pool.yaml").file
    spot = file.entitlements[1]
    assert spot.is_preemptible is not system.name.startswith(("no preemption", "no policies"))
    settings_of(" ".join(["--upstream http://h:1", *system.flags]))
    assert "," not in system.name  # --only separates names by commas


def test_the_headline_has_default_options() -> None:
    assert all(not system.flags and system.is_preemptible for system in overload.HEADLINE)
    settings = settings_of("--upstream http://h:1")
    assert (settings.engine_priority, settings.slo_feedback) == ("auto", True)
    timeouts = (
        settings.queue_timeout_guaranteed,
        settings.queue_timeout_elastic,
        settings.queue_timeout_spot,
    )
    assert timeouts == (2.0, 1.0, 0.0)
    assert QueueSettings() == QueueSettings(*timeouts)


def test_the_headline_is_one_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one = overload.Result(
        "engine alone on vllm fcfs", 2, 0.05, 0.04, 9.0, 9.0, (0.1, 1.0, 2.0), 500.0, 100, 0, 50, 900, 0
    )
    ours = replace(one, system="tokenpool on vllm fcfs", p99_s=0.06, tokens_per_s=490.0, preempted=7)
    table = _headline({result.system: [result] for result in (one, ours)})
    assert "| vllm fcfs | 2 | 50 | 9000 | 60 | 1.20 | 0 of 100 | 500 | 490 | 0.980 |" in table
    goals = _overload_goals({result.system: [result] for result in (one, ours)})
    assert [is_reached for _, is_reached in goals] == [True, True, True, True, False]


def test_an_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["underload"])
    assert (
        "'underload' is not an experiment; the experiments are overload, scarcity" in capsys.readouterr().err
    )


def test_an_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["overload", "--only", "no queue, tokenpol"])
    assert "'tokenpol' is neither a system nor an attack; these are engine alone" in capsys.readouterr().err


def test_zero_attackers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["hostile", "--attackers", "0"])
    assert "--attackers must be 1 or more" in capsys.readouterr().err


def test_results_of_several_calls_accumulate(tmp_path: Path) -> None:
    result = overload.Result("tokenpool", 1, 0.05, 0.04, 0.06, 0.05, (0.05, 0.04), 500.0, 100, 0, 50, 900, 10)
    other = replace(result, seed=2, complaints=("could not keep up",))
    _keep(tmp_path, [result, other])
    kept = _kept(tmp_path, overload.Result)
    assert kept == [result, other]
    again = replace(result, tokens_per_s=600.0)
    assert _replaced(kept, again) == [other, again]
    assert _kept(tmp_path / "elsewhere", overload.Result) == []


SOAKED = soak.Result(
    seed=1,
    served=900,
    ended_otherwise={"shed": 20, "unavailable": 3},
    left=80,
    faults=90,
    memory_mb=55.0,
    growth_mb=0.4,
    held=0.0,
    input_ratio=1.0,
    output_ratio=0.998,
    tokens_per_s=400.0,
)


def test_a_good_soak_reaches_its_goals() -> None:
    assert all(is_reached for _, is_reached in soak.goals(SOAKED))


@pytest.mark.parametrize(
    "change",
    [
        {"growth_mb": 3.1},
        {"held": 1.0},
        {"input_ratio": 0.98},
        {"output_ratio": 1.02},
        {"ended_otherwise": {"shed": 20, "broken": 1}},
        {"served": 0},
        {"faults": 0},
        {"left": 0},
    ],
    ids=str,
)
def test_a_bad_soak_misses_one_goal(change: dict[str, Any]) -> None:
    missed = [goal for goal, is_reached in soak.goals(replace(SOAKED, **change)) if not is_reached]
    assert len(missed) == 1


def test_a_sequence_runs_from_its_first_token_and_not_from_its_sending() -> None:
    """A request that waits in a queue for 1 s holds no part of the engine."""
    waited = attempt(0.0, tenant="a", end_s=1.5, first_s=1.0, gap_mean_s=0.1)
    at_once = attempt(0.9, tenant="b", end_s=1.5, first_s=1.0, gap_mean_s=0.1)
    shed = attempt(0.0, tenant="b", end_s=1.5, first_s=None)
    made = run(waited, at_once, shed)
    assert sequence_seconds(made, "ab", 0.0, 2.0) == {"a": pytest.approx(0.6), "b": pytest.approx(0.6)}
    assert sequence_seconds(made, "ab", 0.0, 1.2) == {"a": pytest.approx(0.3), "b": pytest.approx(0.3)}


@pytest.mark.thorough
def test_prices_by_prefix_reach_their_goals_in_the_short_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prices", "--short", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("reached  prices") == 5
    assert "| ten templates | 19000 |" in (tmp_path / "prices" / "results.md").read_text()


def test_the_goals_of_prices_can_be_missed() -> None:
    flat = prices.measure(list(prices.mix(1, 2000)), by_prefix=False)
    late = [
        prices.Start(20, 0.03, {"a": 0.9, "b": 0.87}, 0.05),
        prices.Start(50, 0.03, {"a": 0.9, "b": 0.89}, 0.05),
    ]
    missed = prices.Result({"ten templates": (flat, flat)}, late, late, late)
    assert [is_reached for _, is_reached in prices.goals(missed)] == [False, True, False, False, True]
    assert prices.within(late[:1]) == math.inf


def test_the_coverage_of_a_template_is_exact() -> None:
    chance, template = random.Random(1), prices.TEMPLATES[3]
    outputs = [prices.draw(chance, 3).usage.output_tokens for _ in range(4000)]
    for bound in (20, 40, 76):
        counted = sum(output <= bound for output in outputs) / len(outputs)
        assert template.covered(bound) == pytest.approx(counted, abs=0.025)


def test_traces_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    for name, rows in (("code", "@2,400,7\n"), ("conv", "@1,100,50\n@3,200,60\n")):
        with gzip.open(tmp_path / f"azure-llm-2023-{name}.csv.gz", "wt") as file:
            file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows.replace("@", "2023-11-16 18:00:0"))
    with gzip.open(tmp_path / "mooncake-conversation.jsonl.gz", "wt") as file:
        for ids in ([0, 1, 2], [0, 1, 3], [0, 4, 5]):
            row = {"timestamp": 0, "input_length": 1200, "output_length": 9, "hash_ids": ids}
            file.write(json.dumps(row) + "\n")
    assert [drawn.usage.output_tokens for drawn in prices.azure_traces(tmp_path)] == [50, 7, 60]
    first, second, third = (drawn.ask.prefixes for drawn in prices.mooncake_trace(tmp_path))
    assert first == second
    assert (first[0] == third[0], first[1] == third[1]) == (True, False)
