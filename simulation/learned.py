"""What a simulated sidecar learns of an engine with steps: production's capacity model, fed from its metrics.

It does for a simulated engine what ``sidecar.engine.state`` does for a real one.
"""

from __future__ import annotations

from dataclasses import replace

from simulation.stepped_engine import SteppedEngine
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount, Dimension
from tokenpool.capacity.model import CapacityModel
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.outcomes import Reason


class LearnedEngine:
    """The capacity and the room of one engine, as its sidecar knows them."""

    def __init__(self, engine: SteppedEngine, replica: ReplicaCapacity) -> None:
        self._engine = engine
        self._model = CapacityModel(replica)
        self._lacked_throughput = self._lacked_slots = False
        self.room = EngineRoom(0.0, 0.0)

    @property
    def capacity(self) -> Amount:
        """The capacity that the sidecar states to the coordinator."""
        return self._model.amount()

    def shed(self, shed: Shed) -> None:
        """A request was shed: the next observation shows whether the engine had more."""
        if shed.reason is Reason.TOKENS_PER_SECOND:
            self._lacked_throughput = True
        elif shed.dimension is Dimension.CONCURRENCY:
            self._lacked_slots = True

    def observe(self, own_sequences: int, own_kv_tokens: int) -> None:
        """Read the engine's metrics. The arguments are the load in the sidecar's ledger."""
        self._model.observe(
            self._engine.observation(),
            lacked_throughput=self._lacked_throughput,
            lacked_slots=self._lacked_slots,
        )
        self._lacked_throughput = self._lacked_slots = False
        room = self._model.room(own_sequences, own_kv_tokens)
        self.room = replace(room, preemptible_queue=PREEMPTIBLE_QUEUE)
