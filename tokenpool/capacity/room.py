"""The room of one engine: its slots and KV-cache tokens, and their use by other clients.

The capacity model computes it, and the admission rules decide by it.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIORITY_QUEUE = 1.0
"""Requests of any tier that may wait in an engine that is known to schedule by priority, ready for the next
free slot. An engine may accept the field ``priority`` and still ignore it: vLLM 0.32 does under first come,
first served."""
PREEMPTIBLE_QUEUE = 1.0
"""Preemptible requests that may wait in an engine beyond its slots, ready for the next free slot. They are
ended first, before the engine computes anything for them. So they delay no guarantee under any scheduling.
Without one, a slot is idle until the next request arrives. That costs 3 to 5 % of the throughput at 45
requests/s on 8 slots."""


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """The load that one engine can hold, and the load on it that this sidecar did not send."""

    slots: float
    """Sequences that the engine runs at once."""
    kv_tokens: float
    """KV-cache tokens that fit into the engine."""
    foreign_sequences: float = 0.0
    """Sequences on the engine that this sidecar did not send, running or waiting."""
    foreign_kv_tokens: float = 0.0
    """KV-cache tokens that those sequences use."""
    reserved_slots: float = 0.0
    """Slots that only requests within their assured share may use."""
    proven_slots: float = 0.0
    """Slots that the engine is known to run: fewer than ``slots`` while the model probes for more."""
    queue: float = 0.0
    """Requests of any tier that may wait in the engine beyond its slots: ``PRIORITY_QUEUE`` if the engine
    schedules by priority, else 0."""
    preemptible_queue: float = 0.0
    """Preemptible requests that may wait there: ``PREEMPTIBLE_QUEUE``; 0 while others wait for the engine."""
    is_down: bool = False
    """Whether the engine takes no request now. Its size is the last known one, and without bound if it never
    was known."""
