"""Parts of real traces as tenants of one pool, at rates that a machine can serve. Pure except for the files.

The requests keep their order, and each trace keeps the ratios of its lengths and its shared prefixes. Times
are divided by one factor for all tenants, which changes from phase to phase. So each phase
offers a stated part of what the machine can do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from loadgen.engine.model import Costs
from loadgen.fields import ScenarioError
from loadgen.scenario import Trace, Traced
from loadgen.workloads import azure, mooncake
from loadgen.workloads.prefix_hits import best_share
from loadgen.workloads.rows import Row
from loadgen.workloads.selection import Selection, select


class Source(NamedTuple):
    """A trace, and the terms of its tenant."""

    files: tuple[str, ...]
    """Names of the file; the first one that exists counts. The last one is that of the tests' excerpt."""
    lengths: float
    """The factor of all lengths."""
    terms: str
    """The entitlement's fields beside its name and key."""
    tier: str

    @property
    def is_mooncake(self) -> bool:
        """Whether the format is Mooncake's."""
        return self.files[0].startswith("mooncake")


SOURCES: Mapping[str, Source] = {
    "code": Source(
        ("azure-llm-2023-code.csv.gz",), 0.25, "tier: guaranteed, guarantee: {concurrency: 6}", "guaranteed"
    ),
    "conversation": Source(("azure-llm-2023-conv.csv.gz",), 0.25, "tier: elastic", "elastic"),
    "mooncake": Source(
        ("mooncake-conversation.jsonl.gz", "mooncake-conversation-excerpt.jsonl"),
        0.0625,
        "tier: spot",
        "spot",
    ),
}
MOST_INPUT = 3584
"""Longer prompts are cut, because the small model has a window of 4,096 tokens. These are 2.6 % of Mooncake's
prompts, and none of Azure's."""
MOST_OUTPUT = 480


class Timed(NamedTuple):
    """One request of a tenant."""

    tenant: str
    request: Traced


def read(folder: Path) -> dict[str, Trace]:
    """The scaled traces by tenant, from their first second on. Raises ``ScenarioError``."""
    return {name: _trace(folder, source) for name, source in SOURCES.items()}


def _trace(folder: Path, source: Source) -> Trace:
    path = next((folder / file for file in source.files if (folder / file).exists()), None)
    if path is None:
        raise ScenarioError(
            f"{folder} has no {source.files[0]}: give --traces the folder of the traces"
            " (docs/workloads.md names their sources)"
        )
    rows: Iterable[Row] = mooncake.read(path) if source.is_mooncake else azure.read(path)
    part = Selection(lengths=source.lengths, most_input=MOST_INPUT, most_output=MOST_OUTPUT)
    return select(rows, part, path, path.name, block=mooncake.BLOCK if source.is_mooncake else 0)


def merged(traces: Mapping[str, Trace], from_s: float = 0.0) -> list[Timed]:
    """The requests of all tenants in the order of their times, from ``from_s`` on for as long as all last.

    Raises ``ScenarioError`` if a trace ends before.
    """
    end = min(trace.requests[-1].at_s for trace in traces.values())
    if end <= from_s:
        raise ScenarioError(f"a trace ends at {end:.0f} s: let --from be less than {from_s:g}")
    timed = [
        Timed(name, replace(each, at_s=each.at_s - from_s))
        for name, trace in traces.items()
        for each in trace.requests
        if from_s <= each.at_s <= end
    ]
    return sorted(timed, key=lambda each: each.request.at_s)


@dataclass(frozen=True)
class Phase:
    """A part of the run at one load."""

    load: float
    """The offered work, as a part of the capacity."""
    from_s: float
    to_s: float

    @property
    def name(self) -> str:
        """Its name in the scenario."""
        return f"{self.load:g}x"


def phases(loads: Sequence[float], seconds: float) -> list[Phase]:
    """One phase after the other, each of the same duration."""
    return [Phase(load, seconds * number, seconds * (number + 1)) for number, load in enumerate(loads)]


def replayed(
    requests: Sequence[Timed], work: Sequence[float], plan: Sequence[Phase], engines: int
) -> Iterator[Timed]:
    """The requests at the times of the run, phase after phase.

    Each phase has the next requests of the trace whose ``work`` is its part of what the engines can do. Their
    times are stretched or shortened by one factor. If the trace is too short, it begins again.
    """
    count = len(requests)
    whole = requests[-1].request.at_s * (1 + 1 / count)  # with a gap before it begins again

    def at(place: int) -> float:
        return whole * (place // count) + requests[place % count].request.at_s

    first = 0
    for phase in plan:
        seconds = phase.to_s - phase.from_s
        left, last = phase.load * engines * seconds, first
        while left > 0:
            left -= work[last % count]
            last += 1
        factor = seconds / max(at(last) - at(first), 1e-9)
        for place in range(first, last):
            tenant, request = requests[place % count]
            since = min((at(place) - at(first)) * factor, seconds * (1 - 1e-9))
            yield Timed(tenant, replace(request, at_s=phase.from_s + since))
        first = last


def engine_seconds(
    requests: Sequence[Timed], traces: Mapping[str, Trace], costs: Costs, slots: int
) -> list[float]:
    """The time that each request takes of a full engine, with all shared prefixes cached.

    A step of ``slots`` sequences decodes as many tokens. It also computes prompts.
    """
    step_s = costs.step_s + slots * costs.per_sequence_s
    computed = {
        name: 1.0 - (best_share(trace) if trace.block_tokens else 0.0) for name, trace in traces.items()
    }
    return [
        costs.per_request_s
        + costs.per_prompt_token_s * each.input_tokens * computed[tenant]
        + each.output_tokens * step_s / slots
        for tenant, each in requests
    ]


def write(requests: Iterable[Timed], folder: Path) -> dict[str, str]:
    """Write a file for each tenant. Returns its ``trace:`` for a scenario, by tenant with requests."""
    lines: dict[str, list[str]] = {}
    for tenant, each in requests:
        source = SOURCES[tenant]
        if source.is_mooncake:
            whole = round(1 / source.lengths)  # the file has the unscaled lengths of its blocks
            row = {
                "timestamp": 1000 * each.at_s,
                "input_length": each.input_tokens * whole,
                "output_length": each.output_tokens * whole,
                "hash_ids": each.blocks[: -(-each.input_tokens * whole // mooncake.BLOCK)],
            }
        else:
            row = {"at": each.at_s, "input": each.input_tokens, "output": each.output_tokens}
        lines.setdefault(tenant, []).append(json.dumps(row))
    found = {}
    for tenant, rows in lines.items():
        (folder / f"{tenant}.jsonl").write_text("\n".join(rows) + "\n")
        if (source := SOURCES[tenant]).is_mooncake:
            found[tenant] = f"{{mooncake: {{file: {tenant}.jsonl, lengths: {source.lengths}}}}}"
        else:
            found[tenant] = f"{{lines: {{file: {tenant}.jsonl}}}}"
    return found
