"""Scenarios as records: tenants, their arrivals and request sizes, phases and faults.

Only what a scenario is, lives here. Reading one from YAML is `reading`, arrivals made of it are `arrivals`.
Times are seconds from the start of the run, rates are requests per second, lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Route(StrEnum):
    """Which of vLLM's routes is asked."""

    CHAT = "chat"
    COMPLETIONS = "completions"

    @property
    def path(self) -> str:
        """The path that follows the server's address."""
        return "/v1/chat/completions" if self is Route.CHAT else "/v1/completions"


class PromptForm(StrEnum):
    """The form of a prompt in a request."""

    TEXT = "text"
    """Text of about the asked length: no tokenizer is at hand."""
    IDS = "ids"
    """Token ids, so that lengths are exact. Completions only."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length of a range, its ends included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Normal:
    """A bell, clipped to a range."""

    mean: float
    deviation: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Mostly short with a long tail, clipped to a range; what prompts of people look like."""

    median: float
    sigma: float
    """Standard deviation of the length's natural logarithm."""
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Empirical:
    """Lengths as they were seen, each with its weight."""

    lengths: tuple[int, ...]
    weights: tuple[float, ...]


Lengths = Fixed | Uniform | Normal | Lognormal | Empirical


@dataclass(frozen=True, slots=True)
class Constant:
    """One request every ``1 / rate`` seconds."""

    rate: float


@dataclass(frozen=True, slots=True)
class Poisson:
    """Many independent users."""

    rate: float


@dataclass(frozen=True, slots=True)
class Bursty:
    """Batches of ``burst`` requests at once, the batches as a Poisson process."""

    rate: float
    """Requests, not batches."""
    burst: int


@dataclass(frozen=True, slots=True)
class Ramp:
    """A Poisson process whose rate goes straight from one to another, and stays there."""

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
    """Workers that each wait for their answer before the next request: persistent demand, not open-loop."""

    workers: int
    think_s: float


@dataclass(frozen=True, slots=True)
class Traced:
    """One request of a trace."""

    at_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded trace, replayed."""

    file: str
    trace: tuple[Traced, ...]


Process = Constant | Poisson | Bursty | Ramp | OnOff | Closed | Replay


@dataclass(frozen=True, slots=True)
class Prefix:
    """Requests that begin alike, as those with one system prompt do."""

    share: float
    """Of the tenant's requests, 0 to 1."""
    tokens: int
    """The part of a prompt that is always the same. It is part of the input length."""
    name: str
    """Tenants that give the same name share one prefix."""


@dataclass(frozen=True, slots=True)
class Retries:
    """The client's behaviour after it was shed, found nothing available, or got no answer."""

    most: int = 0
    """Attempts after the first."""
    honour_retry_after: bool = True
    wait_s: float = 0.5
    """The wait where no Retry-After is honoured; doubles each time up to ``LONGEST_WAIT_S``, jittered."""


LONGEST_WAIT_S = 8.0
"""The longest wait of the SDKs of OpenAI and Anthropic, s."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant's demand."""

    name: str
    process: Process
    input: Lengths
    output: Lengths
    key: str | None = None
    """The API key; ``None`` sends none."""
    prefix: Prefix | None = None
    retries: Retries = Retries()
    priority: int | None = None
    """vLLM's ``priority`` field, for engines that schedule by it."""
    tier: str = ""
    """For the report only."""
    starts_s: float = 0.0
    ends_s: float | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of time that the report looks at by itself, and in which rates may differ."""

    name: str
    from_s: float
    to_s: float
    rates: tuple[tuple[str, float], ...] = ()
    """Factors by tenant; 1 for those not named."""

    def factor(self, tenant: str) -> float:
        """The factor of a tenant's rate in this phase."""
        return dict(self.rates).get(tenant, 1.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done to the system: a command, or a signal to a process whose id is in a file."""

    at_s: float
    command: tuple[str, ...] = ()
    signal: str = ""
    pid_file: str = ""

    @property
    def name(self) -> str:
        """A description for people."""
        return " ".join(self.command) if self.command else f"SIG{self.signal} to {self.pid_file}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """The plan of one run."""

    name: str
    model: str
    duration_s: float
    """Requests arrive for so long."""
    tenants: tuple[Tenant, ...]
    seed: int = 0
    route: Route = Route.COMPLETIONS
    prompt: PromptForm = PromptForm.IDS
    tokens_per_byte: float = 0.25
    """Assumed tokens per byte of text."""
    stream: bool = True
    timeout_s: float = 120.0
    """An attempt that took longer is given up."""
    drain_s: float = 120.0
    """Time limit for answers after the last arrival."""
    spread: str | tuple[float, ...] = "round_robin"
    """Over several URLs: ``round_robin``, ``random``, or weights in the order of the URLs."""
    phases: tuple[Phase, ...] = ()
    faults: tuple[Fault, ...] = ()

    def phase_at(self, at_s: float) -> Phase | None:
        """The phase at a moment; ``None`` between phases."""
        return next((p for p in self.phases if p.from_s <= at_s < p.to_s), None)

    def factor(self, tenant: str, at_s: float) -> float:
        """The factor of a tenant's rate at a moment."""
        phase = self.phase_at(at_s)
        return phase.factor(tenant) if phase is not None else 1.0

    def span(self, tenant: Tenant) -> tuple[float, float]:
        """From when to when a tenant asks."""
        ends = self.duration_s if tenant.ends_s is None else min(tenant.ends_s, self.duration_s)
        return min(tenant.starts_s, ends), ends

    def edges(self) -> Iterator[float]:
        """The moments at which phases begin and end."""
        for phase in self.phases:
            yield phase.from_s
            yield phase.to_s


def faster(scenario: Scenario, factor: float) -> Scenario:
    """The same scenario with every rate (and number of closed-loop workers) multiplied."""
    return replace(scenario, tenants=tuple(_faster(tenant, factor) for tenant in scenario.tenants))


def _faster(tenant: Tenant, factor: float) -> Tenant:
    process = tenant.process
    match process:
        case Constant() | Poisson() | Bursty() | OnOff():
            process = replace(process, rate=process.rate * factor)
        case Ramp():
            process = replace(process, start=process.start * factor, end=process.end * factor)
        case Closed():
            process = replace(process, workers=max(round(process.workers * factor), 1))
        case Replay():
            trace = tuple(replace(traced, at_s=traced.at_s / factor) for traced in process.trace)
            process = replace(process, trace=trace)
    return replace(tenant, process=process)


def lasting(scenario: Scenario, seconds: float) -> Scenario:
    """The same scenario in ``seconds``: phases, faults, ramps and pauses shrink or grow with it.

    Rates, lengths, timeouts and traces stay as they are.
    """
    by = seconds / scenario.duration_s
    return replace(
        scenario,
        duration_s=seconds,
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
