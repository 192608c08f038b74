"""What a reader must know of the numbers of a run: doubts, gaps, and what counts. Pure."""

from __future__ import annotations

from loadgen.records import Meta, Outcome
from loadgen.summary import EVERYONE, WHOLE, Summary

MOST_NAMED = 3
"""The most tenants that a remark names."""


def notes(meta: Meta, summary: Summary) -> list[str]:
    """Notes above the numbers."""
    found = [f"This run {complaint}." for complaint in summary.complaints]
    if meta.is_interrupted:
        found.append(f"Interrupted after {meta.ended_s:.0f} of {meta.duration_s:.0f} s.")
    if not summary.served:
        found.insert(0, nothing_served(summary))
    totals = [cell for cell in summary.cells if cell.phase == WHOLE and cell.tenant != EVERYONE]
    if short := _short(meta, summary, ignores_eos=True):
        found.append(f"{short} responses were shorter than requested: the engine does not apply ignore_eos.")
    if bounds := sum(cell.bounds for cell in totals):
        found.append(
            f"{bounds} requests received no token; their waits count as lower bounds of the "
            "time to first token."
        )
    found += [*meta.notes, *summary.notes]
    if uncounted := sum(cell.uncounted for cell in totals):
        found.append(
            f"{uncounted} streams reported no usage; they have no time per output token, and each event "
            "counts as one token."
        )
    found += [
        f"{count} reads of the state page {url} failed; its curves have gaps."
        for url, count in meta.unread_states.items()
    ]
    failed = [fault for fault in meta.faults if fault.result != "done"]
    return found + [f"The fault '{fault.what}' {fault.result}." for fault in failed]


def _short(meta: Meta, summary: Summary, *, ignores_eos: bool) -> int:
    """Responses shorter than requested, of the tenants that ask the engine to ignore their end or do not."""
    tenants = {tenant.name for tenant in meta.tenants if tenant.ignores_eos is ignores_eos}
    return sum(cell.short for cell in summary.cells if cell.phase == WHOLE and cell.tenant in tenants)


def nothing_served(summary: Summary) -> str:
    """Why a run measured nothing."""
    if not summary.failures:
        return "Nothing was served: no request was due. Raise a rate or the duration."
    return f"Nothing was served: {summary.failures[0].reason}. No latency was measured."


def remarks(meta: Meta, summary: Summary) -> list[str]:
    """What a reader must know of the numbers: what counts, and why an interval is open."""
    found = []
    if meta.warm_up_s or meta.cool_down_s:
        ends = meta.duration_s - meta.cool_down_s
        found.append(f"Measured: requests that were due from {meta.warm_up_s:g} to {ends:g} s.")
    totals = [cell for cell in summary.cells if cell.phase == WHOLE and cell.tenant != EVERYONE]
    if cancelled := sum(cell.ended(Outcome.CANCELLED) for cell in totals):
        found.append(f"{cancelled} requests were cancelled by their clients, as the scenario says.")
    if short := _short(meta, summary, ignores_eos=False):
        found.append(f"{short} responses were shorter than requested, because the model ended them.")
    tails = [(cell.tenant, cell.ttft.p99) for cell in totals if cell.ttft.p99 is not None]
    if open_ := [f"{name}: {p99.reason}." for name, p99 in tails if p99.high is None]:
        if (more := len(open_) - MOST_NAMED) > 0:
            open_ = [*open_[:MOST_NAMED], f"The same is true of {more} more tenants."]
        found.append(
            f"TTFT p99 has no upper bound. {' '.join(open_)} Run longer, or compare runs of several seeds."
        )
    return found
