"""The reasons why attempts were not served: for each its count and one message. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadgen import words
from loadgen.records import AS_PLANNED, Attempt, Outcome

MOST_LINES = 8
"""The most reasons on a terminal. The page has all of them."""
MOST_NAMES = 3
HEAD = ("reason", "message", "attempts", "outcome", "status", "tenants", "from", "to")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts that were not served, for the same reason."""

    reason: str
    outcome: Outcome
    status: int
    """0 without a response."""
    attempts: int
    tenants: list[str]
    from_s: float
    """The end of the first such attempt, in seconds from the start of the run."""
    to_s: float
    """The end of the last one."""
    message: str
    """The message of the first attempt that has one."""


def failures(attempts: Iterable[Attempt]) -> list[Failure]:
    """All reasons of attempts that were not served, the most frequent first."""
    groups: dict[tuple[str, Outcome, int], list[Attempt]] = {}
    for attempt in attempts:
        if attempt.outcome not in AS_PLANNED:
            groups.setdefault((_reason(attempt), attempt.outcome, attempt.status), []).append(attempt)
    found = [_failure(*group, members) for group, members in groups.items()]
    return sorted(found, key=lambda failure: (-failure.attempts, failure.reason))


def _reason(attempt: Attempt) -> str:
    return attempt.reason or ("cut by the end of the run" if attempt.outcome is Outcome.CUT else "no reason")


def _failure(reason: str, outcome: Outcome, status: int, attempts: Sequence[Attempt]) -> Failure:
    ends = [attempt.end_s for attempt in attempts]
    return Failure(
        reason=reason,
        outcome=outcome,
        status=status,
        attempts=len(attempts),
        tenants=list(dict.fromkeys(attempt.tenant for attempt in attempts)),
        from_s=min(ends),
        to_s=max(ends),
        message=next((attempt.message for attempt in attempts if attempt.message), ""),
    )


def text(found: Sequence[Failure]) -> list[str]:
    """Lines for a terminal; none if everything was served."""
    if not found:
        return []
    lines = [f"  {_line(failure)}" for failure in found[:MOST_LINES]]
    if (more := len(found) - MOST_LINES) > 0:
        lines.append(f"  and {more} more reasons, which are in the report")
    return ["attempts that were not served:", *lines]


def _line(failure: Failure) -> str:
    kind = f"{failure.outcome}, status {failure.status}" if failure.status else str(failure.outcome)
    said = f": {failure.message}" if failure.message else ""
    return f"{failure.attempts} x {failure.reason} ({kind}; {_names(failure.tenants)}){said}"


def _names(tenants: Sequence[str]) -> str:
    more = len(tenants) - MOST_NAMES
    return ", ".join(tenants[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def table(found: Sequence[Failure]) -> str:
    """A table for a page; empty if everything was served."""
    if not found:
        return ""
    rows = [
        [
            failure.reason,
            failure.message or words.NOTHING,
            str(failure.attempts),
            str(failure.outcome),
            str(failure.status) if failure.status else words.NOTHING,
            _names(failure.tenants),
            words.seconds(max(failure.from_s, 0.0)),
            words.seconds(max(failure.to_s, 0.0)),
        ]
        for failure in found
    ]
    note = "Counts are attempts, retries included. The message is the first of its reason."
    return words.html_table(HEAD, rows, note, label="Reasons of attempts that were not served")
