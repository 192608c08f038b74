"""Texts of exact lengths: words of one token, counted recorded texts, and the warning about other lengths."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from loadgen import prompts
from loadgen.arrivals import requests
from loadgen.fields import ScenarioError
from loadgen.preparing import prepare, prepared
from loadgen.prompt_lengths import findings
from loadgen.reading import parse
from loadgen.records import described
from loadgen.report import notes
from loadgen.scenario import (
    Constant,
    Endpoint,
    Message,
    Prefix,
    PromptForm,
    Scenario,
    Tokenizer,
    Trace,
    Traced,
    Uniform,
    Wording,
)
from loadgen.summary import summarise
from loadgen.tokenizing import FileCounter
from loadgen.wording import CANDIDATES, learn
from tests.support.loadgen_builders import attempt, run, scenario, tenant

UNCOMMON = {word for word in CANDIDATES if word.endswith("e")}


class Words:
    """A tokenizer with a token for each word, two for uncommon ones, and a template around a chat."""

    def __init__(self, template: int = 7, per_byte: float | None = None) -> None:
        self.template = template
        self.per_byte = per_byte
        self.counted: list[str] = []

    async def prompt(self, fields: Mapping[str, Any]) -> int:
        messages = fields.get("messages")
        texts = [each["content"] for each in messages] if messages is not None else [fields["prompt"]]
        return sum([await self.text(text) for text in texts]) + self.template

    async def text(self, text: str) -> int:
        self.counted.append(text)
        if self.per_byte is not None:
            return round(len(text) * self.per_byte)
        return sum(1 + (word in UNCOMMON) for word in re.findall(r"\w+", text))


def texts(**fields: Any) -> Scenario:
    made = {"prompt": PromptForm.TEXT, "tokenizer": Tokenizer(), **fields}
    sizes = {"input": Uniform(10, 300), "prefix": Prefix(0.5, 40, "system"), "endpoint": Endpoint.CHAT}
    return scenario(tenant(**sizes), tenant("spot", Constant(1.0), **sizes), **made)


def worded(ready: Scenario) -> Wording:
    found = ready.tenants[0].wording
    assert found is not None
    return found


async def lengths(counter: Words, ready: Scenario) -> list[tuple[int, int]]:
    """What was asked for, and what is counted, for some requests of each tenant."""
    return [
        (request.input_tokens, await counter.prompt(json.loads(prompts.body(ready, who, request, 3))))
        for who in ready.tenants
        for request in islice(requests(who, 3), 50)
    ]


async def test_words_of_one_token_make_exact_lengths() -> None:
    counter = Words()
    ready, said = await prepared(texts(), counter)
    assert worded(ready).overhead == 7
    assert set(worded(ready).words) == set(CANDIDATES) - UNCOMMON
    assert said == []
    found = await lengths(counter, ready)
    assert [count for _, count in found] == [asked for asked, _ in found]
    assert "words" not in str(described(ready))


async def test_a_shared_prefix_is_equal_text() -> None:
    ready, _ = await prepared(texts(), Words())
    who = ready.tenants[0]
    sent = [
        prompts.content(ready, who, request, 3).split()
        for request in islice(requests(who, 3), 50)
        if request.has_prefix and request.input_tokens > 100
    ]
    assert len({tuple(words[:40]) for words in sent}) == 1
    assert len({tuple(words[40:50]) for words in sent}) == len(sent) > 5


async def test_a_prompt_shorter_than_the_template_is_said() -> None:
    ready, said = await prepared(texts(), Words(template=200))
    assert len(said) == 1
    assert re.fullmatch(
        r"Before the run, \d+ of 16 counted prompts differed from the requested length, "
        r"by up to \+\d+ tokens\.",
        said[0],
    )
    assert worded(ready).overhead == 200


async def test_a_tokenizer_without_words_is_measured_by_bytes() -> None:
    counter = Words(per_byte=0.9)
    ready, _ = await prepared(texts(), counter)
    assert (worded(ready).words, worded(ready).overhead) == ((), 7)
    assert worded(ready).tokens_per_byte == pytest.approx(0.9)
    assert all(abs(asked - count) <= 1 for asked, count in await lengths(counter, ready))


async def test_words_that_merge_are_not_used() -> None:
    async def merged(text: str) -> int:
        return len(re.sub(r"\b([a-m]\w*) (?!\1)[n-z]", "", text).split())

    assert (await learn(merged, 1)).words == ()


async def test_recorded_texts_are_counted() -> None:
    known = tuple(
        Traced(0.0, 99, 99, (), (Message("user", "one two " * times),), "three four five")
        for times in (1, 2, 9)
    )
    who = tenant(trace=Trace("t", known, most_input=15), endpoint=Endpoint.CHAT)
    world = scenario(who, prompt=PromptForm.TEXT, tokenizer=Tokenizer())
    ready, said = await prepared(world, Words())
    trace = ready.tenants[0].trace
    assert trace is not None
    assert [(each.input_tokens, each.output_tokens) for each in trace.requests] == [
        (10, 4),
        (13, 4),
    ]
    assert said == ["t: 1 requests with more than 15 input tokens are left out, by the tokenizer's count."]


async def test_the_longest_output_holds_for_counted_answers_of_all_turns() -> None:
    asked, long = (Message("user", "one two"),), "three " * 9
    later = (Traced(0.0, 9, 3, messages=asked, answer=long), Traced(0.0, 9, 3, messages=asked, answer="four"))
    known = Traced(0.0, 9, 3, (), asked, long, later)
    who = tenant(trace=Trace("t", (known,), most_output=3), endpoint=Endpoint.CHAT)
    ready, _ = await prepared(scenario(who, prompt=PromptForm.TEXT, tokenizer=Tokenizer()), Words())
    trace = ready.tenants[0].trace
    assert trace is not None
    (first,) = trace.requests
    assert [first.output_tokens, *(turn.output_tokens for turn in first.later)] == [3, 3, 1]


async def test_a_trace_of_texts_that_are_all_too_long_is_an_error() -> None:
    known = (Traced(0.0, 9, 9, (), (Message("user", "one two"),), "three"),)
    world = scenario(tenant(trace=Trace("t", known, most_input=5)), tokenizer=Tokenizer())
    with pytest.raises(ScenarioError, match="t: each request has more than 5 input tokens; write a higher"):
        await prepared(world, Words())


async def test_without_a_tokenizer_nothing_is_counted() -> None:
    world = scenario(tenant(trace=Trace("t", (Traced(0.0, 9, 9),), notes=("t: 1 outputs are cut.",))))
    assert await prepare(world, "http://127.0.0.1:1") == (world, ["t: 1 outputs are cut."])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("tokenizer: gpt", "s.yaml:4: tokenizer is 'gpt', which is not one of engine"),
        ("tokenizer: {path: a}", "s.yaml:4: tokenizer.path is not a known field"),
        (
            "tokenizer: engine\nprompt: ids",
            "s.yaml:4: tokenizer cannot be combined with token ids, whose lengths are exact; remove",
        ),
        (
            "tokenizer: engine\ntokens_per_byte: 0.3",
            "s.yaml:5: tokens_per_byte cannot be combined with a tokenizer, which counts tokens; remove it",
        ),
    ],
)
def test_a_bad_tokenizer_field_names_its_fix(line: str, error: str) -> None:
    tenants = "tenants: [{name: a, arrivals: {poisson: {rate: 1}}, input: 1, output: 1}]\n"
    with pytest.raises(ScenarioError) as raised:
        parse(f"name: t\nmodel: m\nduration_s: 1\n{line}\n{tenants}", "s.yaml", {}, Path())
    assert error in str(raised.value)


def test_a_tokenizer_is_relative_to_the_scenario_and_needs_text() -> None:
    tenants = "tenants: [{name: a, arrivals: {poisson: {rate: 1}}, input: 1, output: 1}]\n"
    head = "name: t\nmodel: m\nduration_s: 1\ntokenizer: {file: tok.json}\n"
    made = parse(head + tenants, "s.yaml", {}, Path("/there"))
    assert (made.tokenizer, made.prompt) == (Tokenizer("/there/tok.json"), PromptForm.TEXT)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ScenarioError, match=r"the library 'tokenizers' is missing; install 'tokenpool\[tok"):
        FileCounter("tok.json")


async def test_a_tokenizer_file_is_read(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocabulary = {word: place for place, word in enumerate(["?", *CANDIDATES])}
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }  # fmt: skip
    (tmp_path / "tok.json").write_text(json.dumps(made))
    world = texts(tokenizer=Tokenizer(str(tmp_path / "tok.json")))
    ready, said = await prepare(world, "http://127.0.0.1:1")
    assert said == []
    assert (worded(ready).words, worded(ready).overhead) == (CANDIDATES, 0)
    (tmp_path / "tok.json").write_text("{}")
    with pytest.raises(ScenarioError, match=r"tok.json: cannot be read \(.*\); name a file tokenizer.json"):
        FileCounter(str(tmp_path / "tok.json"))


def test_other_prompt_lengths_than_asked_are_a_warning() -> None:
    same = [attempt(float(at), prompt_tokens=10) for at in range(3)]
    assert findings(run(*same, attempt(8.0))) == []
    other = run(*same, attempt(4.0, prompt_tokens=13), attempt(5.0, prompt_tokens=9))
    sentence = (
        "2 of 5 prompts (40.0%) had other lengths than requested: -1 to +3 tokens, +4.00% in all."
        " Write 'tokenizer: engine' for exact lengths."
    )
    summary = summarise(other)
    assert summary.notes == [sentence]
    assert sentence in notes(other.meta, summary)
    exact = run(attempt(4.0, prompt_tokens=13), scenario={"tokenizer": {"file": ""}}, notes=["t: a cut."])
    assert findings(exact)[0].endswith("in all.")
    assert "t: a cut." in notes(exact.meta, summarise(exact))


@pytest.mark.parametrize("per_byte", [0.0, 5.0, -1.0])
async def test_counts_that_are_none_of_a_text_are_an_error(per_byte: float) -> None:
    with pytest.raises(
        ScenarioError, match=r"tokens in 2000 bytes of text, .*; name a tokenizer that counts"
    ):
        await learn(Words(per_byte=per_byte).text, seed=1)
