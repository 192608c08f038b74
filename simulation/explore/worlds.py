"""The small worlds that are explored, in a small form (seconds) and a large form (minutes).

There are several small worlds instead of one large one, because each further fault or request makes about ten
times as many states. They have each fault alone, and with the faults that may hide it, for one or two
requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulation.explore.election_world import ElectionSetup, ElectionWorld
from simulation.explore.lease_world import LeaseSetup, LeaseWorld

SMALL_LEASES = (
    LeaseSetup("one request", requests=1),
    LeaseSetup("one request, a message is lost", requests=1, losses=1),
    LeaseSetup("one request, a clock is slow", requests=1, drifts=1),
)
SMALL_ELECTIONS = (
    ElectionSetup("election"),
    ElectionSetup("election, a call is lost", losses=1),
    ElectionSetup("election, the store loses its content", outages=1),
)
LARGE_LEASES = (
    *SMALL_LEASES,
    LeaseSetup("one request, a sidecar crashes", requests=1, crashes=1),
    LeaseSetup("one request, a message is late", requests=1, late=1),
    LeaseSetup("one request, lost and doubled", requests=1, losses=1, duplicates=1),
    LeaseSetup("one request, pauses of 1 s", requests=1, pauses=4),
    LeaseSetup("one request, a slow clock and a lost message", requests=1, drifts=1, losses=1),
    LeaseSetup("one request, any order of intervals", requests=1, ticks_at_once=False),
    LeaseSetup("one request in a guarantee, a message is lost", requests=1, guarantee=2, losses=1),
    LeaseSetup("two requests for one sequence", requests=2, limit=1, most_at_once=1),
    LeaseSetup("two requests within the limit", requests=2),
    LeaseSetup("two requests before their report", requests=2, limit=8, headroom=8.0),
    LeaseSetup("one request, an outage of the store", requests=1, outages=1, loses_content=False),
    LeaseSetup(
        "one request, the store loses its content",
        requests=1,
        outages=1,
        keeps_content=False,
        short_outages=True,
    ),
    LeaseSetup("one request, a crash and a loss", requests=1, crashes=1, losses=1),
)
LARGE_ELECTIONS = (
    *SMALL_ELECTIONS,
    ElectionSetup("election, a call is late", late=1),
    ElectionSetup("election, a pause of one tick", pauses=1),
    ElectionSetup("election, a coordinator crashes", crashes=1),
    ElectionSetup("election, a leader pauses until another leads", pauses=2, leadership_steps=2),
    ElectionSetup("election, a crash and a late call", crashes=1, late=1),
    ElectionSetup("election, a lost leader and a late call", losses=2, late=1),
)
Chosen = Sequence[tuple[str, LeaseWorld | ElectionWorld]]


def worlds(*, is_large: bool) -> Chosen:
    """The worlds of one form, each with its name."""
    leases, elections = (LARGE_LEASES, LARGE_ELECTIONS) if is_large else (SMALL_LEASES, SMALL_ELECTIONS)
    return [
        *((setup.name, LeaseWorld(setup)) for setup in leases),
        *((setup.name, ElectionWorld(setup)) for setup in elections),
    ]
