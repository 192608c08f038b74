"""An explanation of a scenario before its run: the expected requests of each tenant in each phase. Pure."""

from __future__ import annotations

from loadgen import words
from loadgen.arrivals import most_workers, segments
from loadgen.lengths import mean
from loadgen.prompts import form
from loadgen.scenario import Closed, PromptForm, Replay, Scenario, Tenant


def explain(scenario: Scenario) -> str:
    """Several lines for a terminal."""
    lines = [
        f"{scenario.name}: {scenario.duration_s:g} s, seed {scenario.seed}, model {scenario.model}, "
        f"{'streamed' if scenario.stream else 'not streamed'}",
        "",
        words.text_table(_HEAD, [_row(scenario, tenant) for tenant in scenario.tenants]),
    ]
    lines += [f"phase {p.name}: {p.from_s:g} to {p.to_s:g} s{_rates(p.rates)}" for p in scenario.phases]
    lines += [f"fault at {fault.at_s:g} s: {fault.name}" for fault in scenario.faults]
    return "\n".join(lines)


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
    asked = _expected(scenario, tenant)
    inputs, outputs = _lengths(tenant)
    starts, ends = scenario.span(tenant)
    offered = asked * (inputs + outputs) / (ends - starts) if asked is not None and ends > starts else None
    return [
        tenant.name,
        _endpoint(tenant),
        "token ids" if form(scenario, tenant) is PromptForm.IDS else "text",
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
        return f"replay of {process.file}"
    return type(process).__name__.lower()


def _expected(scenario: Scenario, tenant: Tenant) -> float | None:
    """The expected number of requests. A closed loop sends one after each response."""
    if isinstance(tenant.process, Closed):
        return None
    if isinstance(tenant.process, Replay):
        starts, ends = scenario.span(tenant)
        moments = [starts + traced.at_s for traced in tenant.process.trace]
        return sum(scenario.factor(tenant.name, at) for at in moments if at < ends)
    return sum(segment.area for segment in segments(scenario, tenant))


def _lengths(tenant: Tenant) -> tuple[float, float]:
    if isinstance(tenant.process, Replay):
        trace = tenant.process.trace
        return (
            sum(traced.input_tokens for traced in trace) / len(trace),
            sum(traced.output_tokens for traced in trace) / len(trace),
        )
    return mean(tenant.input), mean(tenant.output)


def _retries(tenant: Tenant) -> str:
    if not tenant.retries.most:
        return "none"
    kind = "as told" if tenant.retries.honour_retry_after else "after their own backoff"
    return f"{tenant.retries.most}, {kind}"


def _rates(rates: tuple[tuple[str, float], ...]) -> str:
    return "".join(f", {name} x {factor:g}" for name, factor in rates)
