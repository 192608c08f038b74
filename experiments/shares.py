"""What each tenant had of a pool, by phase and over time: for experiments about fairness. Pure.

It reads a recorded run: admitted requests, sheds and their reasons, latencies, service, and the debt that the
sidecars state. Service is a dominant share, as in ``experiments.service``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.service import service
from loadgen.records import REFUSED, Attempt, Outcome, Run
from toolbox.fairness import by_weight, jain_by_weight
from toolbox.percentiles import percentile
from toolbox.pictures import Line, Panel, Phase, Picture

WINDOW_S = 5.0
"""The windows of the curves over time."""


@dataclass(frozen=True)
class Share:
    """One tenant in one phase."""

    phase: str
    tenant: str
    attempts: int
    """Attempts that were due in the phase, with those after a refusal."""
    admitted: int
    refused: Mapping[str, int]
    """Refused attempts by reason."""
    service: float
    """Its part of the service of all tenants."""
    fair: float
    """Its fair part: by weight, among the tenants that sent requests in the phase."""
    ttft_p99_s: float
    """P99 of the time to first token of admitted attempts, from the time at which the attempt was due."""
    e2e_p99_s: float
    """P99 of the time to the last token of served requests, from the time at which the request was due."""

    @property
    def admitted_share(self) -> float:
        """The admitted part of its attempts."""
        return self.admitted / self.attempts if self.attempts else 1.0


@dataclass(frozen=True)
class PhaseResult:
    """All tenants in one phase."""

    name: str
    jain: float
    """Jain's index of the service by weight, of the tenants that sent requests."""
    first_jain: float
    """The same over the first 10 s of the phase."""
    shares: list[Share] = field(default_factory=list)


def by_phase(run: Run, weights: Mapping[str, float]) -> list[PhaseResult]:
    """The results of each phase of the run."""
    return [_phase(run, weights, each.name, each.from_s, each.to_s) for each in run.meta.phases]


def _phase(run: Run, weights: Mapping[str, float], name: str, start: float, end: float) -> PhaseResult:
    due = [attempt for attempt in run.attempts if start <= attempt.due_s < end]
    active = {tenant: weight for tenant, weight in weights.items() if any(a.tenant == tenant for a in due)}
    served = service(run, active, start, end)
    whole, all_weights = sum(served.values()) or 1.0, sum(active.values())
    return PhaseResult(
        name,
        jain_by_weight(served, active),
        jain_by_weight(service(run, active, start, min(start + 10.0, end)), active),
        [
            _share(
                name, tenant, [a for a in due if a.tenant == tenant], served[tenant] / whole, w / all_weights
            )
            for tenant, w in active.items()
        ],
    )


def _share(phase: str, tenant: str, due: Sequence[Attempt], part: float, fair: float) -> Share:
    refused = Counter(attempt.reason for attempt in due if attempt.outcome in REFUSED)
    done = [attempt for attempt in due if attempt.outcome is Outcome.SERVED]
    firsts = [attempt.first_s - attempt.due_s for attempt in due if attempt.first_s is not None]
    return Share(
        phase,
        tenant,
        len(due),
        len(due) - refused.total(),
        dict(refused),
        part,
        fair,
        percentile(firsts, 0.99),
        percentile((attempt.end_s - attempt.intended_s for attempt in done), 0.99),
    )


HEAD = """\
| phase | Jain | first 10 s | tenant | attempts | admitted | service | fair | first token P99, s \
| last token P99, s | refused |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""


def table(results: Sequence[PhaseResult]) -> str:
    """The phases as Markdown."""
    lines = [HEAD]
    for result in results:
        for number, share in enumerate(result.shares):
            about = f"{result.name} | {result.jain:.3f} | {result.first_jain:.3f}" if number == 0 else " | | "
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(share.refused.items()))
            lines.append(
                f"| {about} | {share.tenant} | {share.attempts} | {share.admitted_share:.1%}"
                f" | {share.service:.1%} | {share.fair:.1%} | {share.ttft_p99_s:.2f} | {share.e2e_p99_s:.2f}"
                f" | {reasons} |"
            )
    return "\n".join(lines) + "\n"


def debts(run: Run, tenant: str) -> list[tuple[float, float]]:
    """The debt of a tenant over time, in seconds of service: the mean over its sidecars for each second."""
    read: dict[int, list[float]] = {}
    for sample in run.samples:
        stated = sample.entitlements.get(tenant)
        if stated is not None and stated.debt is not None:
            read.setdefault(int(sample.at_s), []).append(stated.debt)
    return [(second + 0.5, sum(values) / len(values)) for second, values in sorted(read.items())]


def picture(run: Run, weights: Mapping[str, float], heading: str, subheading: str) -> Picture:
    """Debt, shares of service by weight, refusals and waits of all tenants over time."""
    ends = [phase.to_s for phase in run.meta.phases]
    starts = [WINDOW_S * number for number in range(int(max(ends) / WINDOW_S))]
    shares: dict[str, list[tuple[float, float | None]]] = {tenant: [] for tenant in weights}
    refused: dict[str, list[tuple[float, float | None]]] = {tenant: [] for tenant in weights}
    for start in starts:
        served = by_weight(service(run, weights, start, start + WINDOW_S), weights)
        whole = sum(served.values())
        due = [a for a in run.attempts if start <= a.due_s < start + WINDOW_S]
        for tenant in weights:
            own = [attempt for attempt in due if attempt.tenant == tenant]
            middle = start + WINDOW_S / 2
            shares[tenant].append((middle, served[tenant] / whole if whole and own else None))
            count = sum(attempt.outcome in REFUSED for attempt in own)
            refused[tenant].append((middle, count / len(own) if own else None))
    return Picture(
        heading,
        subheading,
        "seconds of the run",
        (
            Panel("Debt, seconds of service", tuple(Line(t, tuple(debts(run, t))) for t in weights)),
            Panel("Part of the service, by weight", _lines(shares)),
            Panel("Refused part of the attempts", _lines(refused)),
        ),
        tuple(Phase(phase.name, phase.from_s, phase.to_s) for phase in run.meta.phases),
    )


def _lines(points: Mapping[str, Sequence[tuple[float, float | None]]]) -> tuple[Line, ...]:
    return tuple(Line(name, tuple(own)) for name, own in points.items())
