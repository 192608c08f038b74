"""Gamma arrivals, warm-up and cool-down, cancellations and conversations: fields, arrivals and counts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from loadgen import report
from loadgen.arrivals import arrivals, expected_requests, offered_rate, requests
from loadgen.conversations import Talk, Turn, turns
from loadgen.explaining import explain
from loadgen.fields import ScenarioError
from loadgen.reading import parse
from loadgen.records import Outcome
from loadgen.scenario import (
    Between,
    Cancel,
    Closed,
    Conversation,
    Endpoint,
    Exponential,
    Fixed,
    Gamma,
    Pauses,
    PromptForm,
    Replay,
    Scenario,
    Tenant,
    Trace,
    Traced,
    Uniform,
    lasting,
)
from loadgen.summary import WHOLE, spans, summarise
from tests.support.loadgen_builders import attempt, meta, run, scenario, tenant

HEAD = "name: test\nmodel: tiny\nduration_s: 60\n"
ONE = "tenants:\n  - name: gold\n    arrivals: {poisson: {rate: 5}}\n    input: 100\n    output: 20\n"


def made(text: str) -> Scenario:
    return parse(text, "s.yaml", {}, Path())


def gaps(cv: float, seeds: int) -> list[float]:
    who = tenant(process=Gamma(10.0, cv))
    found: list[float] = []
    for seed in range(seeds):
        moments = [arrival.at_s for arrival in arrivals(scenario(who), who, seed)]
        found += [b - a for a, b in itertools.pairwise(moments)]
    return found


@pytest.mark.parametrize("cv", [0.25, 1.0, 2.0])
def test_gaps_of_gamma_arrivals_have_the_mean_and_the_coefficient_of_variation(cv: float) -> None:
    found = gaps(cv, seeds=20)
    assert fmean(found) == pytest.approx(0.1, rel=0.1)
    assert pstdev(found) / fmean(found) == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("cv", [0.25, 1.0, 4.0])
def test_the_expected_number_of_gamma_arrivals_is_the_integral_of_the_rate_also_in_short_runs(
    cv: float,
) -> None:
    who = tenant(process=Gamma(2.0, cv))
    short = scenario(who, duration_s=5.0)
    counts = [len(list(arrivals(short, who, seed))) for seed in range(3000)]
    assert fmean(counts) == pytest.approx(10.0, abs=4 * pstdev(counts) / 3000**0.5 + 1e-9)


def test_the_fields_of_load_models_are_read() -> None:
    text = (
        HEAD
        + "endpoint: chat\nwarm_up_s: 5\ncool_down_s: 2.5\n"
        + ONE.replace("poisson: {rate: 5}", "gamma: {rate: 5, cv: 2}")
        + "    cancel: {share: 0.1, after_tokens: 8}\n"
        + "    conversation: {turns: 3, think_s: 4, later_input: 7, later_output: {fixed: 9}}\n"
    )
    scenario = made(text)
    who = scenario.tenants[0]
    assert (scenario.warm_up_s, scenario.cool_down_s, who.process) == (5.0, 2.5, Gamma(5.0, 2.0))
    assert who.cancel == Cancel(0.1, after_tokens=8)
    assert who.conversation == Conversation(Fixed(3), 4.0, Fixed(7), Fixed(9))
    assert made(HEAD + ONE + "    cancel: {share: 1, after_s: 0.5}\n").tenants[0].cancel == Cancel(1.0, 0.5)


@pytest.mark.parametrize(
    ("text", "conversation"),
    [
        (
            "{turns: {uniform: {least: 2, most: 6}}, think_s: {exponential: {mean: 5}}}",
            Conversation(Uniform(2, 6), Exponential(5.0)),
        ),
        (
            "{turns: 2, think_s: {uniform: {least: 1, most: 9}}}",
            Conversation(Fixed(2), Between(1.0, 9.0)),
        ),
    ],
)
def test_turns_and_pauses_may_be_drawn(text: str, conversation: Conversation) -> None:
    who = made(HEAD + "endpoint: chat\n" + ONE + f"    conversation: {text}\n").tenants[0]
    assert who.conversation == conversation


CHAT = HEAD + "endpoint: chat\n" + ONE


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            HEAD + ONE.replace("poisson: {rate: 5}", "gamma: {rate: 5, cv: 0}"),
            "s.yaml:6: tenants[0].arrivals.gamma.cv is 0; write at least 0.01",
        ),
        (
            HEAD + ONE.replace("poisson: {rate: 5}", "gamma: {rate: 5}"),
            "s.yaml:6: tenants[0].arrivals.gamma has no cv; add 'cv:'",
        ),
        (
            HEAD + "warm_up_s: 50\ncool_down_s: 10\n" + ONE,
            "has 60 s, of which a warm-up of 50 s and a cool-down of 10 s leave nothing to measure; make",
        ),
        (HEAD + ONE + "    cancel: {after_s: 1}\n", "s.yaml:9: tenants[0].cancel has no share; add 'share:'"),
        (
            HEAD + ONE + "    cancel: {share: 1}\n",
            "tenants[0].cancel must have either a time or a number of tokens; give either 'after_s:'",
        ),
        (
            HEAD + ONE + "    cancel: {share: 1, after_s: 1, after_tokens: 1}\n",
            "tenants[0].cancel must have either a time or a number of tokens",
        ),
        (
            HEAD + ONE + "    cancel: {share: 0, after_s: 1}\n",
            "tenants[0].cancel.share is 0; write more than 0",
        ),
        (
            HEAD + "stream: false\n" + ONE + "    cancel: {share: 1, after_tokens: 3}\n",
            "s.yaml:6: tenants[0] cancels after a number of tokens, but answers are not streamed; write",
        ),
        (CHAT + "    conversation: {turns: 0, think_s: 1}\n", "conversation.turns is 0; write at least 1"),
        (CHAT + "    conversation: {turns: 2}\n", "tenants[0].conversation has no think_s; add 'think_s:'"),
        (
            CHAT + "    conversation: {turns: {uniform: {least: 3, most: 2}}, think_s: 1}\n",
            "conversation.turns.uniform has least 3 above most 2; swap the two",
        ),
        (
            CHAT + "    conversation: {turns: 2, think_s: {exponential: {mean: 0}}}\n",
            "conversation.think_s.exponential.mean is 0; write more than 0",
        ),
        (
            CHAT.replace("poisson: {rate: 5}", "closed: {workers: 5}")
            + "    conversation: {turns: 2, think_s: 1}\n",
            "s.yaml:6: tenants[0] has conversations, which start at times of their own; use the arrivals",
        ),
        (
            HEAD + ONE + "    conversation: {turns: 2, think_s: 1}\n",
            "s.yaml:5: tenants[0] has conversations, whose turns carry answers as text; but prompts are "
            "token ids; write 'endpoint: chat', or 'prompt: text'",
        ),
    ],
)
def test_an_error_names_line_field_and_fix(text: str, error: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        made(text)
    assert error in str(raised.value)
    assert str(raised.value).startswith("s.yaml:")
    assert "\n" not in str(raised.value)


def test_a_share_of_requests_is_cancelled_and_changes_nothing_else() -> None:
    plain, stops = tenant(), tenant(cancel=Cancel(0.25, 1.0))
    made_plain, made_stops = (list(itertools.islice(requests(who, 3), 2000)) for who in (plain, stops))
    assert sum(r.is_cancelled for r in made_stops) / 2000 == pytest.approx(0.25, abs=0.05)
    assert not any(r.is_cancelled for r in made_plain)
    assert [(r.input_tokens, r.has_prefix) for r in made_plain] == [
        (r.input_tokens, r.has_prefix) for r in made_stops
    ]


def test_a_share_of_a_trace_is_cancelled() -> None:
    trace = tuple(Traced(at / 10, 5, 5) for at in range(900))
    who = tenant(process=Replay(), trace=Trace("t", trace), cancel=Cancel(0.5, 1.0))
    share = fmean(a.request.is_cancelled for a in arrivals(scenario(who), who, 1))
    assert share == pytest.approx(0.5, abs=0.06)


def test_warm_up_and_cool_down_do_not_count() -> None:
    kept = [attempt(at) for at in (2.0, 5.0, 8.9)]
    left = [
        attempt(0.5, 9.0, is_measured=False),
        attempt(9.5, None, outcome=Outcome.ERROR, is_measured=False),
    ]
    measured = run(*kept, *left, warm_up_s=1.0, cool_down_s=1.0)
    summary = summarise(measured)
    whole = summary.cell("gold", WHOLE)
    assert whole is not None
    assert (whole.requests, whole.outcomes, whole.seconds) == (3, {Outcome.SERVED: 3}, 8.0)
    assert whole.ttft.p99 is not None
    assert whole.ttft.p99.value == pytest.approx(0.1)
    assert "Measured: requests that were due from 1 to 9 s." in report.text(measured.meta, summary)
    assert "warm-up: 0 to 1 s" in report.html(measured, summary)


def test_phases_are_measured_without_warm_up_and_cool_down() -> None:
    found = spans(meta(warm_up_s=1.0, cool_down_s=6.0))
    assert [(span.name, span.from_s, span.to_s) for span in found] == [(WHOLE, 1.0, 4.0), ("alone", 1.0, 4.0)]


def test_warm_up_and_cool_down_scale_with_the_duration_and_are_explained() -> None:
    world = lasting(scenario(warm_up_s=10.0, cool_down_s=20.0), 50.0)
    assert (world.warm_up_s, world.cool_down_s) == (5.0, 10.0)
    assert [world.is_measured(at) for at in (4.9, 5.0, 39.9, 40.0)] == [False, True, True, False]
    assert "measured: requests that are due from 5 to 40 s" in explain(world)


def test_cancelled_requests_are_counted_on_their_own() -> None:
    early = attempt(1.0, None, lasts_s=2.0, outcome=Outcome.CANCELLED, tokens=0)
    late = attempt(2.0, 0.5, lasts_s=2.0, outcome=Outcome.CANCELLED, tokens=3)
    measured = run(attempt(3.0), early, late)
    summary = summarise(measured)
    whole = summary.cell("gold", WHOLE)
    assert whole is not None
    assert whole.outcomes == {Outcome.SERVED: 1, Outcome.CANCELLED: 2}
    # A wait that the client ended is a lower bound: without it, a slow server would look fast.
    assert (whole.bounds, whole.ttft.p99 and whole.ttft.p99.value) == (1, pytest.approx(2.0))
    told = report.text(measured.meta, summary)
    assert "2 requests were cancelled by their clients, as the scenario says." in told
    assert report.counts(whole) == ["3\n2 cancelled", "1", "0", "0"]


TALK = Conversation(Fixed(3), 2.0, Fixed(8), Fixed(6))


def spoken(who: Tenant, seed: int = 1) -> list[Turn]:
    assert who.conversation is not None
    return list(turns(who, who.conversation, next(requests(who, seed)), seed))


def test_the_turns_of_a_conversation_have_sizes_and_pauses_of_their_own() -> None:
    made_turns = spoken(tenant(conversation=TALK))
    assert [(t.number, t.request.input_tokens, t.request.output_tokens, t.think_s) for t in made_turns] == [
        (1, 16, 4, 0.0),
        (2, 8, 6, 2.0),
        (3, 8, 6, 2.0),
    ]
    like_the_first = spoken(tenant(conversation=Conversation(Fixed(2), 0.0)))
    assert [(t.request.input_tokens, t.request.output_tokens) for t in like_the_first] == [(16, 4), (16, 4)]


@pytest.mark.parametrize(
    ("pauses", "mean_s", "most_s"), [(Exponential(3.0), 3.0, 100.0), (Between(1.0, 5.0), 3.0, 5.0)]
)
def test_pauses_and_numbers_of_turns_are_drawn_and_repeat_with_the_seed(
    pauses: Pauses, mean_s: float, most_s: float
) -> None:
    who = tenant(conversation=Conversation(Uniform(2, 6), pauses))
    talks = [spoken(who, seed) for seed in range(1000)]
    thought = [turn.think_s for talk in talks for turn in talk[1:]]
    assert fmean(thought) == pytest.approx(mean_s, rel=0.1)
    assert max(thought) <= most_s
    assert {len(talk) for talk in talks} == {2, 3, 4, 5, 6}
    assert talks[:5] == [spoken(who, seed) for seed in range(5)]


def test_each_later_turn_is_cancelled_by_chance() -> None:
    who = tenant(conversation=Conversation(Fixed(1000), 0.0), cancel=Cancel(0.25, 1.0))
    assert fmean(turn.request.is_cancelled for turn in spoken(who)) == pytest.approx(0.25, abs=0.06)


def test_a_turn_carries_the_earlier_turns_and_the_received_answers() -> None:
    who = tenant(conversation=TALK, endpoint=Endpoint.CHAT)
    talk = Talk(scenario(who, prompt=PromptForm.TEXT), who)
    first, second, _ = spoken(who)
    request, body = talk.ask(first)
    (question,) = json.loads(body)["messages"]
    assert (request.input_tokens, question["role"], len(question["content"])) == (16, "user", 64)
    assert talk.hear(attempt(prompt_tokens=20, tokens=3), "an answer")
    request, body = talk.ask(second)
    messages = json.loads(body)["messages"]
    assert messages[:2] == [question, {"role": "assistant", "content": "an answer"}]
    assert (len(messages), messages[2]["role"], len(messages[2]["content"])) == (3, "user", 32)
    assert messages[2]["content"][:32] != question["content"][:32]
    assert request.input_tokens == 20 + 3 + 8  # as the engine counted them, and the new ones
    assert json.loads(body)["max_tokens"] == 6


def test_completions_carry_a_conversation_as_one_text() -> None:
    who = tenant(conversation=TALK)
    talk = Talk(scenario(who, prompt=PromptForm.TEXT), who)
    first, second, _ = spoken(who)
    question = json.loads(talk.ask(first)[1])["prompt"]
    assert talk.hear(attempt(tokens=3), " an answer ")
    assert json.loads(talk.ask(second)[1])["prompt"].startswith(question + " an answer ")


def test_a_turn_that_is_cancelled_without_an_answer_is_not_carried_and_a_failed_one_ends_it() -> None:
    who = tenant(conversation=TALK, endpoint=Endpoint.CHAT)
    talk = Talk(scenario(who, prompt=PromptForm.TEXT), who)
    first, second, third = spoken(who)
    talk.ask(first)
    assert talk.hear(attempt(1.0, None, outcome=Outcome.CANCELLED, tokens=0), "")
    request, body = talk.ask(second)
    assert (request.input_tokens, len(json.loads(body)["messages"])) == (8, 1)
    assert talk.hear(attempt(outcome=Outcome.CANCELLED, tokens=2), "half")
    assert len(json.loads(talk.ask(third)[1])["messages"]) == 3
    assert not talk.hear(attempt(1.0, None, outcome=Outcome.SHED), "")


def test_the_turns_of_conversations_count_as_requests() -> None:
    who = tenant(conversation=TALK)
    assert expected_requests(scenario(who), who) == pytest.approx(3000.0)
    assert offered_rate(scenario(who, tenant("closed", Closed(3, 0.0)))) == pytest.approx(30.0)
    told = explain(scenario(who))
    assert "poisson, conversations of 3 turns" in told
    assert "about 3000" in told
    # Inputs of 16, 16 + 4 + 8 and 28 + 6 + 8 tokens; answers of 4, 6 and 6.
    assert [cell for cell in told.splitlines()[-1].split() if cell.isdigit()][-3:-1] == ["29", "5"]
