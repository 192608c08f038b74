"""All systems under test."""

from __future__ import annotations

from experiments.peers.envoy import envoy
from experiments.peers.litellm import litellm_limits, litellm_reservations
from experiments.peers.ours import tokenpool
from experiments.peers.routers import SMG_CLASSES, smg, vllm_router
from experiments.peers.system import System
from experiments.peers.tenants import ELASTIC, GUARANTEED, SLOTS, SPOT

ALONE, OURS = "engine alone", "tokenpool"
PRIORITY = ("--scheduling-policy", "priority")
PRIORITIES = {GUARANTEED: 0, ELASTIC: 5, SPOT: 10}
QUEUED = 2 * SLOTS
"""Requests that the engine accepts beyond those that run."""

SYSTEMS = (
    System(ALONE),
    System("engine's priority", engine=PRIORITY, priorities=PRIORITIES),
    System(
        "engine's priority and queue limit",
        engine=(*PRIORITY, "--max-num-queued-reqs", str(SLOTS + QUEUED)),
        priorities=PRIORITIES,
    ),
    System("LiteLLM, reservations", litellm_reservations, "litellm"),
    System("LiteLLM, fixed limits", litellm_limits, "litellm"),
    System("Envoy", envoy, "envoy"),
    System("vLLM router", vllm_router, "vllm-router"),
    System(
        "SMG, priority scheduler",
        smg,
        "smg",
        headers={tier: {"x-smg-priority": name} for tier, name in SMG_CLASSES.items()},
    ),
    System(OURS, tokenpool),
)
