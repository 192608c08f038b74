"""Conversations: the turns of each, and the history that a turn carries. Pure and seeded.

Sizes, pauses and numbers of turns depend on the seed alone. The text of a turn depends on the received
answers, too, because it carries them. `run` sends the turns and waits between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from loadgen import prompts
from loadgen.arrivals import Request, stream
from loadgen.lengths import draw
from loadgen.records import AS_PLANNED, Attempt
from loadgen.scenario import Between, Conversation, Exponential, Pauses, Scenario, Tenant


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. Its request has the new tokens only, not those of earlier turns."""

    number: int
    """From 1."""
    request: Request
    think_s: float
    """The pause between the end of the earlier answer and this turn; 0 for the first turn."""


def turns(tenant: Tenant, conversation: Conversation, first: Request, seed: int) -> Iterator[Turn]:
    """The turns of the conversation that begins with ``first``."""
    names = (tenant.name, f"c{first.number}")
    counts, inputs, outputs, pauses, cancels = (
        stream(seed, *names, what) for what in ("turns", "input", "output", "think", "cancel")
    )
    share = tenant.cancel.share if tenant.cancel is not None else 0.0
    yield Turn(1, first, 0.0)
    if first.traced is not None:
        for number, traced in enumerate(first.traced.later, 2):
            lengths = traced.input_tokens, traced.output_tokens
            request = Request(first.number, *lengths, False, cancels.random() < share, traced)
            yield Turn(number, request, _pause(conversation.think_s, pauses))
        return
    for number in range(2, draw(conversation.turns, counts) + 1):
        request = Request(
            first.number,
            draw(conversation.later_input or tenant.input, inputs),
            draw(conversation.later_output or tenant.output, outputs),
            has_prefix=False,
            is_cancelled=cancels.random() < share,
        )
        yield Turn(number, request, _pause(conversation.think_s, pauses))


def _pause(pauses: Pauses, source: Random) -> float:
    match pauses:
        case Exponential(mean):
            return source.expovariate(1 / mean)
        case Between(least, most):
            return source.uniform(least, most)
        case _:
            return pauses


class Talk:
    """A conversation in progress: the messages so far, and their tokens."""

    def __init__(self, scenario: Scenario, tenant: Tenant) -> None:
        self._scenario = scenario
        self._tenant = tenant
        self._messages: list[tuple[str, str]] = []
        self._carried_tokens = 0
        self._asked: list[tuple[str, str]] = []

    def ask(self, turn: Turn) -> tuple[Request, bytes]:
        """The request of a turn with its whole input, and the body that carries the earlier turns."""
        scenario, tenant = self._scenario, self._tenant
        self._asked = self._said(turn)
        request = replace(turn.request, input_tokens=self._carried_tokens + turn.request.input_tokens)
        messages = [*self._messages, *self._asked]
        return request, prompts.body_of_messages(scenario, tenant, request, messages)

    def _said(self, turn: Turn) -> list[tuple[str, str]]:
        """The messages of a turn: its recorded ones, or a question of random text."""
        traced = turn.request.traced
        if traced is not None and traced.messages:
            return [(said.role, said.content) for said in traced.messages]
        own = f"turn {turn.number}" if turn.number > 1 else ""
        return [
            ("user", prompts.content(self._scenario, self._tenant, turn.request, self._scenario.seed, own))
        ]

    def hear(self, last: Attempt, answer: str) -> bool:
        """Take the end of a turn. Returns whether the conversation continues.

        A turn that was cancelled before its first token is not carried, because templates of chats need an
        answer after each question.
        """
        if last.outcome not in AS_PLANNED:  # after a refusal or a failure it ends
            return False
        if answer:
            self._messages += [*self._asked, ("assistant", answer)]
            self._carried_tokens = (last.prompt_tokens or last.input_tokens) + last.tokens
        return True
