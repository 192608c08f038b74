"""Scenarios, attempts and runs for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from loadgen.records import (
    Attempt,
    EntitlementSample,
    Machine,
    Meta,
    Outcome,
    PhaseMeta,
    Run,
    Sample,
    TenantMeta,
)
from loadgen.scenario import Fixed, Poisson, Process, Scenario, Slo, Tenant


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


ODD_NAMES = (
    "<script>alert('x')</script>&<b>bold</b>",
    "a-name-without-any-space-that-is-much-longer-than-a-telephone-is-wide-0123456789",
    "قناة المستأجر",
    "日本語のテナント名はとても長い場合があります",
    "\"quotes\" and 'apostrophes'",
    " ",
    "{tenant}${x}",
)
"""Names of tenants that a page must show as they are."""


def crowd(tenants: int, requests: int, *, names: Sequence[str] = (), seed: int = 1, **fields: Any) -> Run:
    """A run of two minutes in which some requests are refused, fail, or receive no token."""
    random = Random(seed)
    made = [*names, *(f"tenant-{index}" for index in range(tenants - len(names)))]
    tiers = ("guaranteed", "elastic", "spot", "")
    attempts = []
    for index in range(requests):
        at, chance = 120 * index / requests, random.random()
        tenant = min(int(random.expovariate(4 / tenants)), tenants - 1)
        common: dict[str, Any] = {"tenant": made[tenant], "request": str(index), "input_tokens": 200}
        if chance < 0.05:
            common |= {"outcome": Outcome.SHED, "status": 429, "reason": "tokens_per_second", "tokens": 0}
            attempts.append(attempt(at, None, lasts_s=0.01, **common, message="over the limit; retry later"))
        elif chance < 0.06:
            common |= {"outcome": Outcome.BROKEN, "reason": "reset", "tokens": 0}
            attempts.append(
                attempt(at, None, lasts_s=0.5, **common, message=f"<i>reset</i> by {'peer' * 40}")
            )
        else:
            first = random.lognormvariate(-2.0 + tenant / tenants, 0.6)
            tokens, gap = random.randrange(1, 200), random.lognormvariate(-4, 0.2)
            common |= {
                "tokens": tokens,
                "output_tokens": tokens,
                "prompt_tokens": 200,
                "gaps": {350: 5, 360: 1},
            }
            attempts.append(attempt(at, first, lasts_s=first + gap * (tokens - 1), **common))
    shown = {
        "duration_s": 120.0, "drain_s": 60.0, "ended_s": 124.0, "name": "crowd",
        "tenants": [
            TenantMeta(name, tiers[index % 4], Slo(ttft_ms=300) if index % 2 else None)
            for index, name in enumerate(made)
        ],
        "phases": [PhaseMeta("alone", 0.0, 60.0), PhaseMeta("together", 60.0, 120.0)],
        **fields,
    }  # fmt: skip
    samples = [
        Sample(
            second / 2, "http://c#pool", "coordinator", {"tokens_per_second": 20000.0},
            {
                name: EntitlementSample({"tokens_per_second": 100.0 * index + second % 7}, debt=index / 10)
                for index, name in enumerate(made)
            },
        )
        for second in range(240)
    ]  # fmt: skip
    return run(*attempts, samples=samples, **shown)
