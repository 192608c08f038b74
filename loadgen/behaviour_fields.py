"""The behaviour of a tenant's clients in a scenario file: cancellations and conversations.

Each reader raises ``ScenarioError`` for a wrong value, and ``check`` for values that do not go together.
"""

from __future__ import annotations

from loadgen.fields import Field, given
from loadgen.length_fields import lengths, tokens
from loadgen.scenario import (
    Between,
    Cancel,
    Closed,
    Conversation,
    Empirical,
    Exponential,
    Fixed,
    Lengths,
    Pauses,
    PromptForm,
    Replay,
    Tenant,
    Trace,
    Uniform,
)

MOST_TURNS = 1000
"""More turns of a conversation are treated as a typing error."""


def cancel(field: Field) -> Cancel:
    """The cancellations of a tenant."""
    fields = field.fields(("share", "after_s", "after_tokens"), required=("share",))
    share = fields["share"].number("(a share)", above=True, most=1.0)
    if ("after_s" in fields) == ("after_tokens" in fields):
        field.fail(
            "must have either a time or a number of tokens", "give either 'after_s:' or 'after_tokens:'"
        )
    return Cancel(
        share,
        given(fields, "after_s", lambda f: f.number("seconds", above=True), None),
        given(fields, "after_tokens", tokens, None),
    )


def conversation(field: Field, trace: Trace | None = None) -> Conversation:
    """The conversations of a tenant. Those of a trace have turns of their own."""
    if trace is not None:
        fields = field.fields(("think_s",), required=("think_s",))
        counts = tuple(1 + len(traced.later) for traced in trace.requests)
        return Conversation(Empirical(counts, (1.0,) * len(counts)), _pauses(fields["think_s"]))
    fields = field.fields(("turns", "think_s", "later_input", "later_output"), required=("turns", "think_s"))
    return Conversation(
        _turns(fields["turns"]),
        _pauses(fields["think_s"]),
        given(fields, "later_input", lengths, None),
        given(fields, "later_output", lengths, None),
    )


def _turns(field: Field) -> Lengths:
    if field.is_number:
        return Fixed(_count(field))
    _, body = field.one(("uniform",))
    fields = body.fields(("least", "most"), required=("least", "most"))
    least, most = _count(fields["least"]), _count(fields["most"])
    if least > most:
        body.fail(f"has least {least} above most {most}", "swap the two")
    return Uniform(least, most)


def _count(field: Field) -> int:
    return field.whole("turns", least=1, most=MOST_TURNS)


def _pauses(field: Field) -> Pauses:
    if field.is_number:
        return field.number("seconds")
    kind, body = field.one(("exponential", "uniform"))
    if kind == "exponential":
        return Exponential(body.fields(("mean",), required=("mean",))["mean"].number("seconds", above=True))
    fields = body.fields(("least", "most"), required=("least", "most"))
    least = fields["least"].number("seconds")
    return Between(least, fields["most"].number("seconds", least=least))


def check(item: Field, tenant: Tenant, form: PromptForm, *, is_streamed: bool) -> None:
    """Raise ``ScenarioError`` if a tenant's behaviour or goals do not fit its other fields."""
    if tenant.cancel is not None and tenant.cancel.after_tokens is not None and not is_streamed:
        item.fail(
            "cancels after a number of tokens, but answers are not streamed",
            "write 'after_s:', or remove 'stream: false'",
        )
    if tenant.slo is not None and tenant.slo.tpot_ms is not None and not is_streamed:
        item.fail(
            "has the goal tpot_ms, but answers are not streamed, so tokens have no times of their own",
            "remove 'tpot_ms:', or 'stream: false'",
        )
    if tenant.conversation is None:
        return
    if isinstance(tenant.process, Closed | Replay):
        item.fail(
            "has conversations, which start at times of their own",
            "use the arrivals constant, poisson, bursty, gamma, ramp or on_off",
        )
    if form is PromptForm.IDS:
        item.fail(
            "has conversations, whose turns carry answers as text; but prompts are token ids",
            "write 'endpoint: chat', or 'prompt: text'",
        )
