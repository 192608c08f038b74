"""Words: why somebody is being shed, in plain English. Pure; numbers in, a sentence out."""

from __future__ import annotations

from dashboard.snapshot import Replicas, Vector

TOKENS_PER_SECOND, KV_TOKENS, CONCURRENCY = range(3)
"""Places of the dimensions in a vector."""
UNITS = ("tokens/s", "KV tokens", "sequences")
SHED_BY_LIMIT = {
    "tokens_per_second": TOKENS_PER_SECOND,
    "kv_tokens": KV_TOKENS,
    "concurrency": CONCURRENCY,
}
"""Reasons that name a dimension in which an entitlement's limit is reached."""


def number(value: float | None) -> str:
    """A number for a sentence."""
    if value is None:
        return "no bound"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def over_limit(dimension: int, limit: Vector, in_use: Vector, demand: Vector) -> str:
    """A shed in one dimension: its limit, what is in use of it, and what was asked for."""
    most, used, asked = limit[dimension], in_use[dimension], demand[dimension]
    text = f"{UNITS[dimension]}: limit {number(most)}, in use {number(used or 0.0)}"
    if asked is not None and most is not None and asked > most:
        text += f", asks for {number(asked)}"
    return text


def engine_full(capacity: Vector, in_use: Vector) -> str:
    """A shed for want of room: the engine's fuller dimension, as it is now."""
    dimension = max((CONCURRENCY, KV_TOKENS), key=lambda d: _share(in_use[d], capacity[d]))
    used, most = number(in_use[dimension]), number(capacity[dimension])
    return f"engine full: {used} of {most} {UNITS[dimension]} in use, and only what is assured may queue"


def engine_down(replicas: Replicas) -> str:
    """A shed for want of an engine."""
    return f"engine down: {replicas.engines_up} of {replicas.sidecars} answer"


def why(
    reason: str, limit: Vector, in_use: Vector, demand: Vector, pool: tuple[Vector, Vector, Replicas]
) -> str:
    """Why requests are shed. ``pool`` is its capacity, what is in use of it, and its replicas."""
    capacity, used, replicas = pool
    if reason in SHED_BY_LIMIT:
        return over_limit(SHED_BY_LIMIT[reason], limit, in_use, demand)
    if reason == "engine_full":
        return engine_full(capacity, used)
    if reason == "engine_down":
        return engine_down(replicas)
    # A sidecar of a later version may know more reasons.
    return _OTHERS.get(reason, reason.replace("_", " "))


_OTHERS = {
    "preempted": "ended to make room for a guarantee: spot gives way first",
    "draining": "the replica is shutting down",
    "too_many_connections": "too many connections are open at the sidecar",
    "sidecar_full": "requests and unread answers take all of the sidecar's memory that they may",
}


def _share(value: float | None, whole: float | None) -> float:
    return value / whole if value and whole else 0.0
