"""What is done before a run for exact lengths: words are learned, and recorded texts are counted.

Nothing here runs while requests are sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from loadgen import arrivals, prompts, wording
from loadgen.endpoints.dialect import Message
from loadgen.endpoints.table import DIALECTS
from loadgen.fields import ScenarioError
from loadgen.scenario import Scenario, Tenant, Traced, Wording
from loadgen.tokenizing import Counter, counting
from loadgen.workloads.selection import left_out

_SAMPLE = 8
"""Prompts of each tenant that are counted, to check the lengths."""


async def prepare(
    scenario: Scenario, url: str, *, tls: ssl.SSLContext | bool = True
) -> tuple[Scenario, list[str]]:
    """The scenario with exact lengths, and sentences for the report. Raises ``ScenarioError``."""
    if scenario.tokenizer is None:
        return scenario, _trace_notes(scenario)
    async with counting(scenario, url, tls) as counter:
        return await prepared(scenario, counter)


async def prepared(scenario: Scenario, counter: Counter) -> tuple[Scenario, list[str]]:
    """The same with a counter."""
    learned: dict[tuple[bool, str | None], Wording] = {}
    tenants = []
    for tenant in scenario.tenants:
        counts = _Prompts(scenario, tenant, counter)
        kind = counts.is_chat, tenant.model
        if kind not in learned:
            learned[kind] = await wording.learn(counts.text, scenario.seed)
        tenants.append(replace(await _counted(tenant, counts), wording=learned[kind]))
    scenario = replace(scenario, tenants=tuple(tenants))
    return scenario, [*_trace_notes(scenario), *await _checked(scenario, counter)]


class _Prompts:
    """Counts prompts of a tenant, in the form in which its endpoint reads them."""

    def __init__(self, scenario: Scenario, tenant: Tenant, counter: Counter) -> None:
        dialect = DIALECTS[tenant.endpoint]
        self.is_chat = dialect.generates and not dialect.accepts_ids
        self.counter = counter
        self._model = tenant.model or scenario.model

    async def text(self, text: str) -> int:
        """The tokens of a prompt with this text."""
        return await self.messages([("user", text)])

    async def messages(self, said: Sequence[Message]) -> int:
        """The tokens of messages. Elsewhere than in chats, they are one text, or a batch of one."""
        if self.is_chat:
            chat = [{"role": role, "content": content} for role, content in said]
            return await self.counter.prompt({"model": self._model, "messages": chat})
        text = "".join(str(content) for _, content in said)
        return await self.counter.prompt({"model": self._model, "prompt": text})


def _trace_notes(scenario: Scenario) -> list[str]:
    """What the traces of a scenario leave out and change."""
    return [note for tenant in scenario.tenants if tenant.trace is not None for note in tenant.trace.notes]


async def _counted(tenant: Tenant, counts: _Prompts) -> Tenant:
    """The tenant with exact lengths for the texts of its trace."""
    trace = tenant.trace
    if trace is None or not any(traced.messages for traced in trace.requests):
        return tenant
    exact = await asyncio.gather(*(_exact(traced, counts, trace.most_output) for traced in trace.requests))
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


async def _exact(traced: Traced, counts: _Prompts, most_output: int | None) -> Traced:
    inputs, outputs = await asyncio.gather(
        counts.messages(traced.messages), counts.counter.text(traced.answer)
    )
    later = await asyncio.gather(*(_exact(turn, counts, most_output) for turn in traced.later))
    outputs = max(min(outputs, most_output or outputs), 1)
    return replace(traced, input_tokens=inputs, output_tokens=outputs, later=tuple(later))


async def _checked(scenario: Scenario, counter: Counter) -> list[str]:
    """A sentence, if the first prompts of the tenants do not have their lengths.

    Batches are not counted: how an engine joins or counts their inputs depends on the endpoint.
    """
    asked = [
        (tenant, request)
        for tenant in scenario.tenants
        if DIALECTS[tenant.endpoint].generates
        for request in islice(arrivals.requests(tenant, scenario.seed), _SAMPLE)
    ]
    counts = await asyncio.gather(
        *(
            _Prompts(scenario, tenant, counter).messages(
                prompts.messages(scenario, tenant, request, scenario.seed)
            )
            for tenant, request in asked
        )
    )
    pairs = zip(counts, asked, strict=True)
    wrong = [count - request.input_tokens for count, (_, request) in pairs if count != request.input_tokens]
    if not wrong:
        return []
    return [
        f"Before the run, {len(wrong)} of {len(asked)} counted prompts differed from the requested length, "
        f"by up to {max(wrong, key=abs):+d} tokens."
    ]
