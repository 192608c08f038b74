"""Words: the reason of a shed in plain English. Pure; numbers in, a sentence out."""

from __future__ import annotations

from collections.abc import Mapping

from dashboard.snapshot import Replicas, Vector

TOKENS_PER_SECOND, KV_TOKENS, CONCURRENCY = range(3)
"""Indexes of the dimensions in a vector."""
UNITS = ("tokens/s", "KV tokens", "sequences")
SHED_BY_LIMIT = {
    "tokens_per_second": TOKENS_PER_SECOND,
    "kv_tokens": KV_TOKENS,
    "concurrency": CONCURRENCY,
}
"""Reasons that name the dimension in which an entitlement has reached its limit."""


def number(value: float | None) -> str:
    """A number as text."""
    if value is None:
        return "no bound"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def over_limit(dimension: int, limit: Vector, in_use: Vector, demand: Vector) -> str:
    """A shed in one dimension: the limit, the amount in use, and the demand."""
    most, used, asked = limit[dimension], in_use[dimension], demand[dimension]
    text = f"{UNITS[dimension]}: limit {number(most)}, in use {number(used or 0.0)}"
    if asked is not None and most is not None and asked > most:
        text += f", demand {number(asked)}"
    return text


def engine_full(capacity: Vector, in_use: Vector) -> str:
    """A shed because the engine has no room: the engine's fuller dimension."""
    dimension = max((CONCURRENCY, KV_TOKENS), key=lambda d: _share(in_use[d], capacity[d]))
    used, most = number(in_use[dimension]), number(capacity[dimension])
    return f"engine full: {used} of {most} {UNITS[dimension]} in use; only the assured share may queue"


def engine_down(replicas: Replicas) -> str:
    """A shed because no engine is available."""
    return f"engine down: {replicas.engines_up} of {replicas.sidecars} answer"


def why(
    reason: str, limit: Vector, in_use: Vector, demand: Vector, pool: tuple[Vector, Vector, Replicas]
) -> str:
    """The reason of a shed as a sentence. ``pool`` has the capacity, the amount in use, and the replicas."""
    capacity, used, replicas = pool
    if reason in SHED_BY_LIMIT:
        return over_limit(SHED_BY_LIMIT[reason], limit, in_use, demand)
    if reason == "engine_full":
        return engine_full(capacity, used)
    if reason == "engine_down":
        return engine_down(replicas)
    # A sidecar of a later version may know more reasons.
    return _OTHERS.get(reason, reason.replace("_", " "))


def not_enforced(decisions: Mapping[str, int]) -> str:
    """The decisions of an entitlement in shadow mode, as a sentence. Without numbers: only the mode."""
    if not decisions:
        return "decisions are shown, not enforced"
    said = ", ".join(f"{count:,} {decision}" for decision, count in sorted(decisions.items()))
    return f"decisions are shown, not enforced: {said}"


_OTHERS = {
    "preempted": "preempted: a guaranteed request needed the room, and spot requests end first",
    "draining": "the replica is shutting down",
    "insufficient_quota": "a quota is spent until its window ends",
    "quota_in_use": "running requests hold the rest of a quota",
    "jwt_unverified": "JWTs could not be verified: their issuer's keys are unknown, or too many are invalid",
    "too_many_connections": "too many connections are open at the sidecar",
    "sidecar_full": "requests and unread responses have used the entitlement's share of the sidecar's memory",
}


def _share(value: float | None, whole: float | None) -> float:
    return value / whole if value and whole else 0.0
