"""Pure parts: tokens, request bodies, responses, the metrics page, and the fit of the calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from loadgen.engine.__main__ import main, make_parser, model_of
from loadgen.engine.answers import OpenAIAnswer, Stamp
from loadgen.engine.bodies import Body, Refused, read_body
from loadgen.engine.calibrate import CalibrationError, Point, Shape, calibrated, step_seconds, text_of
from loadgen.engine.counters import Histogram
from loadgen.engine.fitting import fit
from loadgen.engine.metrics import Moment, page
from loadgen.engine.model import Costs, Ending, LikeError, Model, Policy, read_like
from loadgen.engine.requests import read_chat, read_completion
from loadgen.engine.tokens import encode, pieces
from tests.unit.loadgen.engine.steps import Engine

RATIOS = st.floats(0.05, 1.0)


@given(st.text(max_size=80), RATIOS)
def test_the_pieces_of_a_text_give_the_text(text: str, ratio: float) -> None:
    assert b"".join(pieces(text.encode(), ratio)) == text.encode()


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60), RATIOS)
def test_texts_with_equal_beginnings_have_equal_first_tokens(
    shared: str, one: str, other: str, ratio: float
) -> None:
    first, second = encode(shared + one, ratio, 32000), encode(shared + other, ratio, 32000)
    whole = max(int(len(shared.encode()) * ratio) - 1, 0)

    assert first[:whole] == second[:whole]


def test_other_text_has_other_tokens() -> None:
    assert encode("the quick brown fox", 0.25, 32000)[:3] != encode("the slow brown fox", 0.25, 32000)[:3]


def completion(served: Model | None = None, /, **body: object) -> Any:
    return read_completion(Body({"prompt": "hello there", **body}), served or Model())


def chat(served: Model | None = None, /, **body: object) -> Any:
    return read_chat(Body({"messages": [{"role": "user", "content": "hi"}], **body}), served or Model())


def test_a_completion_without_a_bound_has_16_tokens_and_a_chat_the_window() -> None:
    assert completion().bounds == (16,)
    assert chat().bounds == (2048 - len(chat().prompts[0]),)


def test_a_bound_ends_at_the_window() -> None:
    assert completion(prompt=[5] * 2040, max_tokens=100).bounds == (8,)


def test_prompts_are_texts_or_token_ids_one_or_many() -> None:
    assert len(completion(prompt="x" * 40).prompts[0]) == 10
    assert [len(p) for p in completion(prompt=["x" * 40, "y" * 8]).prompts] == [10, 2]
    assert completion(prompt=[1, 2, 3]).prompts == ((1, 2, 3),)
    assert completion(prompt=[[1, 2], [3]]).prompts == ((1, 2), (3,))


def test_the_newer_name_of_a_chats_bound_wins() -> None:
    assert chat(max_tokens=9, max_completion_tokens=4).bounds == (4,)


def test_the_parts_of_a_message_are_its_text() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "image_url"}, {"type": "text", "text": "i"}]

    assert chat(messages=[{"role": "user", "content": parts}]).prompts == chat().prompts


def test_values_are_read_as_leniently_as_vllm_reads_them() -> None:
    asked = completion(max_tokens="3", n=2.0, stream="yes", ignore_eos=1, model=None)

    assert (asked.bounds, asked.n, asked.streams, asked.ignores_end) == ((3,), 2, True, True)


def test_usage_in_every_event_needs_include_usage() -> None:
    options = {"continuous_usage_stats": True}

    assert not completion(stream=True, stream_options=options).tells_usage_always
    assert completion(stream=True, stream_options=options | {"include_usage": True}).tells_usage_always


PRIORITY = Model(policy=Policy.PRIORITY)


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "words"),
    [
        ({"model": "none"}, 404, "NotFoundError", "model", "The model `none` does not exist."),
        ({"max_tokens": 3000}, 400, "BadRequestError", "max_tokens", "greater than max_model_len=2048"),
        ({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", "max_tokens must be at least 1, got 0."),
        ({"max_tokens": "x"}, 400, "Bad Request", "body.max_tokens", "unable to parse string as an integer"),
        ({"max_tokens": 3.5}, 400, "Bad Request", "body.max_tokens", "a number with a fractional part"),
        ({"max_tokens": []}, 400, "Bad Request", "body.max_tokens", "Input should be a valid integer"),
        ({"prompt": [5] * 2049}, 400, "BadRequestError", "input_tokens", "contains 2049 input tokens"),
        ({"prompt": "x" * 9000}, 400, "BadRequestError", "input_tokens", "context length is 2048 tokens"),
        ({"prompt": [5] * 2048}, 400, "BadRequestError", "max_tokens", "must be at least 1, got 0"),
        ({"prompt": ""}, 400, "BadRequestError", "prompt", "Either prompt or prompt_embeds"),
        ({"prompt": None}, 400, "BadRequestError", "prompt", "Either prompt or prompt_embeds"),
        ({"prompt": []}, 400, "BadRequestError", None, "You must pass at least one prompt"),
        ({"prompt": [[]]}, 400, "BadRequestError", None, "The decoder prompt cannot be empty"),
        ({"prompt": 5}, 400, "Bad Request", "body.prompt", "Input should be a valid list"),
        ({"prompt": ["a", 5]}, 400, "Bad Request", "body.prompt.1", "Input should be a valid string"),
        ({"prompt": [[1], 5]}, 400, "Bad Request", "body.prompt.1", "Input should be a valid list"),
        ({"prompt": [1, "a"]}, 400, "Bad Request", "body.prompt.1", "unable to parse string"),
        ({"prompt": [-1]}, 400, "Bad Request", "body.prompt.0", "greater than or equal to 0"),
        ({"prompt": [99999]}, 400, "BadRequestError", None, "Token id 99999 is out of vocabulary"),
        ({"n": 0}, 400, "BadRequestError", None, "n must be at least 1, got 0."),
        ({"n": None}, 400, "Bad Request", "body.n", "Input should be a valid integer"),
        ({"n": 99999}, 400, "BadRequestError", None, "n must be at most 16384, got 99999."),
        ({"min_tokens": -1}, 400, "BadRequestError", None, "greater than or equal to 0, got -1."),
        ({"min_tokens": 50}, 400, "BadRequestError", None, "less than or equal to max_tokens=16, got 50."),
        ({"ignore_eos": "nah"}, 400, "Bad Request", "body.ignore_eos", "valid boolean"),
        ({"stream_options": {}}, 400, "BadRequestError", "stream_options", "defined when `stream=True`"),
        ({"stream_options": 5}, 400, "Bad Request", "body.stream_options", "valid dictionary"),
        ({"priority": 3}, 400, "BadRequestError", None, "Got priority 3 but Priority scheduling is"),
        ({"model": 5}, 400, "Bad Request", "body.model", "Input should be a valid string"),
    ],
)  # fmt: skip
def test_refusals_have_the_messages_of_vllm(
    body: dict[str, object], status: int, kind: str, param: str | None, words: str
) -> None:
    with pytest.raises(Refused) as caught:
        completion(**body)

    error = caught.value.body["error"]
    assert (caught.value.status, error["code"]) == (status, status)
    assert (error["type"], error["param"]) == (kind, param)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "Input should be a valid list"),
        ([], "Cannot apply chat template to an empty conversation"),
        (["hi"], "valid dictionary"),
        ([{"content": "x"}], "Field required"),
        ([{"role": "user", "content": 5}], "Input should be a valid string"),
    ],
)
def test_invalid_conversations_are_refused(messages: object, words: str) -> None:
    with pytest.raises(Refused, match=words):
        chat(messages=messages)


@pytest.mark.parametrize(
    ("content_type", "raw", "words"),
    [
        ("text/plain", b"{}", "Unsupported Media Type"),
        ("application/json", b"no json", "JSON decode error"),
        ("application/json", b"\xff", "JSON decode error"),
        ("application/json", b"[1]", "valid dictionary"),
        ("application/json", b"[" * 100_000, "JSON decode error"),
    ],
)
def test_invalid_bodies_are_refused(content_type: str, raw: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_body(content_type, raw)


def test_half_of_a_surrogate_pair_is_encoded() -> None:
    assert completion(prompt="\ud800").prompts[0] != completion(prompt="\ud801").prompts[0]


def test_priorities_are_accepted_by_the_priority_policy_and_may_be_ignored_by_others() -> None:
    assert completion(PRIORITY, priority=3).priority == 3
    assert completion(Model(refuses_priority=False), priority=3).priority == 3
    assert completion(priority=0).priority == 0


def test_tokens_of_several_steps_share_one_event() -> None:
    engine = Engine()
    asked = completion(stream=True, max_tokens=3, prompt=[1, 2, 3])
    sequence = engine.add(asked.prompts[0], asked.bounds[0])
    answer = OpenAIAnswer(asked, [sequence], Stamp(1, 1))
    engine.step()
    engine.step()

    first, nothing = answer.events(), answer.events()
    engine.step()
    last = answer.events()

    assert json.loads(first[6:])["choices"][0]["text"] == "the pool "
    assert nothing == b""
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "length"
    assert answer.is_complete


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)

    assert list(histogram.cumulative()) == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 12.0


def page_of(*engines: Engine) -> str:
    moment = Moment(started_at=12.5, now=99.0, clock=engines[0].now)
    return page([engine.scheduler for engine in engines], {"max_num_queued_reqs": 0}, moment)


def test_the_metrics_page_is_valid_and_has_the_counts() -> None:
    engine = Engine(slots=1, name='odd "name"')
    engine.add(range(9), 2)
    engine.run()
    engine.add(range(9), 3)
    engine.add(4, 1)
    engine.step()

    families = list(text_string_to_metric_families(page_of(engine)))
    samples = {
        (s.name, s.labels.get("finished_reason"), s.labels.get("le")): s for f in families for s in f.samples
    }

    def value(name: str, reason: str | None = None, le: str | None = None) -> float:
        return samples["vllm:" + name, reason, le].value

    assert samples["process_start_time_seconds", None, None].value == 12.5
    assert value("num_requests_running") == value("num_requests_waiting") == 1
    assert 0 < value("kv_cache_usage_perc") < 1
    assert (value("prompt_tokens_total"), value("generation_tokens_total")) == (18, 3)
    assert (value("prefix_cache_queries_total"), value("prefix_cache_hits_total")) == (18, 8)
    assert value("num_preemptions_total") == 0
    assert value("request_success_total", "length") == 1
    assert value("request_success_total", "abort") == 0
    assert value("time_to_first_token_seconds_bucket", le="1.0") == 2
    assert value("time_to_first_token_seconds_count") == 2
    assert value("inter_token_latency_seconds_sum") == 1.0
    assert value("request_queue_time_seconds_count") == 2
    assert value("e2e_request_latency_seconds_sum") == 2.0
    info = samples["vllm:cache_config_info", None, None].labels
    assert (info["block_size"], info["num_gpu_blocks"], info["kv_cache_size_tokens"]) == ("4", "64", "256")
    assert {s.labels["model_name"] for s in samples.values() if s.name.startswith("vllm:")} == {'odd "name"'}


def test_an_engine_with_lora_says_when_its_adapters_were_last_updated() -> None:
    assert "lora_requests_info" not in page_of(Engine())
    families = text_string_to_metric_families(page_of(Engine(max_loras=4)))
    (sample,) = [s for f in families for s in f.samples if s.name == "vllm:lora_requests_info"]
    assert sample.value == 99.0
    assert sample.labels == {"max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": ""}


def test_the_default_command_line_gives_the_default_engine() -> None:
    arguments = make_parser().parse_args(
        ["--port", "81", "--slots", "3", "--blocks", "500", "--step", "0.02"]
    )

    assert (arguments.host, arguments.port) == ("127.0.0.1", 81)
    assert model_of(arguments) == Model(slots=3, blocks=500, costs=Costs(step_s=0.02))
    assert model_of(make_parser().parse_args([])) == Model()


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"step_s": 0.003, "per_sequence_s": 0.001, "blocks": 200, "mean_error": 0.1}))

    model = model_of(make_parser().parse_args(["--like", str(file), "--step", "0.004"]))

    assert model == Model(blocks=200, costs=Costs(step_s=0.004, per_sequence_s=0.001))


def test_an_impossible_engine_is_refused_before_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--blocks", "3"])

    assert "give --blocks 128 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object with step_s"),
        ("{}", "has none of step_s"),
        ('{"step_s": "1"}', "step_s is '1', not a number of 0 or more"),
        ('{"blocks": 1.5}', "blocks is 1.5, not a whole number"),
        ('{"step_s": -1}', "not a number of 0 or more"),
    ],
)
def test_the_error_of_an_unusable_file_names_the_file_and_the_problem(
    tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(content)

    with pytest.raises(LikeError, match=words) as caught:
        read_like(file)

    assert str(caught.value).startswith(str(file))


def test_the_error_of_a_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(LikeError, match=r"costs.json: No such file or directory; write it with python -m"):
        read_like(tmp_path / "costs.json")


TRUE = Costs(0.004, 0.0003, 0.00002, 0.006)
POINTS = [(16, 0), (128, 0), (512, 0), (1024, 0), (0, 1), (0, 4), (0, 8), (0, 16)]


def measured(costs: Costs) -> list[Point]:
    return [
        Point(
            prompt,
            streams,
            costs.step_s
            + costs.per_sequence_s * streams
            + costs.per_prompt_token_s * prompt
            + costs.per_request_s * (prompt > 0),
        )
        for prompt, streams in POINTS
    ]


def test_the_fit_recovers_the_costs_behind_exact_measurements() -> None:
    result = calibrated(measured(TRUE), Shape(2048, 16, 100))

    assert result.mean_error < 1e-9
    found = result.to_json()
    assert found["step_s"] == pytest.approx(0.004)
    assert found["per_sequence_s"] == pytest.approx(0.0003)
    assert found["per_prompt_token_s"] == pytest.approx(0.00002)
    assert found["per_request_s"] == pytest.approx(0.006)
    assert (found["window"], found["block_size"], found["blocks"]) == (2048, 16, 100)
    assert "--step 0.004 --per-sequence 0.0003 --per-prompt-token 2e-05" in result.flags()
    assert text_of(result).endswith("mean error of the fit: 0.0%")


def test_no_cost_is_negative() -> None:
    points = measured(Costs(0.004, 0.0003, 0.00002, 0.0))
    # First tokens come sooner than a step takes, which would need a negative cost per request.
    points = [Point(p.prompt_tokens, p.streams, p.seconds - 0.001 * (p.prompt_tokens > 0)) for p in points]

    costs = calibrated(points, Shape()).costs

    assert costs.per_request_s == 0.0
    assert costs.step_s > 0


def test_measurements_that_do_not_determine_the_costs_are_refused() -> None:
    with pytest.raises(CalibrationError, match="do not determine the costs"):
        calibrated([p for p in measured(TRUE) if p.streams in (0, 4)], Shape())
    with pytest.raises(CalibrationError, match="no measurement depends on one of the costs"):
        calibrated([p for p in measured(TRUE) if p.streams], Shape())


def test_measurements_of_zero_give_a_cost_of_zero() -> None:
    assert fit([(1.0,), (1.0,)], [2.0, 2.0]) == [pytest.approx(2.0)]


def test_step_time_is_taken_while_all_streams_decode() -> None:
    one = [(0.1 * n, n) for n in range(1, 31)]
    other = [(1.0 + 0.1 * n, n) for n in range(1, 31)]
    # Events with two tokens each.
    merged = [(1.0 + 0.2 * n, 2 * n) for n in range(1, 16)]

    assert step_seconds([one, other]) == pytest.approx(0.1)
    assert step_seconds([one, merged]) == pytest.approx(0.1)


def test_streams_without_a_common_time_give_no_step_time() -> None:
    one = [(0.1 * n, n) for n in range(1, 31)]
    later = [(5.0 + at, tokens) for at, tokens in one]

    assert step_seconds([one, later]) is None


def test_finish_reasons_have_the_names_of_vllm() -> None:
    assert [str(ending) for ending in Ending] == ["stop", "length", "abort"]
