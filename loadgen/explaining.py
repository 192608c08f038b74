"""An explanation of a scenario before its run: the expected requests of each tenant in each phase. Pure."""

from __future__ import annotations

from loadgen import words
from loadgen.arrivals import expected_requests, most_workers
from loadgen.lengths import mean
from loadgen.prompts import form
from loadgen.scenario import Closed, Conversation, PromptForm, Replay, Scenario, Slo, Tenant
from loadgen.workloads.prefix_hits import best_share


def explain(scenario: Scenario) -> str:
    """Several lines for a terminal."""
    lines = [
        f"{scenario.name}: {scenario.duration_s:g} s, seed {scenario.seed}, model {scenario.model}, "
        f"{'streamed' if scenario.stream else 'not streamed'}",
        "",
        words.text_table(_HEAD, [_row(scenario, tenant) for tenant in scenario.tenants]),
    ]
    if scenario.warm_up_s or scenario.cool_down_s:
        ends = scenario.duration_s - scenario.cool_down_s
        lines.append(f"measured: requests that are due from {scenario.warm_up_s:g} to {ends:g} s")
    lines += [note for tenant in scenario.tenants for note in _trace_notes(tenant)]
    lines += [f"slo of {t.name}: {_slo(t.slo)}" for t in scenario.tenants if t.slo is not None]
    lines += [f"phase {p.name}: {p.from_s:g} to {p.to_s:g} s{_rates(p.rates)}" for p in scenario.phases]
    lines += [f"fault at {fault.at_s:g} s: {fault.name}" for fault in scenario.faults]
    return "\n".join(lines)


def _slo(slo: Slo) -> str:
    limits = {
        "time to first token": slo.ttft_ms,
        "time per output token": slo.tpot_ms,
        "end to end": slo.e2e_ms,
    }
    return ", ".join(f"{what} at most {ms:g} ms" for what, ms in limits.items() if ms is not None)


_HEAD = (
    "tenant",
    "endpoint",
    "prompts",
    "arrivals",
    "requests",
    "input",
    "output",
    "tokens/s offered",
    "retries",
)


def _row(scenario: Scenario, tenant: Tenant) -> list[str]:
    asked = expected_requests(scenario, tenant)
    inputs, outputs = _lengths(tenant)
    starts, ends = scenario.span(tenant)
    offered = asked * (inputs + outputs) / (ends - starts) if asked is not None and ends > starts else None
    return [
        tenant.name,
        _endpoint(tenant),
        "token ids" if form(scenario.prompt, tenant) is PromptForm.IDS else "text",
        _arrivals(scenario, tenant),
        words.NOTHING if asked is None else f"about {asked:.0f}",
        f"{inputs:.0f}",
        f"{outputs:.0f}",
        words.NOTHING if offered is None else words.amount(offered),
        _retries(tenant),
    ]


def _endpoint(tenant: Tenant) -> str:
    own = [tenant.model] if tenant.model is not None else []
    own += [name for name, _ in tenant.extra_body]
    return f"{tenant.endpoint} ({', '.join(own)})" if own else str(tenant.endpoint)


def _arrivals(scenario: Scenario, tenant: Tenant) -> str:
    process = tenant.process
    if isinstance(process, Closed):
        return f"closed, {most_workers(scenario, tenant)} workers"
    if isinstance(process, Replay):
        return "trace"
    kind = type(process).__name__.lower()
    talks = tenant.conversation
    return kind if talks is None else f"{kind}, conversations of {mean(talks.turns):.3g} turns"


def _lengths(tenant: Tenant) -> tuple[float, float]:
    if tenant.trace is not None:
        known = tenant.trace.requests
        return (
            sum(traced.input_tokens for traced in known) / len(known),
            sum(traced.output_tokens for traced in known) / len(known),
        )
    inputs, outputs = mean(tenant.input), mean(tenant.output)
    return (
        (inputs, outputs) if tenant.conversation is None else _by_turn(tenant.conversation, inputs, outputs)
    )


def _by_turn(conversation: Conversation, inputs: float, outputs: float) -> tuple[float, float]:
    """The mean lengths over the turns of a mean conversation. Each input carries the earlier turns."""
    later_input, later_output = conversation.later_input, conversation.later_output
    more = mean(later_input) if later_input is not None else inputs
    answer = mean(later_output) if later_output is not None else outputs
    later = mean(conversation.turns) - 1
    # The turn k after the first carries the first turn, k - 1 later ones, and has new tokens of its own.
    carried = later * (inputs + outputs) + later * (later - 1) / 2 * (more + answer) + later * more
    return (inputs + carried) / (later + 1), (outputs + later * answer) / (later + 1)


def _trace_notes(tenant: Tenant) -> list[str]:
    """The origin of a tenant's requests, and what was changed."""
    trace = tenant.trace
    if trace is None:
        return []
    lines = [f"trace of {tenant.name}: {len(trace.requests)} requests of {trace.file}"]
    if trace.block_tokens:
        lines.append(
            f"trace of {tenant.name}: an unbounded prefix cache hits {best_share(trace):.1%} of the input"
        )
    return [*lines, *trace.notes]


def _retries(tenant: Tenant) -> str:
    if not tenant.retries.most:
        return "none"
    kind = "as Retry-After says" if tenant.retries.honour_retry_after else "with waits of their own"
    return f"{tenant.retries.most}, {kind}"


def _rates(rates: tuple[tuple[str, float], ...]) -> str:
    return "".join(f", {name} x {factor:g}" for name, factor in rates)
