"""The output of a simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tokenpool.entitlements import Tier


@dataclass(slots=True)
class TierFigures:
    """Counts and times of the requests of one tier."""

    requests: int = 0
    refused: int = 0
    room_refusals: int = 0
    """Requests below their ceiling that were refused while a live replica had had a free slot for more than
    ``Setup.notice_s``."""
    waits: list[float] = field(default_factory=list)
    """For every request that an engine began, the seconds since its arrival."""


@dataclass(slots=True)
class Figures:
    """Counts and times of one simulation. Requests, sheds and busy time count after the warm-up only."""

    requests: int = 0
    admitted: int = 0
    sheds: Counter[str] = field(default_factory=Counter)
    idle_refusals: int = 0
    """Sheds by a limit at a joined sidecar, while the entitlement used less than its limit."""
    guaranteed_sheds: int = 0
    """Sheds of requests inside a guarantee."""
    lease_waits: int = 0
    lease_waited_s: float = 0.0
    preempted: int = 0
    """Spot requests that were ended for a guarantee."""
    taken_ahead: int = 0
    """Requests that were admitted before they were reported."""
    offered: Counter[str] = field(default_factory=Counter)
    """Requests by entitlement."""
    shed: Counter[str] = field(default_factory=Counter)
    """Shed requests by entitlement."""
    refusals: list[tuple[float, str, str]] = field(default_factory=list)
    """For every shed request: the time, its entitlement, the reason."""
    preemptions: Counter[str] = field(default_factory=Counter)
    """Requests by entitlement that were ended for a guarantee."""
    first_tokens: dict[str, list[float]] = field(default_factory=dict)
    """For every request that an engine began, the seconds since its arrival, by entitlement."""
    waits: list[float] = field(default_factory=list)
    """For every admitted request, the seconds until its decision."""
    busy: float = 0.0
    """Slot-seconds in use."""
    possible: float = 0.0
    """Slot-seconds of all engines."""
    over_admitted: float = 0.0
    """The most sequences in use beyond every limit of the last lifetime, when a joined sidecar admits one.
    Sequences on free capacity beyond a limit do not count.

    Sequences at sidecars that used fallback shares within that lifetime do not count."""
    over_fallback: float = 0.0
    """The same after an admission by any sidecar, except for spot: fallback shares may add up to more."""
    reconverged_s: float = 0.0
    """The longest time from the end of a fault until all sidecars are joined again."""
    tiers: dict[Tier, TierFigures] = field(default_factory=lambda: {tier: TierFigures() for tier in Tier})
    room_refusals: Counter[str] = field(default_factory=Counter)
    """Refusals while there was room, by reason: see ``TierFigures``."""
    room_ages: list[float] = field(default_factory=list)
    """The seconds for which a slot had been free, for each refusal while a replica had a free slot."""
    handovers: int = 0
    """Requests that another replica began with."""
    sends: int = 0
    """Requests that were sent together with their asks, after the warm-up."""
    sends_refused: int = 0
    """Those that were refused, and decided again."""
    asks: int = 0
    """Questions to other replicas."""
    prompt_tokens: int = 0
    found_tokens: int = 0
    """The tokens of all prompts that engines computed, and the number of them that were in their caches."""
    peer_messages: int = 0
    """Messages between sidecars after the warm-up: asks, answers, requests and their ends."""
    messages: int = 0
    """Messages to the lease store."""
    measured_messages: int = 0
    """Messages to the lease store after the warm-up."""
    rows: int = 0
    """Lease requests in all messages."""
    service: Counter[str] = field(default_factory=Counter)
    """Tokens by entitlement."""
    served: list[tuple[float, float, str, int]] = field(default_factory=list)
    """For each request: the times at which an engine began and ended it, its entitlement, its tokens."""
    most_running: Counter[str] = field(default_factory=Counter)

    def served_part(self, prefix: str) -> float:
        """The served share (0 to 1) of the requests of entitlements whose names begin with ``prefix``."""
        offered = sum(count for name, count in self.offered.items() if name.startswith(prefix))
        shed = sum(count for name, count in self.shed.items() if name.startswith(prefix))
        return 1 - shed / offered

    @property
    def utilisation(self) -> float:
        """Slot-seconds in use as a share of all slot-seconds."""
        return self.busy / self.possible if self.possible else 0.0
