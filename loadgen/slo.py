"""A request against the goals of its tenant (`scenario.Slo`), and its time per output token. Pure."""

from __future__ import annotations

from loadgen.records import Attempt, Outcome
from loadgen.scenario import Slo


def time_per_token(last: Attempt, *, counted: bool = True) -> float | None:
    """Seconds per output token after the first: (last token - first token) / (output tokens - 1).

    An event may carry several tokens, so the count is the engine's. ``None`` if the engine did not report it,
    and for responses that were not streamed or have one token. Without ``counted``, each event counts as one
    token if the engine did not report its count. The result is then an upper bound.
    """
    if last.first_s is None or last.last_s is None or last.tokens < 2 or (counted and not last.is_counted):
        return None
    return (last.last_s - last.first_s) / (last.tokens - 1)


def verdict(last: Attempt, first: tuple[float, bool] | None, slo: Slo) -> bool | None:
    """Whether a request was served within all goals; ``None`` if the run or its client ended it in time.

    ``first`` is its time to first token, from `summary.first_token`. Refused and failed requests do not meet
    the goals. A cut or cancelled request does not if it had waited longer than a goal.
    """
    total_s = last.end_s - last.intended_s
    waited_s = total_s if first is None else first[0]
    is_late = _beyond(waited_s, slo.ttft_ms) or _beyond(total_s, slo.e2e_ms)
    if last.outcome in (Outcome.CUT, Outcome.CANCELLED):
        return False if is_late else None
    per_token = time_per_token(last, counted=False)
    is_slow = per_token is not None and _beyond(per_token, slo.tpot_ms)
    return last.outcome is Outcome.SERVED and not is_late and not is_slow


def _beyond(seconds: float, goal_ms: float | None) -> bool:
    return goal_ms is not None and seconds * 1000 > goal_ms
