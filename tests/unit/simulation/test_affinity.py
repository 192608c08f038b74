"""Prefix affinity in virtual time: more cache hits, and no more refusals."""

from __future__ import annotations

from dataclasses import replace

from simulation.affinity import worlds
from simulation.figures import Figures
from simulation.setup import Faults, Setup
from simulation.world import simulate


def hits(run: Figures) -> float:
    return run.found_tokens / run.prompt_tokens


def of(name: str, rate: float) -> Setup:
    return replace(worlds(rate)[name], seconds=30.0, seed=3)


def test_affinity_finds_more_in_the_caches_and_refuses_nothing() -> None:
    plain, preferring = simulate(of("handover", 12)), simulate(of("handover, prefix affinity", 12))
    assert hits(preferring) > 1.5 * hits(plain)
    assert (sum(plain.sheds.values()), sum(preferring.sheds.values())) == (0, 0)


def test_affinity_refuses_nothing_near_saturation() -> None:
    run = simulate(of("handover, prefix affinity", 17))
    assert sum(run.sheds.values()) == 0


def test_every_request_ends_although_messages_and_replicas_are_lost() -> None:
    faults = Faults(loss=0.02, crashes=0.02, pauses=0.05, quiet_after=20.0)
    run = simulate(replace(of("handover, prefix affinity", 9), faults=faults))
    assert run.prompt_tokens > 0
    assert hits(run) > 0.15
