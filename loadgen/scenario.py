"""Scenarios as records: tenants, their arrivals and request sizes, phases and faults.

This module has the records only. `reading` reads them from YAML, and `arrivals` makes arrivals from them.
Times are seconds from the start of the run, rates are requests per second, lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class Endpoint(StrEnum):
    """The API of a tenant's requests. ``endpoints.table`` has the path and the format of each."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"


class PromptForm(StrEnum):
    """The form of a prompt in a request."""

    TEXT = "text"
    """Text of about the requested length, without a tokenizer."""
    IDS = "ids"
    """Token ids, so that lengths are exact. Tenants whose endpoint accepts texts only send texts."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What counts the tokens of texts before a run."""

    file: str = ""
    """The path of a ``tokenizer.json``. Empty for the route ``/tokenize`` of the engine."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How texts of exact lengths are made. `wording` finds it before a run."""

    tokens_per_byte: float
    """For text of random letters, if there are no words."""
    words: tuple[str, ...] = ()
    """Words that are one token each, also beside each other."""
    overhead: int = 0
    """Tokens that the engine adds to each prompt, such as those of its chat template."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Uniform:
    """A uniform distribution over a range, both ends included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal distribution, clipped to a range."""

    mean: float
    deviation: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A log-normal distribution, clipped to a range. Prompts of people have a similar long tail."""

    median: float
    sigma: float
    """Standard deviation of the length's natural logarithm."""
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Empirical:
    """Observed lengths, each with a weight."""

    lengths: tuple[int, ...]
    weights: tuple[float, ...]


Lengths = Fixed | Uniform | Normal | Lognormal | Empirical


@dataclass(frozen=True, slots=True)
class Constant:
    """One request every ``1 / rate`` seconds."""

    rate: float


@dataclass(frozen=True, slots=True)
class Poisson:
    """A Poisson process, as of many independent users."""

    rate: float


@dataclass(frozen=True, slots=True)
class Bursty:
    """Batches of ``burst`` simultaneous requests. The batches are a Poisson process."""

    rate: float
    """Requests per second, not batches."""
    burst: int


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps with a gamma distribution: Poisson for ``cv`` 1, clustered above, more even below."""

    rate: float
    cv: float
    """The coefficient of variation of the gaps: their standard deviation divided by their mean."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """A Poisson process with a linear change of rate, and a constant rate afterwards."""

    start: float
    end: float
    over_s: float


@dataclass(frozen=True, slots=True)
class OnOff:
    """A Poisson process that pauses."""

    rate: float
    on_s: float
    off_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    """Workers that wait for each response before the next request: persistent demand, not open-loop."""

    workers: int
    think_s: float


class Message(NamedTuple):
    """One message of a recorded conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Traced:
    """One request of a trace."""

    at_s: float
    """The time from the start of the trace; 0 in a trace without times."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """An id for each block of prompt tokens. Equal ids become equal text."""
    messages: tuple[Message, ...] = ()
    """The text of the prompt, if the trace has it."""
    answer: str = ""
    """The recorded answer, whose length the request asks for."""
    later: tuple[Traced, ...] = ()
    """The later turns of the conversation, each with its own question only."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests of a file, in order, after all changes that the scenario asks for."""

    file: str
    requests: tuple[Traced, ...]
    block_tokens: int = 0
    """The tokens of each block of a prompt; 0 without blocks."""
    is_conversations: bool = False
    """Whether each request begins a conversation, with its ``later`` turns."""
    most_input: int | None = None
    """Prompts of recorded text are left out above this many tokens."""
    most_output: int | None = None
    """Answers are cut to this many tokens."""
    notes: tuple[str, ...] = ()
    """What was changed and left out, in sentences."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The requests of the tenant's trace at their own times."""


Process = Constant | Poisson | Bursty | Gamma | Ramp | OnOff | Closed | Replay


@dataclass(frozen=True, slots=True)
class Prefix:
    """A shared beginning of requests, such as a system prompt."""

    share: float
    """The share of the tenant's requests, 0 to 1."""
    tokens: int
    """The length of the shared beginning. The input length includes it."""
    name: str
    """Tenants with the same name share one prefix."""


@dataclass(frozen=True, slots=True)
class Retries:
    """The client's behaviour after a 429, a 503 or a broken connection."""

    most: int = 0
    """Attempts after the first."""
    honour_retry_after: bool = True
    wait_s: float = 0.5
    """The wait without Retry-After. It doubles each time up to ``LONGEST_WAIT_S``, with jitter."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Requests that the client ends itself, as a user who presses "stop" does."""

    share: float
    """The share of the tenant's requests, 0 to 1."""
    after_s: float | None = None
    """The time from the sending of an attempt to its cancellation ..."""
    after_tokens: int | None = None
    """... or the number of received tokens. Exactly one of the two is given."""


@dataclass(frozen=True, slots=True)
class Exponential:
    """Pauses with an exponential distribution."""

    mean: float


@dataclass(frozen=True, slots=True)
class Between:
    """Pauses with a uniform distribution over a range."""

    least: float
    most: float


Pauses = float | Exponential | Between
"""Pauses in seconds: always the same, or drawn."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Requests in conversations. Each turn sends the earlier turns with the received answers.

    The tenant's arrivals are the starts of conversations; its rate counts conversations.
    """

    turns: Lengths
    """The number of turns of a conversation."""
    think_s: Pauses
    """The pause between the end of an answer and the next turn."""
    later_input: Lengths | None = None
    """New tokens of each turn after the first; ``None`` is the tenant's ``input``."""
    later_output: Lengths | None = None
    """Answers of the turns after the first; ``None`` is the tenant's ``output``."""


LONGEST_WAIT_S = 8.0
"""The longest wait of the SDKs of OpenAI and Anthropic, s."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header of requests. Its value may be a secret, so results contain the name only."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Slo:
    """A tenant's goals for each request, in milliseconds; ``None`` for no goal. Named as in pool files.

    The time to first token and the time until the last token count from the due time of the request.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    """Time per output token after the first."""
    e2e_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant's demand."""

    name: str
    process: Process
    input: Lengths
    output: Lengths
    key: str | None = None
    """The API key; ``None`` sends none."""
    endpoint: Endpoint = Endpoint.COMPLETIONS
    model: str | None = None
    """The model or LoRA adapter; ``None`` is the scenario's."""
    ignore_eos: bool = True
    """Whether the engine generates until the requested length. The length is otherwise an upper bound."""
    batch: int = 1
    """The number of texts of a request to embed, or of documents to rerank."""
    headers: tuple[Header, ...] = ()
    """Further headers of each request."""
    extra_body: tuple[tuple[str, object], ...] = ()
    """Further fields of each body, as JSON values."""
    prefix: Prefix | None = None
    retries: Retries = Retries()
    priority: int | None = None
    """vLLM's ``priority`` field, for engines that schedule by it."""
    tier: str = ""
    """For the report and for goals such as ``guaranteed.ttft.p99<=300ms``."""
    slo: Slo | None = None
    starts_s: float = 0.0
    ends_s: float | None = None
    cancel: Cancel | None = None
    conversation: Conversation | None = None
    trace: Trace | None = None
    """The requests in order, instead of ``input`` and ``output``. The first one follows the last one."""
    wording: Wording | None = None
    """Set before the run, if there is a tokenizer."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of time with its own rates and its own rows in the report."""

    name: str
    from_s: float
    to_s: float
    rates: tuple[tuple[str, float], ...] = ()
    """Factors by tenant; 1 for other tenants."""

    def factor(self, tenant: str) -> float:
        """The factor of a tenant's rate in this phase."""
        return dict(self.rates).get(tenant, 1.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the system: a command, or a signal to the process with the id in a file."""

    at_s: float
    command: tuple[str, ...] = ()
    signal: str = ""
    pid_file: str = ""

    @property
    def name(self) -> str:
        """A description of the fault."""
        return " ".join(self.command) if self.command else f"SIG{self.signal} to {self.pid_file}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """The plan of one run."""

    name: str
    model: str
    duration_s: float
    """The duration of the arrivals."""
    tenants: tuple[Tenant, ...]
    seed: int = 0
    prompt: PromptForm = PromptForm.IDS
    tokens_per_byte: float = 0.25
    """Assumed tokens per byte of text."""
    tokenizer: Tokenizer | None = None
    """What counts the tokens of texts before the run; ``None`` assumes ``tokens_per_byte``."""
    stream: bool = True
    timeout_s: float = 120.0
    """The time limit of an attempt."""
    drain_s: float = 120.0
    """The time limit for responses after the last arrival."""
    spread: str | tuple[float, ...] = "round_robin"
    """The distribution over the URLs: ``round_robin``, ``random``, or weights in their order."""
    phases: tuple[Phase, ...] = ()
    faults: tuple[Fault, ...] = ()
    warm_up_s: float = 0.0
    """Requests that are due in this time from the start are not measured."""
    cool_down_s: float = 0.0
    """Requests that are due in this time before the end of the arrivals are not measured."""

    def is_measured(self, at_s: float) -> bool:
        """Whether a request that is due at this time counts."""
        return self.warm_up_s <= at_s < self.duration_s - self.cool_down_s

    def phase_at(self, at_s: float) -> Phase | None:
        """The phase at a time; ``None`` between phases."""
        return next((p for p in self.phases if p.from_s <= at_s < p.to_s), None)

    def factor(self, tenant: str, at_s: float) -> float:
        """The factor of a tenant's rate at a time."""
        phase = self.phase_at(at_s)
        return phase.factor(tenant) if phase is not None else 1.0

    def span(self, tenant: Tenant) -> tuple[float, float]:
        """The start and the end of a tenant's arrivals."""
        ends = self.duration_s if tenant.ends_s is None else min(tenant.ends_s, self.duration_s)
        return min(tenant.starts_s, ends), ends

    def edges(self) -> Iterator[float]:
        """The times at which phases begin and end."""
        for phase in self.phases:
            yield phase.from_s
            yield phase.to_s


def unmeasured(duration_s: float, warm_up_s: float, cool_down_s: float) -> str | None:
    """The problem, if warm-up and cool-down leave no time to measure."""
    if warm_up_s + cool_down_s < duration_s:
        return None
    return (
        f"has {duration_s:g} s, of which a warm-up of {warm_up_s:g} s and a cool-down of {cool_down_s:g} s "
        "leave nothing to measure"
    )


def faster(scenario: Scenario, factor: float) -> Scenario:
    """The same scenario with all rates and numbers of closed-loop workers multiplied."""
    return replace(scenario, tenants=tuple(_faster(tenant, factor) for tenant in scenario.tenants))


def _faster(tenant: Tenant, factor: float) -> Tenant:
    process = tenant.process
    match process:
        case Constant() | Poisson() | Bursty() | Gamma() | OnOff():
            process = replace(process, rate=process.rate * factor)
        case Ramp():
            process = replace(process, start=process.start * factor, end=process.end * factor)
        case Closed():
            process = replace(process, workers=max(round(process.workers * factor), 1))
        case Replay():
            return replace(tenant, trace=_denser(tenant.trace, factor))
    return replace(tenant, process=process)


def _denser(trace: Trace | None, factor: float) -> Trace | None:
    if trace is None:
        return None
    requests = tuple(replace(traced, at_s=traced.at_s / factor) for traced in trace.requests)
    return replace(trace, requests=requests)


def lasting(scenario: Scenario, seconds: float) -> Scenario:
    """The same scenario in ``seconds``. Phases, faults, ramps, pauses, warm-up and cool-down scale with it.

    Rates, lengths, timeouts and traces stay as they are.
    """
    by = seconds / scenario.duration_s
    return replace(
        scenario,
        duration_s=seconds,
        warm_up_s=scenario.warm_up_s * by,
        cool_down_s=scenario.cool_down_s * by,
        tenants=tuple(_stretched(tenant, by) for tenant in scenario.tenants),
        phases=tuple(replace(p, from_s=p.from_s * by, to_s=p.to_s * by) for p in scenario.phases),
        faults=tuple(replace(fault, at_s=fault.at_s * by) for fault in scenario.faults),
    )


def _stretched(tenant: Tenant, by: float) -> Tenant:
    process = tenant.process
    if isinstance(process, Ramp):
        process = replace(process, over_s=process.over_s * by)
    elif isinstance(process, OnOff):
        process = replace(process, on_s=process.on_s * by, off_s=process.off_s * by)
    ends = tenant.ends_s * by if tenant.ends_s is not None else None
    return replace(tenant, process=process, starts_s=tenant.starts_s * by, ends_s=ends)
