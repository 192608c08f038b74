"""Scenario files: YAML text in, a `Scenario` out, or one line that names file, line, field and fix.

A key may name an environment variable, so scenarios without secrets can be shared. The environment is an
argument. This is one file because its functions follow the structure of the scenario file, one per field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from loadgen import behaviour_fields, length_fields, prompts
from loadgen.endpoints.table import DIALECTS
from loadgen.fields import LEAST_TOKENS_PER_BYTE, MOST_SEED, Field, ScenarioError, document, given
from loadgen.length_fields import LONGEST_TOKENS
from loadgen.request_options import check_fields, extra_body, headers, secret
from loadgen.scenario import (
    Bursty,
    Closed,
    Constant,
    Endpoint,
    Fault,
    Fixed,
    Gamma,
    OnOff,
    Phase,
    Poisson,
    Prefix,
    Process,
    PromptForm,
    Ramp,
    Replay,
    Retries,
    Scenario,
    Slo,
    Tenant,
    Tokenizer,
    Trace,
    unmeasured,
)
from loadgen.workloads import field as trace_field

MOST_BATCH = 2048
"""The most texts of a request to embed in OpenAI's API."""
MOST_CV = 20.0
"""The largest coefficient of variation: above it, a run of minutes has no or all of its requests at once."""
LEAST_CV = 0.01
"""The smallest: below it, arrivals are those of ``constant``."""
MOST_PERIODS = 100_000
"""The most pauses of a tenant in a run."""
SIGNALS = ("STOP", "CONT", "KILL", "TERM")
_SCENARIO = (
    "name", "seed", "duration_s", "model", "endpoint", "route", "stream", "prompt", "tokens_per_byte",
    "tokenizer", "timeout_s", "drain_s", "spread", "tenants", "phases", "faults", "warm_up_s", "cool_down_s",
)  # fmt: skip
_TENANT = (
    "name", "key", "arrivals", "input", "output", "trace", "prefix", "retries", "priority", "tier", "slo",
    "starts_s", "ends_s", "cancel", "conversation", "endpoint", "model", "ignore_eos", "batch", "headers",
    "extra_body",
)  # fmt: skip


def read(path: Path, environment: Mapping[str, str]) -> Scenario:
    """The scenario of a file. Raises ``ScenarioError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScenarioError(f"{path}: cannot be read ({reason}); name a scenario file") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}:1: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse(text, str(path), environment, folder=path.parent)


def parse(text: str, file: str, environment: Mapping[str, str], folder: Path) -> Scenario:
    """The scenario of a text. Paths of traces are relative to ``folder``. Raises ``ScenarioError``."""
    top = document(text, file)
    fields = top.fields(_SCENARIO, required=("name", "model", "duration_s", "tenants"))
    endpoint = _default_endpoint(top, fields)
    duration = fields["duration_s"].number("seconds", above=True)
    timeout = given(fields, "timeout_s", lambda f: f.number("seconds", above=True), 120.0)
    tenants = _tenants(fields["tenants"], endpoint, environment, folder)
    phases = given(fields, "phases", lambda f: _phases(f, tenants, duration), ())
    form = _prompt_form(fields, tenants)
    stream = given(fields, "stream", Field.truth, True)
    for item, tenant in zip(fields["tenants"].items(), tenants, strict=True):
        is_streamed = stream and DIALECTS[tenant.endpoint].generates
        _check_periods(item, tenant, duration)
        behaviour_fields.check(item, tenant, prompts.form(form, tenant), is_streamed=is_streamed)
    warm_up, cool_down = (given(fields, name, _seconds, 0.0) for name in ("warm_up_s", "cool_down_s"))
    if problem := unmeasured(duration, warm_up, cool_down):
        top.fail(problem, "make warm_up_s and cool_down_s shorter, or duration_s longer")
    return Scenario(
        name=fields["name"].name(),
        model=fields["model"].name(),
        duration_s=duration,
        tenants=tenants,
        seed=given(fields, "seed", lambda f: f.whole("(a seed)", most=MOST_SEED), 0),
        prompt=form,
        tokens_per_byte=given(
            fields, "tokens_per_byte", lambda f: f.number("tokens", least=LEAST_TOKENS_PER_BYTE), 0.25
        ),
        tokenizer=given(fields, "tokenizer", lambda f: _tokenizer(f, folder), None),
        stream=stream,
        timeout_s=timeout,
        drain_s=given(fields, "drain_s", lambda f: f.number("seconds"), timeout),
        spread=given(fields, "spread", _spread, "round_robin"),
        phases=phases,
        faults=given(fields, "faults", lambda f: tuple(_fault(item, duration) for item in f.items()), ()),
        warm_up_s=warm_up,
        cool_down_s=cool_down,
    )


def _check_periods(item: Field, tenant: Tenant, duration: float) -> None:
    """Raise ``ScenarioError`` if the pauses of a tenant are too many to plan."""
    process = tenant.process
    if isinstance(process, OnOff) and duration / (process.on_s + process.off_s) > MOST_PERIODS:
        item.fail(
            f"pauses over {MOST_PERIODS} times in {duration:g} s", "write a longer on_s or off_s, in seconds"
        )


def _seconds(field: Field) -> float:
    return field.number("seconds")


def _prompt_form(fields: dict[str, Field], tenants: tuple[Tenant, ...]) -> PromptForm:
    """Token ids by default. A tokenizer makes texts of exact lengths instead."""
    default = PromptForm.TEXT if "tokenizer" in fields else PromptForm.IDS
    form = given(fields, "prompt", lambda f: _form(f, tenants), default)
    if form is PromptForm.IDS and "tokenizer" in fields:
        fields["tokenizer"].fail(
            "cannot be combined with token ids, whose lengths are exact", "remove it, or write 'prompt: text'"
        )
    if "tokens_per_byte" in fields and "tokenizer" in fields:
        fields["tokens_per_byte"].fail(
            "cannot be combined with a tokenizer, which counts tokens", "remove it"
        )
    return form


def _default_endpoint(top: Field, fields: dict[str, Field]) -> Endpoint:
    """The endpoint of tenants without one of their own. ``route`` is the former name of the field."""
    if "endpoint" in fields and "route" in fields:
        top.fail("has both endpoint and its former name route", "remove 'route:'")
    name = "route" if "route" in fields else "endpoint"
    return given(fields, name, _endpoint, Endpoint.COMPLETIONS)


def _endpoint(field: Field) -> Endpoint:
    return Endpoint(field.word(tuple(Endpoint)))


def _form(field: Field, tenants: tuple[Tenant, ...]) -> PromptForm:
    form = PromptForm(field.word(tuple(PromptForm)))
    texts = [t for t in tenants if not DIALECTS[t.endpoint].accepts_ids]
    if form is PromptForm.IDS and texts:
        field.fail(
            f"is ids, which the {texts[0].endpoint} endpoint of tenant {texts[0].name!r} does not accept",
            "write 'prompt: text', or remove it: every tenant then sends ids where its endpoint accepts them",
        )
    return form


def _tokenizer(field: Field, folder: Path) -> Tokenizer:
    if not field.is_mapping:
        field.word(("engine",))
        return Tokenizer()
    return Tokenizer(str(folder / field.fields(("file",), required=("file",))["file"].line()))


def _spread(field: Field) -> str | tuple[float, ...]:
    if not field.is_list:
        return field.word(("round_robin", "random"))
    weights = tuple(item.number("(a weight)") for item in field.items())
    if not sum(weights) > 0:
        field.fail("has no weight above 0", "give each URL its weight, in their order")
    return weights


def _tenants(
    field: Field, endpoint: Endpoint, environment: Mapping[str, str], folder: Path
) -> tuple[Tenant, ...]:
    tenants: list[Tenant] = []
    for item in field.items():
        tenant = _tenant(item, endpoint, environment, folder)
        if any(tenant.name == other.name for other in tenants):
            item.fail(f"is the second tenant named {tenant.name!r}", "give each its own name")
        tenants.append(tenant)
    if not tenants:
        field.fail("is empty", "add at least one tenant")
    return tuple(tenants)


def _tenant(item: Field, endpoint: Endpoint, environment: Mapping[str, str], folder: Path) -> Tenant:
    fields = item.fields(_TENANT, required=("name",))
    name = fields["name"].name()
    endpoint = given(fields, "endpoint", _endpoint, endpoint)
    check_fields(fields, endpoint)
    if "arrivals" not in fields and "trace" not in fields:
        item.fail("has no arrivals", "add 'arrivals:' with a process, or 'trace:' with a recorded workload")
    process = given(fields, "arrivals", _process, Replay())
    trace = given(fields, "trace", lambda f: _trace(f, endpoint, folder, "arrivals" in fields), None)
    _check_lengths(item, fields, endpoint, trace)
    dialect = DIALECTS[endpoint]
    starts = given(fields, "starts_s", lambda f: f.number("seconds"), 0.0)
    return Tenant(
        name=name,
        process=process,
        input=given(fields, "input", length_fields.lengths, Fixed(1)),
        output=given(fields, "output", length_fields.lengths, Fixed(1 if dialect.generates else 0)),
        key=given(fields, "key", lambda f: secret(f, environment), None),
        endpoint=endpoint,
        model=given(fields, "model", Field.name, None),
        ignore_eos=given(fields, "ignore_eos", Field.truth, dialect.takes_ignore_eos),
        batch=given(fields, "batch", _batch, dialect.batch or 1),
        headers=given(fields, "headers", lambda f: headers(f, environment, has_key="key" in fields), ()),
        extra_body=given(fields, "extra_body", extra_body, ()),
        prefix=given(fields, "prefix", lambda f: _prefix(f, name), None),
        retries=given(fields, "retries", _retries, Retries()),
        priority=given(
            fields, "priority", lambda f: f.whole("(a priority)", least=-(1 << 31), most=(1 << 31) - 1), None
        ),
        tier=given(fields, "tier", Field.name, ""),
        slo=given(fields, "slo", _slo, None),
        starts_s=starts,
        ends_s=given(fields, "ends_s", lambda f: f.number("seconds", least=starts, above=True), None),
        trace=trace,
        cancel=given(fields, "cancel", behaviour_fields.cancel, None),
        conversation=given(fields, "conversation", lambda f: behaviour_fields.conversation(f, trace), None),
    )


def _trace(field: Field, endpoint: Endpoint, folder: Path, has_arrivals: bool) -> Trace:
    trace = trace_field.read(field, folder, has_arrivals=has_arrivals)
    if DIALECTS[endpoint].generates:
        return trace
    if any(traced.messages for traced in trace.requests):
        field.fail(f"has conversations, which the {endpoint} endpoint does not take", "use the chat endpoint")
    return replace(trace, requests=tuple(replace(traced, output_tokens=0) for traced in trace.requests))


def _check_lengths(item: Field, fields: dict[str, Field], endpoint: Endpoint, trace: Trace | None) -> None:
    """Either a trace has the lengths, or the tenant."""
    if trace is None:
        for name in ("input", "output") if DIALECTS[endpoint].generates else ("input",):
            if name not in fields:
                item.fail(f"has no {name}", f"add '{name}:' with a number of tokens or a distribution")
        return
    if trace.is_conversations and "conversation" not in fields:
        fields["trace"].fail("has whole conversations", "add 'conversation: {think_s: 5}' to the tenant")
    for name in ("input", "output", *(() if trace.is_conversations else ("conversation",))):
        if name in fields:
            fields[name].fail(
                "cannot be combined with a trace, which has requests of its own", f"remove '{name}:'"
            )
    if "prefix" in fields and any(traced.blocks or traced.messages for traced in trace.requests):
        fields["prefix"].fail(
            "cannot be combined with a trace, which has prefixes of its own", "remove 'prefix:'"
        )


def _batch(field: Field) -> int:
    return field.whole("texts", least=1, most=MOST_BATCH)


def _prefix(field: Field, tenant: str) -> Prefix:
    fields = field.fields(("share", "tokens", "name"), required=("tokens",))
    return Prefix(
        share=given(fields, "share", lambda f: f.number("(a share)", most=1.0), 1.0),
        tokens=fields["tokens"].whole("tokens", least=1, most=LONGEST_TOKENS),
        name=given(fields, "name", Field.name, tenant),
    )


def _retries(field: Field) -> Retries:
    fields = field.fields(("most", "honour_retry_after", "wait_s"))
    return Retries(
        most=given(fields, "most", lambda f: f.whole("retries"), 0),
        honour_retry_after=given(fields, "honour_retry_after", Field.truth, True),
        wait_s=given(fields, "wait_s", lambda f: f.number("seconds"), 0.5),
    )


_GOALS = ("ttft_ms", "tpot_ms", "e2e_ms")


def _slo(field: Field) -> Slo:
    fields = field.fields(_GOALS)
    if not fields:
        field.fail("has no goal", f"write at least one of {', '.join(_GOALS)}, such as {{ttft_ms: 300}}")
    return Slo(
        *(given(fields, goal, lambda f: f.number("milliseconds", above=True), None) for goal in _GOALS)
    )


def _rate(fields: dict[str, Field], name: str = "rate") -> float:
    return fields[name].number("requests per second", above=True)


def _constant(field: Field) -> Constant:
    return Constant(_rate(field.fields(("rate",), required=("rate",))))


def _poisson(field: Field) -> Poisson:
    return Poisson(_rate(field.fields(("rate",), required=("rate",))))


def _bursty(field: Field) -> Bursty:
    fields = field.fields(("rate", "burst"), required=("rate", "burst"))
    return Bursty(_rate(fields), fields["burst"].whole("requests", least=1))


def _gamma(field: Field) -> Gamma:
    fields = field.fields(("rate", "cv"), required=("rate", "cv"))
    return Gamma(_rate(fields), fields["cv"].number("(no unit)", least=LEAST_CV, most=MOST_CV))


def _ramp(field: Field) -> Ramp:
    fields = field.fields(("from", "to", "over_s"), required=("from", "to", "over_s"))
    start, end = (fields[name].number("requests per second") for name in ("from", "to"))
    return Ramp(start, end, fields["over_s"].number("seconds", above=True))


def _on_off(field: Field) -> OnOff:
    fields = field.fields(("rate", "on_s", "off_s"), required=("rate", "on_s", "off_s"))
    on, off = (fields[name].number("seconds", above=True) for name in ("on_s", "off_s"))
    return OnOff(_rate(fields), on, off)


def _closed(field: Field) -> Closed:
    fields = field.fields(("workers", "think_s"), required=("workers",))
    think = given(fields, "think_s", lambda f: f.number("seconds"), 0.0)
    return Closed(fields["workers"].whole("workers", least=1, most=100_000), think)


_PROCESSES: dict[str, Callable[[Field], Process]] = {
    "constant": _constant,
    "poisson": _poisson,
    "bursty": _bursty,
    "gamma": _gamma,
    "ramp": _ramp,
    "on_off": _on_off,
    "closed": _closed,
}


def _process(field: Field) -> Process:
    kind, body = field.one(tuple(_PROCESSES))
    return _PROCESSES[kind](body)


def _phases(field: Field, tenants: tuple[Tenant, ...], duration: float) -> tuple[Phase, ...]:
    phases: list[Phase] = []
    for item in field.items():
        phase = _phase(item, tenants, duration)
        for other in phases:
            if phase.name == other.name:
                item.fail(f"is the second phase named {phase.name!r}", "give each its own name")
            if phase.from_s < other.to_s and other.from_s < phase.to_s:
                item.fail(f"overlaps phase {other.name!r}", "let one begin when the other ends")
        phases.append(phase)
    return tuple(sorted(phases, key=lambda phase: phase.from_s))


def _phase(item: Field, tenants: tuple[Tenant, ...], duration: float) -> Phase:
    fields = item.fields(("name", "from", "to", "rates"), required=("name", "from", "to"))
    start = fields["from"].number("seconds", most=duration)
    end = fields["to"].number("seconds", least=start, above=True, most=duration)
    rates = fields["rates"].named() if "rates" in fields else {}
    return Phase(fields["name"].name(), start, end, tuple(_factor(f, n, tenants) for n, f in rates.items()))


def _factor(field: Field, name: str, tenants: tuple[Tenant, ...]) -> tuple[str, float]:
    tenant = next((tenant for tenant in tenants if tenant.name == name), None)
    if tenant is None:
        field.fail("names no tenant", f"use one of {', '.join(tenant.name for tenant in tenants)}")
    # A trace can be thinned out, but not made denser.
    most = 1.0 if isinstance(tenant.process, Replay) else math.inf
    return name, field.number("times the tenant's rate", most=most)


def _fault(item: Field, duration: float) -> Fault:
    fields = item.fields(("at_s", "run", "signal", "pid_file"), required=("at_s",))
    at = fields["at_s"].number("seconds", most=duration)
    if ("run" in fields) == ("signal" in fields):
        item.fail(
            "must have either a command or a signal",
            "give either 'run:' (a list) or 'signal:' with 'pid_file:'",
        )
    if "run" in fields:
        command = tuple(part.text() for part in fields["run"].items())
        if not command:
            fields["run"].fail("is empty", "write the command as a list: [docker, stop, engine]")
        return Fault(at, command=command)
    if "pid_file" not in fields:
        item.fail("has no pid_file", "add 'pid_file:', the file that holds the process's id")
    return Fault(at, signal=fields["signal"].word(SIGNALS), pid_file=fields["pid_file"].line())
