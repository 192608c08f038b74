"""``python -m simulation explore``: explores all small worlds, and prints their counts.

``--large`` explores more and larger worlds, in some ten minutes. ``--only TEXT`` chooses those with this text
in their name. ``--most STATES`` stops each world early. The exit code is 1 if an invariant breaks.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from simulation.explore.election_world import ElectionWorld
from simulation.explore.lease_world import LeaseWorld
from simulation.explore.search import Found, Search
from simulation.explore.worlds import worlds


def main(arguments: Sequence[str]) -> int:
    """Explore, print a line for each world and the sums, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation explore", description=__doc__)
    parser.add_argument("--large", action="store_true", help="explore more and larger worlds")
    parser.add_argument("--only", default="", help="explore the worlds with this text in their name")
    parser.add_argument("--most", type=int, default=0, help="stop each world after so many states; 0: never")
    options = parser.parse_args(arguments)
    chosen = [each for each in worlds(is_large=options.large) if options.only in each[0]]
    if not chosen:
        parser.error(f"--only: no world has {options.only!r} in its name")
    logging.getLogger("coordinator").setLevel(logging.CRITICAL)  # the faults are on purpose
    states = transitions = broken = 0
    for name, world in chosen:
        found = explored(world, options.most)
        print(f"{name + ':':52} {found}", flush=True)
        states, transitions = states + found.states, transitions + found.transitions
        broken += bool(found.problem)
    print(f"{'all:':52} {states:>10,} states {transitions:>11,} transitions, {broken} worlds with a defect")
    return 1 if broken else 0


def explored(world: LeaseWorld | ElectionWorld, most_states: int = 0) -> Found:
    """The result of the search of one world; ``most_states`` is as in ``Search``."""
    if isinstance(world, LeaseWorld):
        return Search(world, most_states=most_states).run()
    return Search(world, most_states=most_states).run()
