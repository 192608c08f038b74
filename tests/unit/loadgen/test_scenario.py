"""Scenario files: their meaning, and the errors of wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.explaining import explain
from loadgen.fields import ScenarioError
from loadgen.reading import parse, read
from loadgen.records import described
from loadgen.scenario import (
    Bursty,
    Closed,
    Constant,
    Empirical,
    Endpoint,
    Fault,
    Fixed,
    Header,
    Lognormal,
    Normal,
    OnOff,
    Phase,
    Poisson,
    Prefix,
    PromptForm,
    Ramp,
    Replay,
    Retries,
    Scenario,
    Slo,
    Trace,
    Traced,
    Uniform,
)

HEAD = "name: test\nmodel: tiny\nduration_s: 60\n"
ONE = "tenants:\n  - name: gold\n    arrivals: {poisson: {rate: 5}}\n    input: 100\n    output: 20\n"
FULL = """\
name: overload
seed: 7
model: tiny
route: completions
stream: true
prompt: ids
duration_s: 60
timeout_s: 30
drain_s: 10
spread: [1, 3]
tenants:
  - name: gold
    key: {env: GOLD_KEY}
    tier: guaranteed
    arrivals: {constant: {rate: 2}}
    input: {lognormal: {median: 200, sigma: 0.8, most: 1000}}
    output: {uniform: {least: 10, most: 20}}
    prefix: {share: 0.5, tokens: 64, name: system}
    retries: {most: 2, honour_retry_after: false, wait_s: 0.1}
    priority: -1
    starts_s: 5
    ends_s: 55
  - name: spot
    key: sk-spot
    arrivals: {ramp: {from: 0, to: 40, over_s: 30}}
    input: {normal: {mean: 100, deviation: 20, least: 10, most: 500}}
    output: {empirical: [10, {tokens: 200, weight: 0.5}]}
phases:
  - {name: together, from: 20, to: 60}
  - {name: alone, from: 0, to: 20, rates: {spot: 0}}
faults:
  - {at_s: 30, run: [docker, stop, engine]}
  - {at_s: 40, signal: KILL, pid_file: engine.pid}
"""


def made(text: str, folder: Path = Path()) -> Scenario:
    return parse(text, "s.yaml", {"GOLD_KEY": "sk-gold"}, folder)


def test_all_fields_are_read() -> None:
    scenario = made(FULL)
    gold, spot = scenario.tenants
    assert (scenario.seed, gold.endpoint, scenario.prompt, scenario.spread) == (
        7, Endpoint.COMPLETIONS, PromptForm.IDS, (1.0, 3.0),
    )  # fmt: skip
    assert (gold.key, gold.tier, gold.priority, gold.starts_s, gold.ends_s) == (
        "sk-gold", "guaranteed", -1, 5.0, 55.0,
    )  # fmt: skip
    assert gold.process == Constant(2.0)
    assert (gold.input, gold.output) == (Lognormal(200, 0.8, 1, 1000), Uniform(10, 20))
    assert gold.prefix == Prefix(0.5, 64, "system")
    assert gold.retries == Retries(2, False, 0.1)
    assert spot.process == Ramp(0.0, 40.0, 30.0)
    assert (spot.input, spot.output) == (Normal(100, 20, 10, 500), Empirical((10, 200), (1.0, 0.5)))
    assert scenario.phases == (Phase("alone", 0, 20, (("spot", 0.0),)), Phase("together", 20, 60))
    assert scenario.faults == (
        Fault(30, ("docker", "stop", "engine")), Fault(40, signal="KILL", pid_file="engine.pid"),
    )  # fmt: skip


def test_the_goals_of_a_tenant_are_read_and_described() -> None:
    scenario = made(HEAD + ONE + "    slo: {ttft_ms: 300, e2e_ms: 9000}\n")
    assert scenario.tenants[0].slo == Slo(ttft_ms=300.0, e2e_ms=9000.0)
    assert "slo of gold: time to first token at most 300 ms, end to end at most 9000 ms" in explain(scenario)
    assert "'slo': {'ttft_ms': 300.0, 'tpot_ms': None, 'e2e_ms': 9000.0}" in str(described(scenario))


@pytest.mark.parametrize(
    ("slo", "error"),
    [
        ("{}", "s.yaml:9: tenants[0].slo has no goal; write at least one of ttft_ms, tpot_ms, e2e_ms"),
        ("{ttft_s: 1}", "tenants[0].slo.ttft_s"),
        ("{tpot_ms: 0}", "s.yaml:9: tenants[0].slo.tpot_ms is 0"),
    ],
)
def test_wrong_goals_of_a_tenant_are_errors(slo: str, error: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        made(HEAD + ONE + f"    slo: {slo}\n")
    assert error in str(raised.value)


@pytest.mark.parametrize("more", ["stream: false\n", "endpoint: embeddings\n"])
def test_a_goal_for_the_time_per_token_needs_a_stream(more: str) -> None:
    one = ONE.replace("    output: 20\n", "") if "embeddings" in more else ONE
    with pytest.raises(ScenarioError) as raised:
        made(more + HEAD + one + "    slo: {ttft_ms: 300, tpot_ms: 20}\n")
    assert "tenants[0] has the goal tpot_ms, but answers are not streamed" in str(raised.value)
    assert "remove 'tpot_ms:', or 'stream: false'" in str(raised.value)


def test_a_minimal_scenario_has_defaults() -> None:
    scenario = made(HEAD + ONE)
    assert scenario.tenants[0].input == Fixed(100)
    assert scenario.tenants[0].key is None
    assert (scenario.stream, scenario.prompt, scenario.timeout_s, scenario.drain_s) == (
        True, PromptForm.IDS, 120.0, 120.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "process"),
    [
        ("{bursty: {rate: 4, burst: 8}}", Bursty(4, 8)),
        ("{on_off: {rate: 4, on_s: 1, off_s: 2}}", OnOff(4, 1, 2)),
        ("{closed: {workers: 3, think_s: 0.5}}", Closed(3, 0.5)),
        ("{closed: {workers: 3}}", Closed(3, 0.0)),
        ("{poisson: {rate: 0.5}}", Poisson(0.5)),
    ],
)
def test_arrival_processes_are_read(text: str, process: object) -> None:
    assert made(HEAD + ONE.replace("{poisson: {rate: 5}}", text)).tenants[0].process == process


REPLAYED = "tenants:\n  - name: gold\n    trace: {lines: {file: t.jsonl}}\n"


def test_the_path_of_a_trace_is_relative_to_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"at": 2, "input": 5, "output": 6}\n\n{"at": 1, "input": 7, "output": 8}\n'
    )
    (tmp_path / "s.yaml").write_text(HEAD + REPLAYED)
    found = read(tmp_path / "s.yaml", {}).tenants[0]
    assert found.process == Replay()
    assert found.trace == Trace("t.jsonl", (Traced(1.0, 7, 8), Traced(2.0, 5, 6)))


@pytest.mark.parametrize(
    ("trace", "error"),
    [
        ('{"at": 1, "input": 7}\n', "t.jsonl:1: Object missing required field `output`; write lines such as"),
        ('{"at": 1, "input": 7, "output": 8}\nnonsense\n', "t.jsonl:2: JSON is malformed"),
        ('{"at": -1, "input": 7, "output": 8}\n', "t.jsonl:1: at is -1; write seconds from the start"),
        ('{"at": 1, "input": 0, "output": 8}\n', "t.jsonl:1: input is 0; write from 1 to"),
        (
            "",
            "t.jsonl: there is no request in the selected part; change start_s, duration_s, most_input "
            "or most_requests",
        ),
        (None, "t.jsonl: cannot be read (No such file or directory); name a file that exists"),
    ],
)
def test_the_error_of_a_bad_trace_names_the_line(tmp_path: Path, trace: str | None, error: str) -> None:
    if trace is not None:
        (tmp_path / "t.jsonl").write_text(trace)
    with pytest.raises(ScenarioError) as raised:
        made(HEAD + REPLAYED, tmp_path)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def changed(old: str, new: str) -> str:
    assert old in FULL
    return FULL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "s.yaml:1: the file is empty; add 'name:' and 'tenants:'"),
        ("name: [", "not YAML"),
        ("- a", "s.yaml:1: the scenario is not a mapping but a list; give it fields: name, seed"),
        (HEAD, "s.yaml:1: the scenario has no tenants; add 'tenants:'"),
        (HEAD + "tenants: []\n", "s.yaml:4: tenants is empty; add at least one tenant"),
        (HEAD + "seed: 1\nseed: 2\n" + ONE, "s.yaml:5: seed is given twice; keep one of the two"),
        (
            changed("timeout_s: 30", "timeout: 30"),
            "s.yaml:8: timeout is not a known field; did you mean 'timeout_s'?",
        ),
        (
            changed("duration_s: 60", "duration_s: 60s"),
            "s.yaml:7: duration_s is not a number but '60s'; write a plain number of seconds, without a unit",
        ),
        (
            changed("{rate: 2}", "{rate: 0}"),
            "s.yaml:15: tenants[0].arrivals.constant.rate is 0; write more than 0 requests per second",
        ),
        (
            changed("constant", "konstant"),
            "s.yaml:15: tenants[0].arrivals.konstant is not a known field; did you mean 'constant'?",
        ),
        (
            changed("{constant: {rate: 2}}", "{}"),
            "s.yaml:15: tenants[0].arrivals has 0 kinds; write exactly one of",
        ),
        (
            changed("share: 0.5", "share: 1.5"),
            "s.yaml:18: tenants[0].prefix.share is 1.5; write at most 1 (a share)",
        ),
        (
            changed("most: 2,", "most: 2.5,"),
            "tenants[0].retries.most is 2.5; write a whole number of retries",
        ),
        (
            changed("least: 10, most: 20", "least: 30, most: 20"),
            "s.yaml:17: tenants[0].output.uniform has least 30 above most 20; swap the two",
        ),
        (
            changed("weight: 0.5", "weight: -1"),
            "tenants[1].output.empirical[1].weight is -1; write at least 0",
        ),
        (changed("ends_s: 55", "ends_s: 5"), "s.yaml:22: tenants[0].ends_s is 5; write more than 5 seconds"),
        (changed("name: spot", "name: gold"), "s.yaml:23: tenants[1] is the second tenant named 'gold'"),
        (
            changed("key: sk-spot", "key: 12"),
            "s.yaml:24: tenants[1].key is not a text but '12'; write a text, in quotes",
        ),
        (
            changed("key: sk-spot", 'key: "a\\nb"'),
            "tenants[1].key has characters that a header cannot contain",
        ),
        (
            changed("GOLD_KEY", "NO_KEY"),
            "s.yaml:13: tenants[0].key.env names NO_KEY, which is not set; run with NO_KEY=",
        ),
        (changed("from: 20", "from: 10"), "s.yaml:30: phases[1] overlaps phase 'together'; let one begin"),
        (
            changed("name: alone", "name: together"),
            "s.yaml:30: phases[1] is the second phase named 'together'",
        ),
        (changed("to: 60}", "to: 61}"), "s.yaml:29: phases[0].to is 61; write at most 60 seconds"),
        (changed("{spot: 0}", "{spto: 0}"), "phases[1].rates.spto names no tenant; use one of gold, spot"),
        (
            changed("signal: KILL, ", ""),
            "s.yaml:33: faults[1] must have either a command or a signal; give either 'run:'",
        ),
        (
            changed("signal: KILL", "signal: HUP"),
            "s.yaml:33: faults[1].signal is 'HUP', which is not one of STOP",
        ),
        (
            changed("pid_file: engine.pid", 'pid_file: "engine\\npid"'),
            "s.yaml:33: faults[1].pid_file has characters that cannot be printed",
        ),
        (changed(", pid_file: engine.pid", ""), "s.yaml:33: faults[1] has no pid_file; add 'pid_file:'"),
        (
            changed("[docker, stop, engine]", "[]"),
            "s.yaml:32: faults[0].run is empty; write the command as a list",
        ),
        (changed("spread: [1, 3]", "spread: [0, 0]"), "s.yaml:10: spread has no weight above 0"),
        (
            changed("route: completions", "route: chat"),
            "s.yaml:6: prompt is ids, which the chat endpoint of tenant 'gold' does not accept",
        ),
        (changed("stream: true", "stream: maybe"), "s.yaml:5: stream is neither true nor false but 'maybe'"),
        (HEAD + ONE.replace("    input: 100\n", ""), "s.yaml:5: tenants[0] has no input; add 'input:'"),
        (
            changed("duration_s: 60", "duration_s: 1.0e+10"),
            "s.yaml:7: duration_s is 1e+10; write at most 1e+09 seconds",
        ),
        (
            changed("{rate: 2}", "{rate: 1.0e+300}"),
            "tenants[0].arrivals.constant.rate is 1e+300; write at most 1e+09",
        ),
        (changed("seed: 7", "seed: 10000000000000000000"), "seed is 1e+19; write at most 9.22337e+18"),
        (
            changed("seed: 7", "tokens_per_byte: 1.0e-9"),
            "s.yaml:2: tokens_per_byte is 1e-09; write at least 0.001 tokens",
        ),
        (
            HEAD + ONE.replace("poisson: {rate: 5}", "on_off: {rate: 5, on_s: 0.0001, off_s: 0.0001}"),
            "tenants[0] pauses over 100000 times in 60 s; write a longer on_s or off_s",
        ),
        (
            changed("name: spot", 'name: "spot\\nmarket"'),
            "tenants[1].name has characters that cannot be printed; write letters and digits in one line",
        ),
        (
            changed("name: spot", "name: " + "a" * 201),
            "tenants[1].name has 201 characters; write at most 200",
        ),
        (
            changed("signal: KILL", "signal: " + "K" * 5000),
            "faults[1].signal is 'KKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKK', which is not one of STOP",
        ),
        (
            HEAD + "tenants: [{name: a}]",
            "tenants[0] has no arrivals; add 'arrivals:' with a process, or 'trace:'",
        ),
    ],
)
def test_an_error_names_line_field_and_fix(text: str, error: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        made(text)
    assert error in str(raised.value)
    assert str(raised.value).startswith("s.yaml:")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("path", "reason"), [("none.yaml", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(ScenarioError, match=f"cannot be read .{reason}.*; name a scenario file"):
        read(tmp_path / path, {})


def test_a_file_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ScenarioError, match="save it as UTF-8"):
        read(tmp_path / "s.yaml", {})


def test_the_stored_scenario_has_no_keys() -> None:
    kept = str(described(made(FULL)))
    assert "sk-gold" not in kept
    assert "sk-spot" not in kept
    assert "'constant': {'rate': 2.0}" in kept


def test_a_scenario_is_explained() -> None:
    told = explain(made(FULL))
    assert "overload: 60 s, seed 7" in told
    assert "about 100" in told  # gold: 2 per second for 50 s
    assert "phase alone: 0 to 20 s, spot x 0" in told
    assert "fault at 30 s: docker stop engine" in told
    assert "2, with waits of their own" in told


def to(endpoint: str) -> str:
    return HEAD + ONE + f"    endpoint: {endpoint}\n"


@pytest.mark.parametrize("field", ["endpoint", "route"])
def test_the_endpoint_of_the_scenario_is_the_default_of_tenants(field: str) -> None:
    text = HEAD + f"{field}: chat\n" + ONE + "    endpoint: messages\n  - " + ONE[13:].replace("gold", "spot")
    assert [each.endpoint for each in made(text).tenants] == [Endpoint.MESSAGES, Endpoint.CHAT]


def test_a_tenant_has_options_of_its_requests() -> None:
    more = (
        "    model: sql-adapter\n    ignore_eos: false\n    headers: {X-Team: a, X-Secret: {env: GOLD_KEY}}\n"
        "    extra_body: {top_p: 0.5, seed: 12345678901234567890, stop: [a], guided: {on: true, off: null}}\n"
    )
    scenario = made(HEAD + ONE + more)
    who = scenario.tenants[0]
    assert (who.model, who.ignore_eos) == ("sql-adapter", False)
    assert who.headers == (Header("X-Team", "a"), Header("X-Secret", "sk-gold"))
    assert dict(who.extra_body) == {
        "top_p": 0.5, "seed": 12345678901234567890, "stop": ["a"], "guided": {"on": True, "off": None},
    }  # fmt: skip
    shown = str(described(scenario))
    assert "sk-gold" not in shown
    assert "X-Secret" in shown
    assert "completions (sql-adapter, top_p, seed, stop, guided)" in explain(scenario)


@pytest.mark.parametrize(("endpoint", "batch"), [("embeddings", 1), ("rerank", 10)])
def test_endpoints_without_output_need_none(endpoint: str, batch: int, tmp_path: Path) -> None:
    text = to(endpoint).replace("    output: 20\n", "")
    who = made(text).tenants[0]
    assert (who.output, who.batch, who.ignore_eos) == (Fixed(0), batch, False)
    assert made(text + "    batch: 3\n").tenants[0].batch == 3
    (tmp_path / "t.jsonl").write_text('{"at": 1, "input": 7, "output": 8}\n')
    replayed = made(HEAD + REPLAYED + f"    endpoint: {endpoint}\n", tmp_path).tenants[0].trace
    assert replayed == Trace("t.jsonl", (Traced(1.0, 7, 0),))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (to("chats"), "s.yaml:9: tenants[0].endpoint is 'chats', which is not one of"),
        (
            to("rerank"),
            "s.yaml:8: tenants[0].output is not a part of requests to the rerank endpoint; remove 'output:'",
        ),
        (to("messages") + "    ignore_eos: true\n", "ignore_eos is not a part of"),
        (to("messages") + "    priority: 1\n", "priority is not a part of requests"),
        (to("chat") + "    batch: 2\n", "batch is not a part of requests"),
        (
            to("rerank").replace("output: 20", "prefix: {tokens: 4}"),
            "prefix is not a part of requests to the rerank endpoint",
        ),
        (HEAD + "route: chat\nendpoint: chat\n" + ONE, "has both endpoint and its former name route"),
        (HEAD + ONE + "    headers: {'a b': c}\n", "tenants[0].headers.a b is not the name of a header"),
        (HEAD + ONE + "    headers: {Host: c}\n", "headers.Host is a header that loadgen sets itself"),
        (HEAD + ONE + "    key: k\n    headers: {X-Api-Key: c}\n", "is a header for keys, and the tenant"),
        (HEAD + ONE + "    headers: {X-Team: {env: NONE}}\n", "env names NONE, which is not set"),
        (HEAD + ONE + '    headers: {X-Team: "a\\nb"}\n', "has characters that a header cannot contain"),
        (
            HEAD + ONE + "    extra_body: {max_tokens: 5}\n",
            "extra_body.max_tokens is a field that loadgen sets itself; write the scenario's 'output:'",
        ),
        (HEAD + ONE + "    extra_body: {at: 2026-01-01}\n", "extra_body.at is not a value of JSON but"),
        (HEAD + ONE + "    extra_body: {at: .inf}\n", "extra_body.at is not a number but '.inf'"),
    ],
)
def test_wrong_options_of_requests_are_named(text: str, error: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        made(text)
    assert error in str(raised.value)
