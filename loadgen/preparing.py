"""What is done before a run for exact lengths: words are learned, and recorded texts are counted.

Nothing here runs while requests are sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import islice

from loadgen import arrivals, prompts, wording
from loadgen.fields import ScenarioError
from loadgen.scenario import Message, Route, Scenario, Tenant, Traced
from loadgen.tokenizing import Counter, counting
from loadgen.workloads.selection import left_out

_SAMPLE = 8
"""Prompts of each tenant that are counted, to check the lengths."""


async def prepare(scenario: Scenario, url: str) -> tuple[Scenario, list[str]]:
    """The scenario with exact lengths, and sentences for the report. Raises ``ScenarioError``."""
    if scenario.tokenizer is None:
        return scenario, trace_notes(scenario)
    async with counting(scenario, url) as counter:
        return await prepared(scenario, counter)


async def prepared(scenario: Scenario, counter: Counter) -> tuple[Scenario, list[str]]:
    """The same with a counter."""
    route = scenario.route

    async def count(text: str) -> int:
        return await counter.prompt(prompts.prompt_of_messages(route, [Message("user", text)]))

    tenants = [await _counted(tenant, route, counter) for tenant in scenario.tenants]
    learned = await wording.learn(count, scenario.seed)
    scenario = replace(scenario, tenants=tuple(tenants), wording=learned)
    return scenario, [*trace_notes(scenario), *await _checked(scenario, counter)]


def trace_notes(scenario: Scenario) -> list[str]:
    """What the traces of a scenario leave out and change."""
    return [note for tenant in scenario.tenants if tenant.trace is not None for note in tenant.trace.notes]


async def _counted(tenant: Tenant, route: Route, counter: Counter) -> Tenant:
    """The tenant with exact lengths for the texts of its trace."""
    trace = tenant.trace
    if trace is None or not any(traced.messages for traced in trace.requests):
        return tenant
    exact = await asyncio.gather(*(_exact(traced, route, counter) for traced in trace.requests))
    most = trace.most_input
    kept = tuple(traced for traced in exact if most is None or traced.input_tokens <= most)
    notes = trace.notes
    if len(kept) < len(exact):
        notes = (*notes, f"{trace.file}: {left_out(len(exact) - len(kept), most)}, by the tokenizer's count.")
    if not kept:
        raise ScenarioError(
            f"{trace.file}: each request has more than {most} input tokens; write a higher most_input"
        )
    return replace(tenant, trace=replace(trace, requests=kept, notes=notes))


async def _exact(traced: Traced, route: Route, counter: Counter) -> Traced:
    inputs, outputs = await asyncio.gather(
        counter.prompt(prompts.prompt_of_messages(route, traced.messages)), counter.text(traced.answer)
    )
    return replace(traced, input_tokens=inputs, output_tokens=max(outputs, 1))


async def _checked(scenario: Scenario, counter: Counter) -> tuple[str, ...]:
    """A sentence about the first prompts of each tenant whose lengths are not exact."""
    asked = [(t, r) for t in scenario.tenants for r in islice(arrivals.requests(t, scenario.seed), _SAMPLE)]
    counts = await asyncio.gather(
        *(
            counter.prompt(prompts.prompt(scenario, tenant, request, scenario.seed))
            for tenant, request in asked
        )
    )
    wrong = [
        count - request.input_tokens
        for (_, request), count in zip(asked, counts, strict=True)
        if count != request.input_tokens
    ]
    if not wrong:
        return ()
    worst = max(wrong, key=abs)
    return (
        f"Before the run, {len(wrong)} of {len(asked)} counted prompts differed from their length, "
        f"by up to {worst:+d} tokens.",
    )
