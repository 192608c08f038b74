"""Scenarios, attempts and runs for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loadgen.records import Attempt, Machine, Meta, Outcome, PhaseMeta, Run, Sample, TenantMeta
from loadgen.scenario import Fixed, Poisson, Process, Scenario, Tenant


def tenant(name: str = "gold", process: Process = Poisson(10.0), **fields: Any) -> Tenant:  # noqa: B008
    return replace(Tenant(name, process, Fixed(16), Fixed(4)), **fields)


def scenario(*tenants: Tenant, duration_s: float = 100.0, **fields: Any) -> Scenario:
    return replace(Scenario("test", "tiny", duration_s, tenants or (tenant(),)), **fields)


def attempt(at_s: float = 1.0, ttft_s: float | None = 0.1, *, lasts_s: float = 1.0, **fields: Any) -> Attempt:
    """One attempt that was sent at its due time, and served."""
    made = {
        "tenant": "gold", "request": str(at_s), "intended_s": at_s, "due_s": at_s, "sent_s": at_s,
        "end_s": at_s + lasts_s, "input_tokens": 10, "output_tokens": 5, "tokens": 5, "is_counted": True,
        "outcome": Outcome.SERVED, "status": 200, "first_s": None if ttft_s is None else at_s + ttft_s,
        "last_s": None if ttft_s is None else at_s + lasts_s,
    }  # fmt: skip
    return Attempt(**{**made, **fields})


def meta(**fields: Any) -> Meta:
    made: dict[str, Any] = {
        "label": "tokenpool", "name": "overload", "seed": 1, "duration_s": 10.0, "drain_s": 5.0,
        "ended_s": 11.0, "is_interrupted": False,
        "tenants": [TenantMeta("gold", "guaranteed"), TenantMeta("spot")],
        "phases": [PhaseMeta("alone", 0.0, 5.0), PhaseMeta("together", 5.0, 10.0)], "faults": [],
        "urls": ["http://127.0.0.1:1"], "command": ["loadgen", "run"], "started": "2026-01-01T00:00:00+00:00",
        "machine": Machine("a cpu", 2, "6.1", "3.11"), "versions": {}, "lag_p50_s": 0.001, "lag_p99_s": 0.002,
        "lag_max_s": 0.003, "cpu": 0.2, "complaints": [], "unread_states": {}, "scenario": {},
    }  # fmt: skip
    return Meta(**{**made, **fields})


def run(*attempts: Attempt, samples: list[Sample] | None = None, **fields: Any) -> Run:
    return Run("out/run", meta(**fields), list(attempts), samples or [])
