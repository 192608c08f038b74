"""Importers of recorded workloads: their formats, the asked part, and the hits of a prefix cache."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path

import msgspec
import pytest

from loadgen import prompts
from loadgen.arrivals import arrivals, expected_requests, requests
from loadgen.conversations import Talk, turns
from loadgen.explaining import explain
from loadgen.fields import ScenarioError
from loadgen.reading import parse
from loadgen.scenario import Closed, Endpoint, Message, Scenario, Trace, Traced
from loadgen.workloads import azure, burstgpt, mooncake, sharegpt
from loadgen.workloads.prefix_hits import best_share, hits
from loadgen.workloads.rows import Row
from loadgen.workloads.selection import Selection, select
from loadgen.workloads.sharegpt import Turns
from tests.support.loadgen_builders import attempt, scenario, tenant
from tests.unit.loadgen.engine.steps import Engine

EXCERPT = Path(__file__).parents[2] / "support" / "traces" / "mooncake-conversation-excerpt.jsonl"
DOCUMENT = Path(__file__).parents[3] / "docs" / "workloads.md"
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,100,10
2023-11-16 18:00:01.5000000,2000,20
2023-11-16 18:00:03.0000000,300,900
2023-11-16 18:00:04.0000000,40,0
2023-11-16 18:00:06.0000000,500,50
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-12 00:00:00.003948+00:00,1000,5
2024-05-12 00:00:01+00:00,2000,6
"""
BURST = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,400,30,430,Conversation log
45,GPT-4,500,0,500,API log
118,GPT-4,600,70,670,API log
"""
BURST_SESSIONS = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19000000.0,0f-1,43,GPT-4,900,40,940,Conversation log
19000051.0,0f-2,2,ChatGPT,36,29,65,Conversation log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 3052, "input_length": 700, "output_length": 26, "hash_ids": [46, 49]}
"""
TALK = [
    {"from": "gpt", "value": "Welcome."},
    {"from": "human", "value": "How far is the moon?"},
    {"from": "gpt", "value": "384,400 km on average."},
    {"from": "human", "value": "And the sun?"},
    {"from": "gpt", "value": "About 150 million km."},
]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "Hello."},
]


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def traced(folder: Path, trace: str, text: str = AZURE, more: str = "") -> Trace:
    written(folder, text)
    found = world(folder, f"trace: {trace}{more}").tenants[0].trace
    assert found is not None
    return found


def world(folder: Path, *fields: str) -> Scenario:
    lines = "".join(f"    {field}\n" for field in fields)
    head = f"name: test\nmodel: tiny\nduration_s: 60\ntenants:\n  - name: gold\n{lines}"
    return parse(head, "s.yaml", {}, folder)


def sizes(trace: Trace) -> list[tuple[float, int, int]]:
    return [(each.at_s, each.input_tokens, each.output_tokens) for each in trace.requests]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_azure_traces_of_2023_are_read(tmp_path: Path, name: str) -> None:
    rows = list(azure.read(written(tmp_path, AZURE, name)))
    assert [row.at_s - rows[0].at_s for row in rows] == [0.0, 1.5, 3.0, 4.0, 6.0]
    assert (rows[1].line, rows[1].input_tokens, rows[1].output_tokens) == (3, 2000, 20)


def test_azure_traces_of_2024_are_read(tmp_path: Path) -> None:
    first, second = azure.read(written(tmp_path, "\ufeff" + AZURE_2024))
    assert second.at_s - first.at_s == pytest.approx(0.996052)
    assert (second.input_tokens, second.output_tokens) == (2000, 6)


def test_burstgpt_is_read_by_model_and_log_type(tmp_path: Path) -> None:
    path = written(tmp_path, BURST)
    assert [row.at_s for row in burstgpt.read(path)] == [5.0, 45.0, 118.0]
    assert [row.line for row in burstgpt.read(path, "GPT-4")] == [3, 4]
    assert [row.line for row in burstgpt.read(path, "", "Conversation log")] == [2]
    first, second = burstgpt.read(written(tmp_path, BURST_SESSIONS))
    assert (second.at_s - first.at_s, second.input_tokens, second.output_tokens) == (51.0, 36, 29)


def test_mooncake_is_read_with_its_blocks(tmp_path: Path) -> None:
    first, second = mooncake.read(written(tmp_path, MOONCAKE))
    assert first == Row(1, 0.0, 1200, 52, (46, 47, 48))
    assert second == Row(2, 3.052, 700, 26, (46, 49))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"id": "a", "conversations": TALK}, {"messages": MESSAGES}], indent=1),
        json.dumps({"conversations": TALK}) + "\n\n" + json.dumps({"messages": MESSAGES}),
    ],
)
def test_conversations_are_read_as_single_requests(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    first, other = sharegpt.read(path)
    assert first.messages == (Message("user", "How far is the moon?"),)
    assert first.answer == "384,400 km on average."
    assert other.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    each = list(sharegpt.read(path, Turns.EACH))
    assert [len(row.messages) for row in each] == [1, 3, 2]
    assert each[1].messages[1] == Message("assistant", "384,400 km on average.")
    assert (first.input_tokens, first.output_tokens) == (5, 6)  # four bytes a token, until they are counted


def test_whole_conversations_are_kept_together(tmp_path: Path) -> None:
    written(tmp_path, json.dumps([{"conversations": TALK}]), "t.json")
    trace = "trace: {sharegpt: {file: t.json, turns: conversation}}"
    fields = (trace, "arrivals: {poisson: {rate: 1}}", "endpoint: chat")
    made = world(tmp_path, *fields, "conversation: {think_s: 3}")
    (who,) = made.tenants
    assert who.conversation is not None
    first = next(requests(who, 1))
    asked = list(turns(who, who.conversation, first, 1))
    assert [(turn.number, turn.think_s) for turn in asked] == [(1, 0.0), (2, 3.0)]
    talk = Talk(made, who)
    talk.ask(asked[0])
    assert talk.hear(attempt(1.0, prompt_tokens=20), "Far.")
    request, body = talk.ask(asked[1])
    assert [said["content"] for said in json.loads(body)["messages"]] == [
        "How far is the moon?", "Far.", "And the sun?",
    ]  # fmt: skip
    assert (request.input_tokens, request.output_tokens) == (20 + 5 + 3, 5)
    assert expected_requests(made, who) == pytest.approx(60 * 2)
    with pytest.raises(
        ScenarioError, match=r"trace has whole conversations; add 'conversation: \{think_s: 5\}'"
    ):
        world(tmp_path, *fields)
    with pytest.raises(ScenarioError, match="turns is not a known field"):
        world(tmp_path, *fields, "conversation: {think_s: 3, turns: 2}")


def test_equal_conversations_have_lines_of_their_own(tmp_path: Path) -> None:
    one = json.dumps({"messages": MESSAGES}, indent=1)
    lines = [row.line for row in sharegpt.read(written(tmp_path, f"[{one},\n{one}]"))]
    assert lines == [1, 1 + one.count("\n") + 1]


@pytest.mark.parametrize(
    ("form", "text", "error"),
    [
        (
            "azure",
            "time,input\n",
            "t.csv:1: there is no column 'TIMESTAMP'; give a file of an Azure LLM trace",
        ),
        (
            "azure",
            AZURE.replace("2023-11-16 18:00:03.0", "noon"),
            "t.csv:4: TIMESTAMP is 'noon000000'; write a",
        ),
        (
            "azure",
            AZURE.replace("300", "-3"),
            "t.csv:4: ContextTokens is '-3'; write a whole number of tokens",
        ),
        ("azure", AZURE.replace(",900", ""), "t.csv:4: has 2 columns; write all columns of the first line"),
        (
            "azure",
            AZURE + '"' + "x" * 200_000,
            "field larger than field limit (131072); give a text file of comma-separated values",
        ),
        ("azure", '"' + "x" * 200_000, "field larger than field limit (131072); give a text file"),
        ("azure", AZURE.replace("18:00:03", "17:00:03"), "t.csv:4: its time is 3598.500 s before that of an"),
        ("azure", "", "t.csv:1: there is no column"),
        ("burstgpt", BURST.replace("118", "soon"), "t.csv:4: Timestamp is 'soon'; write a number of seconds"),
        ("burstgpt", BURST.replace("600", "6.5"), "t.csv:4: Request tokens is '6.5'; write a whole number"),
        ("mooncake", MOONCAKE.replace("700", "512"), "t.csv:2: 2 hash_ids exceed the 1 blocks of 512 tokens"),
        ("mooncake", MOONCAKE.replace("26", "-1"), "t.csv:2: a length is negative; write lines such as"),
        ("mooncake", MOONCAKE + "{", "t.csv:3: Input data was truncated; write lines such as"),
        ("mooncake", '{"timestamp": 1}', "t.csv:1: Object missing required field `input_length`; write"),
        ("sharegpt", '[\n{"messages": [\n]]', "t.csv:3: JSON is malformed"),
        (
            "sharegpt",
            '[\n{"x": 1},\n{"text": 2}]',
            "t.csv:2: the conversation has neither 'conversations' nor",
        ),
        (
            "sharegpt",
            '[{"messages": [{"role": "bot"}]}]',
            "t.csv:1: a message is from 'bot'; write one of human",
        ),
        ("sharegpt", '[\n\n{"messages": 3}]', "t.csv:3: Expected `array | null`, got `int`"),
        ("sharegpt", "[]", "t.csv: there is no request in the selected part"),
    ],
)
def test_a_bad_file_names_line_and_fix(tmp_path: Path, form: str, text: str, error: str) -> None:
    written(tmp_path, text)
    with pytest.raises(ScenarioError) as raised:
        world(tmp_path, f"trace: {{{form}: {{file: t.csv}}}}", "arrivals: {poisson: {rate: 1}}")
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_unpacked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(b"plain")
    (tmp_path / "half.json.gz").write_bytes(gzip.compress(b"[" * 999)[:-9])
    (tmp_path / "latin.csv").write_bytes(b"TIMESTAMP,\xff\n")
    with pytest.raises(ScenarioError, match=r"cannot be read \(Not a gzipped file .*; name a text file"):
        list(azure.read(tmp_path / "t.csv.gz"))
    with pytest.raises(ScenarioError, match="cannot be read"):
        list(sharegpt.read(tmp_path / "half.json.gz"))
    with pytest.raises(ScenarioError, match="save it as UTF-8"):
        list(azure.read(tmp_path / "latin.csv"))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            ["trace: {sharegpt: {file: t.csv}}"],
            "trace has no times of its own; add 'arrivals:' to the tenant",
        ),
        (
            ["trace: {azure: {file: t.csv, speed: 2, rate: 3}}"],
            "rate cannot be combined with speed; keep one of the two",
        ),
        (["trace: {azure: {file: t.csv, turns: each}}"], "turns is not a known field"),
        (["trace: {azure: {file: t.csv}}", "input: 3"], "input cannot be combined with a trace"),
        (
            ["trace: {azure: {file: t.csv}}", "conversation: {turns: 2, think_s: 1}"],
            "conversation cannot be combined with a trace",
        ),
        (["trace: {azure: {file: t.csv, start_s: 60}}"], "there is no request in the selected part"),
        (["trace: {azure: {file: t.csv, duration_s: 1, rate: 5}}"], None),
        (["trace: {azure: {file: t.csv, most_requests: 1, rate: 5}}"], "so they have no rate; remove rate"),
        (
            ["trace: {sharegpt: {file: talk}}", "arrivals: {poisson: {rate: 1}}", "endpoint: embeddings"],
            "trace has conversations, which the embeddings endpoint does not take; use the chat endpoint",
        ),
        (["trace: {mooncake: {file: m, lengths: 0.1}}"], "so a block of 512 tokens would have 51.2; write"),
        (
            ["trace: {mooncake: {file: m}}", "prefix: {tokens: 3}"],
            "prefix cannot be combined with a trace, which has",
        ),
    ],
)
def test_a_bad_trace_field_names_its_fix(tmp_path: Path, fields: list[str], error: str | None) -> None:
    written(tmp_path, AZURE)
    written(tmp_path, MOONCAKE, "m")
    written(tmp_path, json.dumps({"messages": MESSAGES}), "talk")
    if error is None:
        world(tmp_path, *fields)
        return
    with pytest.raises(ScenarioError) as raised:
        world(tmp_path, *fields)
    assert error in str(raised.value)


def test_a_part_of_a_trace_is_taken_and_scaled(tmp_path: Path) -> None:
    assert sizes(traced(tmp_path, "{azure: {file: t.csv, start_s: 1, duration_s: 5}}")) == [
        (0.5, 2000, 20), (2.0, 300, 900),
    ]  # fmt: skip
    fast = traced(tmp_path, "{azure: {file: t.csv, speed: 2, lengths: 0.1, most_requests: 2}}")
    assert sizes(fast) == [(0.0, 10, 1), (0.75, 200, 2)]
    paced = traced(tmp_path, "{azure: {file: t.csv, duration_s: 5, rate: 6}}")
    assert [each.at_s for each in paced.requests] == [
        0.0,
        0.15,
        0.3,
    ]  # three requests in five seconds are 0.6


def test_what_is_cut_is_counted_and_said(tmp_path: Path) -> None:
    trace = traced(tmp_path, "{azure: {file: t.csv, most_input: 400, most_output: 100, rate: 1}}")
    assert [inputs for _, inputs, _ in sizes(trace)] == [100, 400, 300, 400]
    assert trace.notes == (
        "t.csv: the gaps are divided by 1.5 for 1 requests per second.",
        "t.csv: 2 inputs are cut to 400 tokens, by 1700 tokens in all (58.6% of them).",
        "t.csv: 1 outputs are cut to 100 tokens, by 800 tokens in all (81.6% of them).",
        "t.csv: 1 requests without input or output tokens are left out.",
    )
    talks = traced(
        tmp_path, "{sharegpt: {file: t.csv, turns: each, most_input: 10}}", json.dumps([{"messages": TALK}]),
        "\n    arrivals: {poisson: {rate: 1}}",
    )  # fmt: skip
    assert talks.notes == ("t.csv: 1 requests with more than 10 input tokens are left out.",)


def test_the_longest_output_cuts_the_answers_of_all_turns() -> None:
    later = (Traced(0.0, 5, 900), Traced(0.0, 5, 50))
    row = Row(1, 0.0, 10, 500, (), (Message("user", "x"),), "y", later)
    trace = select([row], Selection(most_output=100), Path("f"), "f")
    (first,) = trace.requests
    assert [first.output_tokens, *(turn.output_tokens for turn in first.later)] == [100, 100, 50]
    assert trace.notes == ("f: 2 outputs are cut to 100 tokens, by 1200 tokens in all (82.8% of them).",)


def test_rows_may_be_a_little_out_of_order() -> None:
    rows = [Row(line, at, 1, 1) for line, at in enumerate((10.0, 12.0, 11.5, 13.2, 13.0, 12.9), 1)]
    part = select(iter(rows), Selection(duration_s=3.0), Path("t"), "t")
    assert [each.at_s for each in part.requests] == pytest.approx([0.0, 1.5, 2.0, 2.9])


def test_reading_ends_soon_after_the_asked_part() -> None:
    endless = (Row(line, float(line), 1, 1) for line in itertools.count())
    assert len(select(endless, Selection(duration_s=5.0), Path("t"), "t").requests) == 5


def test_another_process_sends_the_requests_of_a_trace_in_order(tmp_path: Path) -> None:
    written(tmp_path, MOONCAKE)
    made = world(tmp_path, "trace: {mooncake: {file: t.csv}}", "arrivals: {constant: {rate: 1}}")
    sent = [arrival.request.input_tokens for arrival in arrivals(made, made.tenants[0], 1)]
    assert sent[:5] == [1200, 700, 1200, 700, 1200]


def test_the_workers_of_a_closed_loop_share_a_trace() -> None:
    trace = Trace("t", tuple(Traced(0.0, size, 1) for size in range(1, 7)))
    who = tenant(process=Closed(3, 0.0), trace=trace)
    sent = {
        w: [r.input_tokens for r in itertools.islice(requests(who, 1, w, 3), 3)] for w in ("w0", "w1", "w2")
    }
    assert sent == {"w0": [1, 4, 1], "w1": [2, 5, 2], "w2": [3, 6, 3]}


def test_embeddings_of_a_trace_have_no_output(tmp_path: Path) -> None:
    written(tmp_path, AZURE)
    (who,) = world(tmp_path, "trace: {azure: {file: t.csv}}", "endpoint: embeddings").tenants
    assert who.trace is not None
    assert {outputs for _, _, outputs in sizes(who.trace)} == {0}


def test_the_examples_of_the_document_are_read(tmp_path: Path) -> None:
    written(tmp_path, AZURE + AZURE.split("\n", 1)[1].replace("18:00", "18:15"), "a.csv")
    (tmp_path / "a.csv").rename(tmp_path / "AzureLLMInferenceTrace_conv.csv")
    written(tmp_path, MOONCAKE, "conversation_trace.jsonl")
    written(tmp_path, BURST.replace(",0,500", ",9,509"), "BurstGPT_1.csv")
    written(tmp_path, json.dumps([{"conversations": TALK}]), "sharegpt.json")
    examples = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = []
    for example in examples:
        made = parse(example, "s.yaml", {}, tmp_path)
        (who,) = made.tenants
        assert who.trace is not None
        names.append((made.name, len(who.trace.requests)))
    assert names == [("azure", 4), ("mooncake", 2), ("burstgpt", 2), ("sharegpt", 2)]


def test_an_explanation_says_what_a_trace_is(tmp_path: Path) -> None:
    written(tmp_path, MOONCAKE)
    text = explain(world(tmp_path, "trace: {mooncake: {file: t.csv, most_output: 30}}"))
    assert "trace of gold: 2 requests of t.csv" in text
    assert "an unbounded prefix cache hits 26.9% of the input" in text
    assert "t.csv: 1 outputs are cut to 30 tokens, by 22 tokens in all" in text


def bodies(trace: Trace, endpoint: Endpoint = Endpoint.COMPLETIONS) -> list[dict[str, object]]:
    who = tenant(trace=trace, endpoint=endpoint)
    made = scenario(who)
    sent = itertools.islice(requests(who, 1), len(trace.requests))
    return [msgspec.json.decode(prompts.body(made, who, request, 1)) for request in sent]


def test_equal_blocks_are_equal_tokens_and_equal_text() -> None:
    trace = Trace("t", (Traced(0, 70, 1, (1, 2, 3)), Traced(0, 60, 1, (1, 2)), Traced(0, 40, 1, (4, 2))), 32)
    first, second, third = (body["prompt"] for body in bodies(trace))
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert isinstance(third, list)
    assert [len(ids) for ids in (first, second, third)] == [70, 60, 40]
    assert first[:60] == second
    assert first[:32] != third[:32]
    assert first[32:40] == third[32:40]
    texts = [body["messages"] for body in bodies(trace, Endpoint.CHAT)]
    one, two = (str(messages[0]["content"]) for messages in texts[:2])  # type: ignore[index]
    assert (len(one), one[:240]) == (280, two)


def test_recorded_text_is_sent_as_it_is(tmp_path: Path) -> None:
    rows = sharegpt.read(written(tmp_path, json.dumps([{"conversations": TALK}])), Turns.EACH)
    trace = select(rows, Selection(), Path("t"), "t")
    last = bodies(trace, Endpoint.CHAT)[1]
    assert last["messages"] == [
        {"role": "user", "content": "How far is the moon?"},
        {"role": "assistant", "content": "384,400 km on average."},
        {"role": "user", "content": "And the sun?"},
    ]
    assert bodies(trace)[0]["prompt"] == "How far is the moon?"


@pytest.mark.parametrize("blocks", [None, 160, 240, 500, 1000])
def test_hits_are_those_of_the_simulated_engine(blocks: int | None) -> None:
    """One request after the other, with and without a bound on the cache."""
    trace = select(mooncake.read(EXCERPT), Selection(lengths=1 / 16), EXCERPT, "t", block=mooncake.BLOCK)
    engine = Engine(block_size=16, blocks=blocks or 1 << 16, window=160 * 16, batched_tokens=1 << 16)
    for body in bodies(trace):
        prompt, bound = body["prompt"], body["max_tokens"]
        assert isinstance(prompt, list)
        assert isinstance(bound, int)
        engine.add(prompt, bound)
        engine.run()
    counted = engine.scheduler.statistics
    assert counted.cache_hits == hits(trace, 16, blocks)
    assert counted.cache_queries == sum(request.input_tokens for request in trace.requests)
    if blocks is None:
        assert counted.cache_hits / counted.cache_queries == best_share(trace) > 0.4
    elif blocks <= 500:
        assert counted.cache_hits < hits(trace, 16)


def test_the_best_share_counts_the_longest_known_beginning() -> None:
    ids = ((0, 1, 2), (0, 1, 3), (4, 1, 2), (0, 1, 2))
    trace = Trace("t", tuple(Traced(0.0, 96, 1, blocks) for blocks in ids), 32)
    # The last token of a prompt is always computed, and with it its block of 16.
    assert best_share(trace) == pytest.approx((64 + 80) / (4 * 96))
