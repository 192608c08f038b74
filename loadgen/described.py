"""The description of every scenario field: type, unit, bounds, default and meaning, for the reference page.

``docs/generate.py`` makes ``docs/reference/scenario.md`` from it. Tests compare the fields and their bounds
with what ``reading`` accepts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from loadgen.behaviour_fields import MOST_TURNS
from loadgen.fields import LEAST_TOKENS_PER_BYTE
from loadgen.length_fields import LONGEST_TOKENS
from loadgen.reading import LEAST_CV, MOST_BATCH, MOST_CV, SIGNALS
from loadgen.scenario import Endpoint, PromptForm, Retries
from loadgen.workloads.sharegpt import Turns
from tokenpool.poolfile.described import REQUIRED


class Bounds(NamedTuple):
    """The bounds of a number."""

    least: float = 0.0
    most: float = math.inf
    is_above: bool = False
    """Whether the number must be more than ``least``."""

    def __str__(self) -> str:
        low = f"{'above' if self.is_above else 'at least'} {self.least:.10g}"
        return low if math.isinf(self.most) else f"{low}, at most {self.most:.10g}"


class ScenarioField(NamedTuple):
    """One field. ``path`` has ``[]`` for the items of a list."""

    path: str
    kind: str
    """The type, or the allowed words."""
    unit: str
    bounds: Bounds | str
    default: str
    """The default as written in the file; ``REQUIRED`` if there is none."""
    meaning: str


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{each}`" for each in words)


def _text(path: str, default: str, meaning: str, kind: str = "text") -> ScenarioField:
    return ScenarioField(path, kind, "", "", default, meaning)


def _truth(path: str, default: str, meaning: str) -> ScenarioField:
    return ScenarioField(path, "true or false", "", "", default, meaning)


def _mapping(path: str, default: str, meaning: str, kind: str = "mapping") -> ScenarioField:
    return ScenarioField(path, kind, "", "", default, meaning)


def _seconds(path: str, default: str, meaning: str, bounds: Bounds | str = Bounds()) -> ScenarioField:  # noqa: B008
    return ScenarioField(path, "number", "s", bounds, default, meaning)


def _lengths(path: str, default: str, meaning: str) -> ScenarioField:
    return ScenarioField(path, "whole number, or a distribution", "tokens", _TOKENS, default, meaning)


def _tokens(path: str, default: str, meaning: str) -> ScenarioField:
    return ScenarioField(path, "whole number", "tokens", _TOKENS, default, meaning)


def _rate(path: str, meaning: str, bounds: Bounds = Bounds(is_above=True)) -> ScenarioField:  # noqa: B008
    return ScenarioField(path, "number", "requests/s", bounds, REQUIRED, meaning)


_ABOVE = Bounds(is_above=True)
_TOKENS = Bounds(1, LONGEST_TOKENS)
_SECRET = "text, or `{env: NAME}`"
_RETRIES = Retries()
_WITHIN = "at least 0, at most `duration_s`"

_TOP = (
    _text("name", REQUIRED, "The name in reports."),
    _text("model", REQUIRED, "The model that requests name."),
    _seconds(
        "duration_s", REQUIRED, "The duration of the arrivals. It includes warm-up and cool-down.", _ABOVE
    ),
    _mapping("tenants", REQUIRED, "The tenants that send requests.", "list, at least one"),
    ScenarioField(
        "seed",
        "whole number",
        "",
        Bounds(),
        "0",
        "Two runs with the same seed have the same arrivals, lengths and prompts.",
    ),
    _text(
        "endpoint",
        f"`{Endpoint.COMPLETIONS}`",
        "The API of all tenants that do not name one.",
        _words(tuple(Endpoint)),
    ),
    _text("route", "none", "The former name of `endpoint`.", "as `endpoint`"),
    _truth("stream", "true", "Whether responses are streamed."),
    _text(
        "prompt",
        f"`{PromptForm.IDS}`, or `{PromptForm.TEXT}` where the endpoint takes no ids, or with `tokenizer`",
        "Token ids have exact lengths. Without `tokenizer`, the length of text is approximate, "
        "by `tokens_per_byte`.",
        _words(tuple(PromptForm)),
    ),
    ScenarioField(
        "tokens_per_byte",
        "number",
        "tokens per byte",
        Bounds(LEAST_TOKENS_PER_BYTE),
        "0.25",
        "The mean number of tokens in a byte of text.",
    ),
    _mapping(
        "tokenizer",
        "none",
        "Makes texts of exact lengths: by `/tokenize` of the engine, or by a file "
        "([exact lengths](../workloads.md#exact-lengths)).",
        "`engine`, or a mapping",
    ),
    _text("tokenizer.file", REQUIRED, "A `tokenizer.json`, for the library `tokenizers`.", "path"),
    _seconds("timeout_s", "120", "The time limit of an attempt.", _ABOVE),
    _seconds(
        "drain_s",
        "`timeout_s`",
        "The time limit for responses after the end of the arrivals. Requests without one then are cut.",
    ),
    ScenarioField(
        "spread",
        "`round_robin`, `random`, or a list of weights",
        "",
        "weights at least 0, one of them above 0",
        "`round_robin`",
        "The distribution of the attempts over the URLs. Weights are in the order of `--url`.",
    ),
    _seconds(
        "warm_up_s",
        "0",
        "Requests that are due in this time from the start do not count. They stay in `requests.jsonl`, "
        "marked with `is_measured: false`.",
        "at least 0; with `cool_down_s`, less than `duration_s`",
    ),
    _seconds(
        "cool_down_s",
        "0",
        "The same for the time before the end of the arrivals.",
        "at least 0; with `warm_up_s`, less than `duration_s`",
    ),
    _mapping(
        "phases",
        "none",
        "Spans of time with factors of the rates, and with rows of their own in the report.",
        "list",
    ),
    _mapping(
        "faults", "none", "Commands and signals that disturb the servers. They need `--allow-faults`.", "list"
    ),
)
_TENANT = (
    _text("tenants[].name", REQUIRED, "Names are unique."),
    _text(
        "tenants[].key",
        "none",
        "The API key. `env` names an environment variable. No result contains the key.",
        _SECRET,
    ),
    _text(
        "tenants[].tier", "none", "A name in the report. A goal for it is judged for each tenant of the tier."
    ),
    _mapping(
        "tenants[].arrivals", "the times of `trace`", "When requests are due.", "[one mapping](#arrivals)"
    ),
    _mapping(
        "tenants[].trace",
        "none",
        "The requests of a file, instead of drawn ones ([recorded workloads](../workloads.md)).",
        "[one mapping](#traces)",
    ),
    _lengths(
        "tenants[].input",
        "required without `trace`",
        "The length of prompts; of conversations, the new tokens of each turn.",
    ),
    _lengths("tenants[].output", "required without `trace`", "The length of responses."),
    _seconds("tenants[].starts_s", "0", "The start of the tenant's arrivals."),
    _seconds("tenants[].ends_s", "`duration_s`", "The end of the tenant's arrivals.", "above `starts_s`"),
)
_BEHAVIOUR = (
    _mapping(
        "tenants[].slo", "none", "The limits of the latencies of each request, for goodput. At least one."
    ),
    *(
        ScenarioField(f"tenants[].slo.{name}", "number", "ms", _ABOVE, "none", meaning)
        for name, meaning in (
            ("ttft_ms", "Time to first token, from when the request was due."),
            ("tpot_ms", "Time per output token after the first."),
            ("e2e_ms", "Time from when the request was due until the end of the response."),
        )
    ),
    _mapping("tenants[].prefix", "none", "A beginning that prompts share, such as a system prompt."),
    _tokens("tenants[].prefix.tokens", REQUIRED, "Its length. `input` includes it."),
    ScenarioField(
        "tenants[].prefix.share", "number", "", Bounds(0, 1), "1", "The share of requests that have it."
    ),
    _text("tenants[].prefix.name", "the tenant's name", "Tenants whose prefix has the same name share it."),
    _mapping(
        "tenants[].retries", "none", "Further attempts after status 429, 503 or 529, or without a connection."
    ),
    ScenarioField(
        "tenants[].retries.most",
        "whole number",
        "attempts",
        Bounds(),
        str(_RETRIES.most),
        "The most attempts after the first.",
    ),
    _truth(
        "tenants[].retries.honour_retry_after",
        str(_RETRIES.honour_retry_after).lower(),
        "Whether clients wait for the time of the header `Retry-After`.",
    ),
    _seconds(
        "tenants[].retries.wait_s",
        f"{_RETRIES.wait_s:g}",
        "The first wait without `Retry-After`. It doubles each time.",
    ),
    _mapping(
        "tenants[].cancel",
        "none",
        "Requests that the client ends itself. They count as cancelled, not as failed. Write `share`, and "
        "either `after_s` or `after_tokens`.",
    ),
    ScenarioField(
        "tenants[].cancel.share",
        "number",
        "",
        Bounds(0, 1, True),
        REQUIRED,
        "The share of requests that the client ends.",
    ),
    _seconds(
        "tenants[].cancel.after_s",
        "none",
        "The time from the sending until the client ends the request.",
        _ABOVE,
    ),
    _tokens(
        "tenants[].cancel.after_tokens", "none", "The received tokens after which the client ends the stream."
    ),
    _mapping(
        "tenants[].conversation",
        "none",
        "Requests come in conversations, whose starts are the `arrivals`. Each turn sends the earlier turns "
        "with the received responses. A conversation ends early after a refusal or a failure.",
    ),
    ScenarioField(
        "tenants[].conversation.turns",
        "whole number, or `uniform`",
        "turns",
        Bounds(1, MOST_TURNS),
        REQUIRED,
        "The number of turns, such as `{uniform: {least: 2, most: 6}}`.",
    ),
    _seconds(
        "tenants[].conversation.think_s",
        REQUIRED,
        "The pause between a response and the next turn: a number, `{exponential: {mean: 5}}` or "
        "`{uniform: {least: 2, most: 9}}`.",
    ),
    _lengths("tenants[].conversation.later_input", "`input`", "The new tokens of each turn after the first."),
    _lengths(
        "tenants[].conversation.later_output", "`output`", "The length of the responses after the first turn."
    ),
)
_REQUESTS = (
    _text("tenants[].endpoint", "the scenario's", "The API of this tenant.", _words(tuple(Endpoint))),
    _text("tenants[].model", "the scenario's", "The model of this tenant, such as a LoRA adapter."),
    ScenarioField(
        "tenants[].priority",
        "whole number",
        "",
        Bounds(-(1 << 31)),
        "none",
        "vLLM's field `priority`. Lower values run sooner.",
    ),
    _truth(
        "tenants[].ignore_eos",
        "true",
        "true: the engine generates exactly `output` tokens. false: `output` is an upper bound.",
    ),
    ScenarioField(
        "tenants[].batch",
        "whole number",
        "texts",
        Bounds(1, MOST_BATCH),
        "1 for embeddings, 10 for reranking",
        "The texts of a request to embed, or the documents of a request to rerank.",
    ),
    _mapping(
        "tenants[].headers", "none", f"Further headers. A value is a {_SECRET}.", "mapping of names to values"
    ),
    _mapping("tenants[].extra_body", "none", "Further fields of the body, sent as they are."),
)
_ARRIVALS = (
    _rate("tenants[].arrivals.constant.rate", "Requests at equal distances."),
    _rate("tenants[].arrivals.poisson.rate", "Requests of many independent users."),
    _rate("tenants[].arrivals.bursty.rate", "Requests in batches, which come at random times."),
    ScenarioField(
        "tenants[].arrivals.bursty.burst",
        "whole number",
        "requests",
        Bounds(1),
        REQUIRED,
        "The requests of a batch.",
    ),
    _rate("tenants[].arrivals.gamma.rate", "Requests whose gaps have a gamma distribution."),
    ScenarioField(
        "tenants[].arrivals.gamma.cv",
        "number",
        "",
        Bounds(LEAST_CV, MOST_CV),
        REQUIRED,
        "The standard deviation of the gaps / their mean: 1 as `poisson`, above 1 in clusters, below 1 more "
        "even.",
    ),
    _rate("tenants[].arrivals.ramp.from", "The rate at the start.", Bounds()),
    _rate("tenants[].arrivals.ramp.to", "The rate at the end.", Bounds()),
    _seconds(
        "tenants[].arrivals.ramp.over_s",
        REQUIRED,
        "The duration of the change, after which the rate stays at `to`.",
        _ABOVE,
    ),
    _rate("tenants[].arrivals.on_off.rate", "The rate during `on_s`."),
    _seconds("tenants[].arrivals.on_off.on_s", REQUIRED, "The duration of the sending.", _ABOVE),
    _seconds("tenants[].arrivals.on_off.off_s", REQUIRED, "The duration of the pause after it.", _ABOVE),
    ScenarioField(
        "tenants[].arrivals.closed.workers",
        "whole number",
        "workers",
        Bounds(1, 100_000),
        REQUIRED,
        "The number of workers. Each waits for its response before it sends again.",
    ),
    _seconds("tenants[].arrivals.closed.think_s", "0", "The pause of a worker after a response."),
)


def _trace(form: str, *own: ScenarioField, has_times: bool = True) -> tuple[ScenarioField, ...]:
    """The fields of a trace, with those that all have."""
    start = f"tenants[].trace.{form}"
    times = (
        _seconds(f"{start}.start_s", "0", "The start of the part, in seconds of the trace."),
        _seconds(
            f"{start}.duration_s", "to the end", "The duration of the part, in seconds of the trace.", _ABOVE
        ),
        ScenarioField(
            f"{start}.speed", "number", "", _ABOVE, "1", "The factor by which all gaps are divided."
        ),
        ScenarioField(
            f"{start}.rate", "number", "requests/s", _ABOVE, "none", "The mean rate, instead of `speed`."
        ),
        ScenarioField(f"{start}.lengths", "number", "", _ABOVE, "1", "The factor of all lengths."),
    )
    return (
        _text(
            f"{start}.file",
            REQUIRED,
            "The path, relative to the scenario. The file may be compressed (`.gz`).",
            "path",
        ),
        ScenarioField(
            f"{start}.most_input",
            "whole number",
            "tokens",
            Bounds(1),
            "none",
            "Longer prompts are cut; longer texts are left out.",
        ),
        ScenarioField(
            f"{start}.most_output", "whole number", "tokens", Bounds(1), "none", "Longer outputs are cut."
        ),
        ScenarioField(
            f"{start}.most_requests",
            "whole number",
            "requests",
            Bounds(1),
            "all",
            "The number of requests to read.",
        ),
        *(times if has_times else ()),
        *own,
    )


_TRACES = (
    *_trace("azure"),
    *_trace(
        "burstgpt",
        _text("tenants[].trace.burstgpt.model", "all", "Only requests to this model."),
        _text("tenants[].trace.burstgpt.log_type", "all", "Only requests of this log type."),
    ),
    *_trace("mooncake"),
    *_trace(
        "sharegpt",
        _text(
            "tenants[].trace.sharegpt.turns",
            f"`{Turns.FIRST}`",
            "The first question, each question with the recorded turns before it, or the whole conversation.",
            _words(tuple(Turns)),
        ),
        has_times=False,
    ),
    *_trace("lines"),
)


def _range(kind: str, least: str, most: str, *, is_required: bool = False) -> tuple[ScenarioField, ...]:
    start = f"tenants[].input.{kind}"
    return (
        _tokens(f"{start}.least", REQUIRED if is_required else "1", least),
        ScenarioField(
            f"{start}.most",
            "whole number",
            "tokens",
            f"at least `least`, at most {LONGEST_TOKENS}",
            REQUIRED if is_required else str(LONGEST_TOKENS),
            most,
        ),
    )


_CUT = "Shorter lengths are set to this.", "Longer lengths are set to this."
_DISTRIBUTIONS = (
    _tokens("tenants[].input.fixed", REQUIRED, "The same as a plain number."),
    *_range("uniform", "The shortest.", "The longest.", is_required=True),
    ScenarioField(
        "tenants[].input.normal.mean",
        "number",
        "tokens",
        _ABOVE,
        REQUIRED,
        "The mean before lengths are limited to `least` and `most`.",
    ),
    ScenarioField(
        "tenants[].input.normal.deviation", "number", "tokens", Bounds(), REQUIRED, "The standard deviation."
    ),
    *_range("normal", *_CUT),
    ScenarioField(
        "tenants[].input.lognormal.median",
        "number",
        "tokens",
        _ABOVE,
        REQUIRED,
        "The median before lengths are limited to `least` and `most`.",
    ),
    ScenarioField(
        "tenants[].input.lognormal.sigma",
        "number",
        "",
        Bounds(0, 5),
        REQUIRED,
        "The standard deviation of the logarithm of the length.",
    ),
    *_range("lognormal", *_CUT),
    ScenarioField(
        "tenants[].input.empirical",
        "list of whole numbers, or of `{tokens: …, weight: …}`",
        "tokens",
        f"tokens {_TOKENS}; weights at least 0, one of them above 0",
        REQUIRED,
        "Observed lengths. A weight is 1 by default.",
    ),
)
_PHASES = (
    _text("phases[].name", REQUIRED, "Names are unique."),
    _seconds("phases[].from", REQUIRED, "The start.", _WITHIN),
    _seconds(
        "phases[].to", REQUIRED, "The end. Phases do not overlap.", "above `from`, at most `duration_s`"
    ),
    ScenarioField(
        "phases[].rates",
        "mapping of tenants to numbers",
        "times the rate",
        "at least 0; at most 1 for the times of a trace",
        "1",
        "Factors of the tenants' rates in this phase.",
    ),
)
_FAULTS = (
    _seconds("faults[].at_s", REQUIRED, "The time from the start of the run.", _WITHIN),
    _mapping(
        "faults[].run",
        "none",
        "A command with its arguments. Write either `run` or `signal`.",
        "list of words, at least one",
    ),
    _text("faults[].signal", "none", "A signal to the process that `pid_file` names.", _words(SIGNALS)),
    _text("faults[].pid_file", "required with `signal`", "The file with the process id.", "path"),
)
SECTIONS = {
    "Scenario": _TOP,
    "Tenants": _TENANT,
    "Behaviour of tenants": _BEHAVIOUR,
    "Requests of tenants": _REQUESTS,
    "Arrivals": _ARRIVALS,
    "Traces": _TRACES,
    "Distributions of lengths": _DISTRIBUTIONS,
    "Phases": _PHASES,
    "Faults": _FAULTS,
}
FIELDS = tuple(field for section in SECTIONS.values() for field in section)
