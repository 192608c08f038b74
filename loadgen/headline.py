"""The beginning of a report: the result in three sentences, and its main numbers as cards. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from loadgen import words
from loadgen.goals import GoalResult
from loadgen.page import Card, State
from loadgen.records import Meta, Outcome
from loadgen.statistics import Estimate
from loadgen.summary import EVERYONE, WHOLE, Cell, Summary

_TTFT = "time to first token"


def sentences(meta: Meta, summary: Summary, judged: Sequence[GoalResult]) -> list[str]:
    """Three sentences: what was served, the slowest tenant, and whether goals and generator held."""
    return [_served(meta, _whole(summary)), _slowest(summary), f"{_goals(judged)}{_trust(summary)}"]


def cards(summary: Summary, judged: Sequence[GoalResult]) -> list[Card]:
    """The numbers that matter most."""
    whole = _whole(summary)
    refused, failed = whole.refused, whole.failed
    return [
        _count("Served", whole.ended(Outcome.SERVED), whole.served_share),
        _count(
            "Refused", refused, whole.refused_share, whole.refused_by, State.DOUBT if refused else State.PLAIN
        ),
        _count("Failed", failed, whole.failed_share, whole.failed_by, State.BAD if failed else State.GOOD),
        _worst_card(summary),
        _tokens(whole),
        _goal_card(judged, whole),
    ]


def _whole(summary: Summary) -> Cell:
    """The cell of all requests. A run has one, because it has a tenant."""
    return summary.cell(EVERYONE, WHOLE) or next(c for c in summary.cells if c.phase == WHOLE)


def _served(meta: Meta, whole: Cell) -> str:
    after = f"The run was interrupted after {words.seconds(meta.ended_s)}. " if meta.is_interrupted else ""
    if not whole.requests:
        return f"{after}No request was due."
    served = whole.ended(Outcome.SERVED)
    verb = "was" if served <= 1 else "were"
    parts = [f"{_part(served, whole)} {verb} served", f"{_part(whole.refused, whole)} refused"]
    if cancelled := whole.ended(Outcome.CANCELLED):
        parts.append(f"{_part(cancelled, whole)} cancelled by clients")
    parts.append(f"{_part(whole.failed, whole)} failed")
    listed = f"{', '.join(parts[:-1])}, and {parts[-1]}"
    noun = "request" if whole.requests == 1 else "requests"
    return f"{after}Of {whole.requests:,} {noun} in {words.seconds(whole.seconds)}, {listed}."


def _part(count: int, whole: Cell) -> str:
    return f"{count:,} ({_percent(count / whole.requests)})" if count else "none"


def _percent(share: float) -> str:
    """One decimal, and more only where that would be 0."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else f"{100 * share:.1g} %"


def _worst(summary: Summary) -> tuple[Cell, Estimate] | None:
    """The tenant with the largest P99 of the time to first token."""
    tenants = [c for c in summary.cells if c.phase == WHOLE and c.tenant != EVERYONE]
    tails = [(cell, cell.ttft.p99) for cell in tenants if cell.ttft.p99 is not None]
    return max(tails, key=lambda pair: pair[1].value, default=None)


def _slowest(summary: Summary) -> str:
    worst = _worst(summary)
    if worst is None:
        return f"No {_TTFT} was measured."
    cell, p99 = worst
    p50 = words.estimate(cell.ttft.p50, rate=False)
    if summary.cell(EVERYONE, WHOLE) is None:
        return f"The {_TTFT} was {p50} at the median and {words.seconds(p99.value)} at P99."
    who = words.name(cell.tenant)
    return f"The largest P99 of the {_TTFT} was {words.seconds(p99.value)}, of tenant {who} (median {p50})."


def _goals(judged: Sequence[GoalResult]) -> str:
    if not judged:
        return "No goal was set"
    missed = [result for result in judged if not result.is_met]
    if not missed:
        return f"All {len(judged)} goals were met" if len(judged) > 1 else "The goal was met"
    verb = "was" if len(missed) == 1 else "were"
    goal = f"{missed[0].goal} of {missed[0].tenant}"
    return f"{len(missed)} of {len(judged)} goals {verb} missed{', first' if len(missed) > 1 else ':'} {goal}"


def _trust(summary: Summary) -> str:
    if summary.complaints:
        return ", but this run is not reliable: see the warnings."
    return ", and the generator kept up."


def _count(
    name: str,
    count: int,
    share: Estimate | None,
    reasons: dict[str, int] | None = None,
    state: State = State.PLAIN,
) -> Card:
    return Card(name, f"{count:,}", f"{_interval(share)}{_most(reasons or {})}", state)


def _interval(share: Estimate | None) -> str:
    """A share with its interval."""
    if share is None:
        return "no requests"
    if share.low is None or share.high is None:
        return _percent(share.value)
    return f"{_percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f} %)"


def _most(reasons: dict[str, int]) -> str:
    """The most frequent reason."""
    return f"; most: {Counter(reasons).most_common(1)[0][0]}" if reasons else ""


def _worst_card(summary: Summary) -> Card:
    worst = _worst(summary)
    if worst is None:
        return Card("Worst P99 to first token", words.NOTHING, "nothing measured", State.BAD)
    cell, p99 = worst
    made = words.interval(p99, rate=False)
    return Card(
        "Worst P99 to first token", words.seconds(p99.value), f"{cell.tenant}{f'; {made}' if made else ''}"
    )


def _tokens(whole: Cell) -> Card:
    made = whole.output_tokens_per_s
    value = words.estimate(made, rate=True)
    return Card("Output tokens per second", value, words.interval(made, rate=True))


def _goal_card(judged: Sequence[GoalResult], whole: Cell) -> Card:
    within = f"{_interval(whole.goodput.share)} within their slo" if whole.goodput is not None else ""
    if not judged:
        return Card("Goals met", "none set", within or "--fail-on sets goals")
    met = sum(result.is_met for result in judged)
    state = State.GOOD if met == len(judged) else State.BAD
    return Card("Goals met", f"{met} of {len(judged)}", _open(judged) or within, state)


def _open(judged: Iterable[GoalResult]) -> str:
    """How many results may be chance."""
    count = sum("interval" in result.verdict for result in judged)
    return f"{count} with the goal inside the interval" if count else ""
