"""The description of every scenario field: type, default and meaning, for the reference page.

``docs/generate.py`` makes ``docs/reference/scenario.md`` from it. A test compares the fields with the fields
that ``reading`` accepts.
"""

from __future__ import annotations

from loadgen.behaviour_fields import MOST_TURNS
from loadgen.reading import MOST_BATCH, MOST_CV, SIGNALS
from loadgen.scenario import Endpoint, PromptForm, Retries
from tokenpool.poolfile.described import REQUIRED, Described

_LENGTHS = "tokens, or a distribution"
_RATE = "requests per second, above 0"
_S = "seconds"
_ENDPOINTS = ", ".join(f"`{each}`" for each in Endpoint)
_FORMS = ", ".join(f"`{each}`" for each in PromptForm)
_RETRIES = Retries()
_SECRET = "text, or `{env: NAME}`"

_TOP = (
    Described("name", "text", REQUIRED, "The name in reports."),
    Described("model", "text", REQUIRED, "The model that requests name."),
    Described("duration_s", f"{_S}, above 0", REQUIRED, "The duration of the arrivals."),
    Described("tenants", "list, at least one", REQUIRED, "Who sends requests."),
    Described("seed", "whole number", "0", "Decides arrivals, lengths and prompts."),
    Described(
        "endpoint", _ENDPOINTS, f"`{Endpoint.COMPLETIONS}`", "The API of all tenants without their own."
    ),
    Described("route", "as `endpoint`", "", "The former name of `endpoint`."),
    Described("stream", "true or false", "true", "Whether answers are streamed."),
    Described(
        "prompt",
        _FORMS,
        f"`{PromptForm.IDS}`, or `{PromptForm.TEXT}` where the endpoint takes no ids",
        "Token ids have exact lengths. Text has about the length that `tokens_per_byte` says.",
    ),
    Described("tokens_per_byte", "number above 0", "0.25", "The tokens of a byte of text."),
    Described(
        "tokenizer",
        "`engine`, or a mapping",
        "none",
        "Makes texts of exact lengths: by `/tokenize` of the engine, or by a file "
        "([exact lengths](../workloads.md#exact-lengths)).",
    ),
    Described("tokenizer.file", "path", REQUIRED, "A `tokenizer.json`, for the library `tokenizers`."),
    Described("timeout_s", f"{_S}, above 0", "120", "The time limit of an attempt."),
    Described("drain_s", _S, "`timeout_s`", "The time limit for answers after the last arrival."),
    Described(
        "spread",
        "`round_robin`, `random`, or a list of weights",
        "`round_robin`",
        "The distribution over the URLs. Weights are in the order of `--url`.",
    ),
    Described(
        "warm_up_s",
        _S,
        "0",
        "Requests that are due in this time from the start do not count. They stay in `requests.jsonl`, "
        "marked with `is_measured: false`.",
    ),
    Described("cool_down_s", _S, "0", "The same for the time before the end of the arrivals."),
    Described(
        "phases", "list", "none", "Spans of time with their own rates and their own rows in the report."
    ),
    Described("faults", "list", "none", "Faults of the system. They need `--allow-faults`."),
)
_TENANT = (
    Described("tenants[].name", "text", REQUIRED, "Names are unique."),
    Described(
        "tenants[].arrivals", "one of the mappings below", "the times of `trace`", "When requests are due."
    ),
    Described(
        "tenants[].trace",
        "one of the mappings below",
        "none",
        "The requests of a file, instead of drawn ones ([recorded workloads](../workloads.md)).",
    ),
    Described(
        "tenants[].input",
        _LENGTHS,
        "required without `trace`",
        "The length of prompts; of conversations, the new tokens of each turn.",
    ),
    Described("tenants[].output", _LENGTHS, "required without `trace`", "The length of answers."),
    Described("tenants[].key", _SECRET, "none", "The API key. No result contains it."),
    Described("tenants[].tier", "text", "none", "For the report and for goals."),
    Described("tenants[].slo", "mapping", "none", "The goals of each request, for goodput. At least one."),
    Described("tenants[].slo.ttft_ms", "milliseconds, above 0", "none", "Time to first token."),
    Described(
        "tenants[].slo.tpot_ms", "milliseconds, above 0", "none", "Time per output token after the first."
    ),
    Described("tenants[].slo.e2e_ms", "milliseconds, above 0", "none", "Time until the end of the answer."),
    Described(
        "tenants[].prefix", "mapping", "none", "A shared beginning of prompts, such as a system prompt."
    ),
    Described("tenants[].prefix.tokens", "tokens, at least 1", REQUIRED, "Its length. `input` includes it."),
    Described("tenants[].prefix.share", "0 to 1", "1", "The share of requests that have it."),
    Described("tenants[].prefix.name", "text", "the tenant's name", "Tenants with one name share it."),
    Described("tenants[].retries", "mapping", "none", "What clients do after a 429, a 503 or no connection."),
    Described("tenants[].retries.most", "whole number", str(_RETRIES.most), "Attempts after the first."),
    Described(
        "tenants[].retries.honour_retry_after",
        "true or false",
        str(_RETRIES.honour_retry_after).lower(),
        "Whether the wait is that of `Retry-After`.",
    ),
    Described(
        "tenants[].retries.wait_s",
        _S,
        f"{_RETRIES.wait_s:g}",
        "The first wait without `Retry-After`. It doubles each time.",
    ),
    Described("tenants[].priority", "whole number", "none", "vLLM's `priority`."),
    Described("tenants[].starts_s", _S, "0", "The start of the arrivals."),
    Described("tenants[].ends_s", f"{_S}, after `starts_s`", "`duration_s`", "The end of the arrivals."),
    Described(
        "tenants[].cancel",
        "mapping",
        "none",
        "Requests that the client ends itself. They count on their own, not as failures.",
    ),
    Described("tenants[].cancel.share", "above 0, at most 1", REQUIRED, "The share of requests."),
    Described("tenants[].cancel.after_s", f"{_S}, above 0", "none", "The time after the sending, or else:"),
    Described(
        "tenants[].cancel.after_tokens", "tokens, at least 1", "none", "The received tokens of a stream."
    ),
    Described(
        "tenants[].conversation",
        "mapping",
        "none",
        "Requests come in conversations. `arrivals` are their starts. Each turn sends the earlier turns with "
        "the received answers. It ends early after a refusal or a failure.",
    ),
    Described(
        "tenants[].conversation.turns",
        f"1 to {MOST_TURNS}, or `uniform`",
        REQUIRED,
        "The turns of a conversation, such as `{uniform: {least: 2, most: 6}}`.",
    ),
    Described(
        "tenants[].conversation.think_s",
        f"{_S}, `exponential` or `uniform`",
        REQUIRED,
        "The pause between an answer and the next turn, such as `{exponential: {mean: 5}}`.",
    ),
    Described(
        "tenants[].conversation.later_input", _LENGTHS, "`input`", "New tokens of the turns after the first."
    ),
    Described(
        "tenants[].conversation.later_output", _LENGTHS, "`output`", "Answers of the turns after the first."
    ),
    Described("tenants[].endpoint", _ENDPOINTS, "the scenario's", "The API of this tenant."),
    Described("tenants[].model", "text", "the scenario's", "Another model, such as a LoRA adapter."),
    Described(
        "tenants[].ignore_eos",
        "true or false",
        "true",
        "Whether `output` sets the length, or only its bound.",
    ),
    Described(
        "tenants[].batch", f"1 to {MOST_BATCH}", "1", "Inputs of a request, for embeddings and reranking."
    ),
    Described(
        "tenants[].headers", "mapping of names to values", "none", f"Further headers. A value is a {_SECRET}."
    ),
    Described("tenants[].extra_body", "mapping", "none", "Further fields of the body, sent as they are."),
)
_ARRIVALS = (
    Described("tenants[].arrivals.constant.rate", _RATE, REQUIRED, "Requests at equal distances."),
    Described("tenants[].arrivals.poisson.rate", _RATE, REQUIRED, "Requests of many independent users."),
    Described("tenants[].arrivals.bursty.rate", _RATE, REQUIRED, "Batches at random times."),
    Described(
        "tenants[].arrivals.bursty.burst", "requests, at least 1", REQUIRED, "The requests of a batch."
    ),
    Described("tenants[].arrivals.gamma.rate", _RATE, REQUIRED, "Gaps with a gamma distribution."),
    Described(
        "tenants[].arrivals.gamma.cv",
        f"above 0, at most {MOST_CV:g}",
        REQUIRED,
        "The coefficient of variation of the gaps: 1 as `poisson`, above 1 in clusters, below 1 more evenly.",
    ),
    Described("tenants[].arrivals.ramp.from", "requests per second", REQUIRED, "The rate at the start."),
    Described("tenants[].arrivals.ramp.to", "requests per second", REQUIRED, "The rate at the end."),
    Described("tenants[].arrivals.ramp.over_s", f"{_S}, above 0", REQUIRED, "The duration of the change."),
    Described("tenants[].arrivals.on_off.rate", _RATE, REQUIRED, "The rate while it sends."),
    Described("tenants[].arrivals.on_off.on_s", f"{_S}, above 0", REQUIRED, "The time in which it sends."),
    Described("tenants[].arrivals.on_off.off_s", f"{_S}, above 0", REQUIRED, "The pause."),
    Described("tenants[].arrivals.closed.workers", "1 to 100000", REQUIRED, "Each waits for its answer."),
    Described("tenants[].arrivals.closed.think_s", _S, "0", "The pause of a worker after an answer."),
)
_TRACE_COMMON = (
    ("file", "path", REQUIRED, "Plain, or packed as `.gz`."),
    ("most_input", "tokens, at least 1", "none", "Longer prompts are cut; longer texts are left out."),
    ("most_output", "tokens, at least 1", "none", "Longer answers are cut."),
    ("most_requests", "at least 1", "all", "The number of requests to read."),
)
_TRACE_TIMES = (
    ("start_s", _S, "0", "The start of the part, in seconds of the trace."),
    ("duration_s", f"{_S}, above 0", "to the end", "Its duration, in seconds of the trace."),
    ("speed", "number above 0", "1", "Divides all gaps."),
    ("rate", _RATE, "none", "The mean rate, instead of `speed`."),
    ("lengths", "number above 0", "1", "Multiplies all lengths."),
)
_TRACE_OWN = {
    "azure": _TRACE_TIMES,
    "burstgpt": (
        *_TRACE_TIMES,
        ("model", "text", "all", "Only requests to this model."),
        ("log_type", "text", "all", "Only requests of this log type."),
    ),
    "mooncake": _TRACE_TIMES,
    "sharegpt": (
        (
            "turns",
            "`first`, `each`, `conversation`",
            "`first`",
            "The first question, each question with what is before it, or the whole conversation.",
        ),
    ),
    "lines": _TRACE_TIMES,
}
_TRACES = tuple(
    Described(f"tenants[].trace.{form}.{name}", *rest)
    for form, own in _TRACE_OWN.items()
    for name, *rest in (*_TRACE_COMMON, *own)
)
_DISTRIBUTIONS = (
    Described("tenants[].input.fixed", "tokens, at least 1", REQUIRED, "As a plain number."),
    Described("tenants[].input.uniform.least", "tokens, at least 1", REQUIRED, "The shortest."),
    Described("tenants[].input.uniform.most", "tokens", REQUIRED, "The longest."),
    Described("tenants[].input.normal.mean", "tokens, above 0", REQUIRED, "The mean before clipping."),
    Described("tenants[].input.normal.deviation", "tokens", REQUIRED, "The standard deviation."),
    Described("tenants[].input.normal.least", "tokens, at least 1", "1", "Shorter ones become this."),
    Described("tenants[].input.normal.most", "tokens", "1048576", "Longer ones become this."),
    Described("tenants[].input.lognormal.median", "tokens, above 0", REQUIRED, "The median."),
    Described("tenants[].input.lognormal.sigma", "0 to 5", REQUIRED, "The deviation of the logarithm."),
    Described("tenants[].input.lognormal.least", "tokens, at least 1", "1", "Shorter ones become this."),
    Described("tenants[].input.lognormal.most", "tokens", "1048576", "Longer ones become this."),
    Described(
        "tenants[].input.empirical",
        "list of tokens, or of `{tokens: …, weight: …}`",
        REQUIRED,
        "Observed lengths.",
    ),
)
_LISTS = (
    Described("phases[].name", "text", REQUIRED, "Names are unique."),
    Described("phases[].from", _S, REQUIRED, "The start."),
    Described("phases[].to", _S, REQUIRED, "The end. Phases do not overlap."),
    Described("phases[].rates", "mapping of tenants to factors", "1", "Factors of the tenants' rates."),
    Described("faults[].at_s", _S, REQUIRED, "The time."),
    Described("faults[].run", "list of words", "none", "A command. Either this or a signal."),
    Described(
        "faults[].signal", ", ".join(f"`{each}`" for each in SIGNALS), "none", "A signal to a process."
    ),
    Described("faults[].pid_file", "path", "required with `signal`", "The file with the process's id."),
)
FIELDS = (*_TOP, *_TENANT, *_ARRIVALS, *_TRACES, *_DISTRIBUTIONS, *_LISTS)
