"""Usage records for tests of reports."""

from __future__ import annotations

from datetime import datetime

from tokenpool.usage.record import UsageRecord


def at(text: str) -> float:
    """A time, such as ``2026-11-05T10:00+00:00``, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


NOW = at("2026-11-29T12:00+00:00")


def november() -> list[UsageRecord]:
    """Three requests of two tenants in November 2026, and one in October."""
    common = {"pool": "chat", "route": "/v1/chat/completions", "model": "llama", "outcome": "finished"}
    return [
        UsageRecord(
            "r1", at("2026-11-05T10:00+00:00"), entitlement="acme", input_tokens=3_000_000,
            cached_tokens=1_000_000, output_tokens=500_000, ttft_s=0.5, credential_id="key-1", **common,
        ),
        UsageRecord(
            "r2", at("2026-11-05T23:30+00:00"), entitlement="acme", input_tokens=1_000_000, output_tokens=0,
            credential_id="key-2", is_estimated=True, **common,
        ),
        UsageRecord(
            "r3", at("2026-11-06T10:00+00:00"), entitlement="beta", input_tokens=100, output_tokens=50,
            **common,
        ),
        UsageRecord("r4", at("2026-10-31T23:30+00:00"), entitlement="beta", output_tokens=7, **common),
    ]  # fmt: skip
