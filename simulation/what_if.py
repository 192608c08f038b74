"""What if: recorded requests against a pool file, on a virtual clock. It says who would be shed, and why.

Pure.

The sidecars and the coordinator are the shipped ones. The engine is that of ``loadgen engine``. Requests that
were refused in the past are in a record only if it states them. A client that would have sent again after a
refusal does not: the record shows how often it did.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loadgen.engine.model import Costs, Model, blocks_for
from simulation.figures import Figures
from simulation.setup import Recorded, Setup, Tenant
from simulation.world import simulate
from tokenpool.entitlements import Entitlement, Group, Pool
from tokenpool.outcomes import Reason

LEAD_S = 3.0
"""The simulated time before the first request. The sidecars have joined after less than one second."""
DRAIN_S = 60.0
"""The simulated time after the last request, for the requests that still run."""
PROMPT_PART = 0.1
"""The time for a prompt token as a part of the time for an output token, if only the throughput is known."""


class CannotSimulate(ValueError):
    """The pool file or the record lacks something. The text names it and the fix."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to simulate."""

    pool: Pool
    entitlements: Sequence[Entitlement]
    records: Sequence[Recorded]
    """In the order of their times."""
    replicas: int
    model: Model
    states_bound: bool = False
    """Whether requests state their recorded output as their bound; otherwise they state none."""
    seed: int = 1
    groups: Sequence[Group] = ()
    """All groups of the pool file."""


@dataclass(slots=True)
class Prediction:
    """What would happen to one entitlement."""

    entitlement: str
    tier: str
    """Empty if the pool file has no such entitlement."""
    requests: int = 0
    shed: Counter[str] = field(default_factory=Counter)
    """Refused requests by reason."""
    preempted: int = 0
    first_token_s: list[float] = field(default_factory=list)
    """The times to first token, sorted."""
    refused_at_s: list[float] = field(default_factory=list)
    """The times of refusals, from the first request of the record."""

    @property
    def refused(self) -> int:
        """Refused requests."""
        return self.shed.total()

    @property
    def share(self) -> float:
        """The refused share of requests."""
        return self.refused / self.requests if self.requests else 0.0

    @property
    def served(self) -> int:
        """Requests that ran to their end, or still ran at the end of the simulation."""
        return self.requests - self.refused - self.preempted

    def worst_minute(self) -> tuple[int, int] | None:
        """The minute with the most refusals, and their number; ``None`` without any."""
        minutes = Counter(int(at // 60) for at in self.refused_at_s)
        return max(minutes.items(), key=lambda each: (each[1], -each[0])) if minutes else None


def predict(question: Question) -> list[Prediction]:
    """The prediction for every entitlement of the record, the most refused first."""
    named = {each.name: each for each in question.entitlements if each.pool == question.pool.name}
    model, kept = question.model, []
    found: dict[str, Prediction] = {}
    for each in question.records:
        mine = found.get(each.entitlement)
        if mine is None:
            known = named.get(each.entitlement)
            mine = found[each.entitlement] = Prediction(each.entitlement, known.tier.value if known else "")
        mine.requests += 1
        reason = _refused_at_once(each, mine, model)
        if reason is None:
            kept.append(_possible(each))
        else:
            mine.shed[reason.value] += 1
            mine.refused_at_s.append(each.at_s)
    if kept:
        _add(simulate(_setup(question, kept, named)), found)
    return sorted(found.values(), key=lambda each: (-each.refused, each.entitlement))


def _refused_at_once(recorded: Recorded, mine: Prediction, model: Model) -> Reason | None:
    if not mine.tier:
        return Reason.UNKNOWN_KEY
    return Reason.NEVER_FITS if recorded.input_tokens + recorded.output_tokens > model.window else None


def _possible(recorded: Recorded) -> Recorded:
    """A request with at least one token each way, whose last input token is computed."""
    inputs, outputs = max(recorded.input_tokens, 1), max(recorded.output_tokens, 1)
    return replace(
        recorded,
        input_tokens=inputs,
        output_tokens=outputs,
        cached_tokens=min(recorded.cached_tokens, inputs - 1),
    )


def _setup(question: Question, kept: Sequence[Recorded], named: Mapping[str, Entitlement]) -> Setup:
    present = dict.fromkeys(each.entitlement for each in kept)
    pool = question.pool
    return Setup(
        tenants=[Tenant(named[name], 0) for name in present],
        sidecars=question.replicas,
        slots=question.model.slots,
        seconds=LEAD_S + kept[-1].at_s + DRAIN_S,
        seed=question.seed,
        warm_up_s=LEAD_S,
        replay=kept,
        states_bound=question.states_bound,
        model=question.model,
        replica=pool.replica,
        pricing=pool.pricing,
        groups=[each for each in question.groups if each.pool == pool.name],
    )


def _add(figures: Figures, found: Mapping[str, Prediction]) -> None:
    for at, name, reason in figures.refusals:
        found[name].shed[reason] += 1
        found[name].refused_at_s.append(at - LEAD_S)
    for name, number in figures.preemptions.items():
        found[name].preempted += number
    for name, waits in figures.first_tokens.items():
        found[name].first_token_s = sorted(waits)


# --- the engine ---


def engine_for(pool: Pool, records: Iterable[Recorded], like: Mapping[str, float]) -> Model:
    """The engine of one replica: its sizes and its speed.

    ``like`` is the content of a file of ``loadgen.engine.calibrate``. Without speeds in it, the engine
    sustains the pool file's ``tokens_per_second`` on the mix of this record, with all slots in use. Raises
    ``CannotSimulate``.
    """
    replica, given = pool.replica, dict(like)
    slots = int(replica.concurrency or replica.start.concurrency or given.get("slots", 0))
    if not slots:
        raise CannotSimulate(
            f"pool {pool.name}: the number of sequences of an engine is unknown; set replica.concurrency in"
            " the pool file, or give --engine with a file of python -m loadgen.engine.calibrate"
        )
    records = list(records)
    size = int(given.get("block_size", 16))
    longest = max((each.input_tokens + each.output_tokens for each in records), default=1)
    window = int(given.get("window", 0)) or blocks_for(longest, size) * size
    tokens = replica.kv_tokens or replica.start.kv_tokens or given.get("blocks", 0) * size
    blocks = int(tokens // size) if tokens else slots * blocks_for(window, size)
    return Model(
        slots=slots,
        blocks=max(blocks, blocks_for(window, size)),
        block_size=size,
        window=window,
        costs=_costs(pool, records, given, slots),
    )


_SPEEDS = ("step_s", "per_sequence_s", "per_prompt_token_s", "per_request_s", "noise")


def _costs(pool: Pool, records: Sequence[Recorded], given: Mapping[str, float], slots: int) -> Costs:
    if "step_s" in given:
        return Costs(**{name: given[name] for name in _SPEEDS if name in given})
    throughput = pool.replica.tokens_per_second or pool.replica.start.tokens_per_second
    if not throughput:
        raise CannotSimulate(
            f"pool {pool.name}: the speed of an engine is unknown; set replica.tokens_per_second in the pool"
            " file, or give --engine with a file of python -m loadgen.engine.calibrate"
        )
    inputs = math.fsum(each.input_tokens - each.cached_tokens for each in records)
    outputs = math.fsum(each.output_tokens for each in records) or 1.0
    per_output = (inputs + outputs) / (throughput * (outputs + PROMPT_PART * inputs))
    return Costs(step_s=per_output * slots, per_sequence_s=0.0, per_prompt_token_s=PROMPT_PART * per_output)
