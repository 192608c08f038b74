"""Small worlds: all states hold the invariants, and planted defects are found with the shortest trace."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from coordinator.leader import PoolLeader
from simulation.explore import command
from simulation.explore.election_world import ElectionSetup, ElectionWorld
from simulation.explore.lease_world import LeaseSetup, LeaseWorld
from simulation.explore.search import Found
from simulation.explore.small_sidecar import Parts
from simulation.explore.values import NOW, Rules, fixed, time_field
from simulation.explore.worlds import LARGE_ELECTIONS, LARGE_LEASES, SMALL_LEASES
from tokenpool.accounting.account import Account
from tokenpool.leases import sync
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Limit, Message
from tokenpool.leases.reference_store import Exchange, ReferenceLeaseStore
from tokenpool.leases.settings import LeaseSettings
from tokenpool.leases.sync import LeaseSync
from tokenpool.planning.idle import IdleTerms
from tokenpool.pricing.cost import Cost

pytestmark = pytest.mark.skipif(
    not (sync.__file__ or "").endswith(".py"),
    reason="an object of a compiled class cannot be made from a value",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The faults of the election are on purpose, so the warnings about them say nothing."""
    log = logging.getLogger("coordinator")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def leases(setup: LeaseSetup, most_states: int = 0) -> Found:
    return command.explored(LeaseWorld(setup), most_states)


def elections(setup: ElectionSetup) -> Found:
    return command.explored(ElectionWorld(setup))


# --- the shipped code ---


def test_the_small_form_visits_every_state_and_finds_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("progress in" in line for line in lines)
    assert not any("stopped early" in line for line in lines)
    assert "0 worlds with a defect" in total


def test_a_search_of_the_same_world_counts_the_same_states() -> None:
    first, again = leases(SMALL_LEASES[0]), leases(SMALL_LEASES[0])
    assert (first.states, first.transitions, first.depth) == (again.states, again.transitions, again.depth)
    assert first.is_complete
    assert not first.problem
    assert 0 < first.most_steps <= 10  # two lifetimes


@pytest.mark.thorough
@pytest.mark.parametrize("setup", LARGE_ELECTIONS[3:6], ids=lambda setup: setup.name)
def test_elections_with_one_fault_hold(setup: ElectionSetup) -> None:
    found = elections(setup)
    assert found.is_complete
    assert not found.problem


@pytest.mark.thorough
@pytest.mark.parametrize("setup", LARGE_LEASES[3:], ids=lambda setup: setup.name)
def test_the_first_states_of_the_large_worlds_hold(setup: LeaseSetup) -> None:
    assert not leases(setup, most_states=5000).problem


# --- planted defects ---


class AppliesLateMessages(ReferenceLeaseStore):
    """It does not compare the numbers of messages."""

    def exchange(self, message: Message, now: float) -> Exchange:
        holder = self._holders.get(message.holder)
        if holder is not None:
            holder.number = -1
        for record in self._records.values():
            if message.holder in record.rows:
                record.rows[message.holder].number = -1
        return super().exchange(message, now)


class ChargesTwice(ReferenceLeaseStore):
    """It takes the totals of a message for what was spent since the last one."""

    def exchange(self, message: Message, now: float) -> Exchange:
        found = super().exchange(message, now)
        for record in self._records.values():
            if message.holder in record.rows:
                record.rows[message.holder].served = (0.0, 0.0, 0.0)
        return found


class OpensAtOnce(ReferenceLeaseStore):
    """It grants leases before the sidecars have stated what runs."""

    def __init__(self, now: float, lifetime_s: float) -> None:
        super().__init__(now, lifetime_s)
        self._opens_at = now


class NeverOpens(ReferenceLeaseStore):
    """Each message closes a closed store for another lifetime."""

    def exchange(self, message: Message, now: float) -> Exchange:
        if not self._is_open(now):
            self._opens_at = now + self._lifetime_s
        return super().exchange(message, now)


class ForgetsExpiry(ReferenceLeaseStore):
    """It frees a lease one step too early."""

    def _expire(self, now: float) -> None:
        super()._expire(now + 2 * 0.25)


class Unfenced(ReferenceLeaseStore):
    """It accepts the limits of a former leader."""

    def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, now: float) -> bool:
        self._epoch = min(self._epoch, epoch)
        return super().publish(limits, terms, epoch, now)


class BelievesForever(PoolLeader):
    """It leads until the store says otherwise, even if the store is silent."""

    @property
    def epoch(self) -> int:
        return self._leadership._epoch


class ReadsFewHints(PoolLeader):
    """A coordinator reads the scale hint only in every fourth tick while it does not lead."""

    async def _read_hint(self) -> None:
        if self.hints.last is None or self._leadership.is_held or self._rounds % 4 == 0:
            await super()._read_hint()
        else:
            self.hints._asked_at = self.clock()


def test_a_store_that_applies_late_messages_is_found() -> None:
    setup = LeaseSetup("", requests=1, late=3, duplicates=1, store=AppliesLateMessages)
    found = leases(setup)
    assert found.problem == "the store has 1 sequences for a, which may use 2"
    assert found.trace == [
        "a client sends a request to a",
        "message 1 of a (in use 0, wants 1) arrives and is doubled",
        "the answer to message 1 of a arrives",
        "0.25 s pass",
        "message 2 of a (in use 1, wants 2) arrives",
        "the answer to message 2 of a arrives",
        "message 1 of a (in use 0, wants 1) arrives",
    ]


def test_a_store_that_charges_totals_twice_is_found() -> None:
    found = leases(LeaseSetup("", requests=1, store=ChargesTwice))
    assert found.problem == "the store has counted 2 tokens, and 1 were spent"
    assert len(found.trace) == 10


def test_an_empty_store_that_opens_at_once_is_found() -> None:
    setup = LeaseSetup(
        "", requests=3, limit=1, most_at_once=1, outages=1, keeps_content=False, store=OpensAtOnce
    )
    found = leases(setup)
    assert found.problem == "the sidecars may use 2 sequences together, and the limit is 1"
    assert "the store answers again, and is empty" in found.trace
    assert len(found.trace) == 8


def test_a_store_that_frees_leases_too_early_is_found() -> None:
    found = leases(LeaseSetup("", requests=1, pauses=4, store=ForgetsExpiry))
    assert "lease" in found.problem or "sequences" in found.problem
    assert any("paused" in line for line in found.trace)


def test_a_store_that_never_opens_again_is_found_because_nothing_progresses() -> None:
    found = leases(LeaseSetup("", requests=1, outages=1, keeps_content=False, store=NeverOpens))
    assert found.problem == "no progress is possible any more without faults"
    assert found.trace[-1] == "the store does not answer any more"


def test_a_sidecar_that_keeps_what_it_gave_up_is_found() -> None:
    class KeepsAll(LeaseSync):
        """It asks for less and does not give up the rest before it sends the message."""

        def _lease_request(self, name: str, now: float) -> sync.LeaseRequest:
            account = self.leases.accounts[name]
            limit = account.limit
            request = super()._lease_request(name, now)
            account.limit = limit
            return request

    found = leases(LeaseSetup("", requests=1, late=2, parts=Parts(sync=KeepsAll)))
    assert found.problem == "the store has 1 sequences for a, which may use 2"
    assert len(found.trace) == 9


@pytest.mark.thorough
def test_a_clock_that_falls_behind_by_more_than_the_margin_is_found() -> None:
    found = leases(LeaseSetup("", requests=1, drifts=2, pauses=5))
    assert found.problem == "a uses a lease that has expired in the store"
    assert found.trace.count("0.25 s pass, but not on the clock of a") == 2


def test_a_coordinator_that_leads_too_long_is_found() -> None:
    found = elections(ElectionSetup("", losses=3, leader=BelievesForever))
    assert found.problem == "both coordinators lead"


def test_a_defect_of_a_coordinator_ends_the_search() -> None:
    class Broken(PoolLeader):
        async def _read_hint(self) -> None:
            raise TypeError("no such call")

    with pytest.raises(RuntimeError, match=r"a defect of the coordinator: .*no such call"):
        elections(ElectionSetup("", leader=Broken))


@pytest.mark.thorough
def test_a_coordinator_that_serves_its_own_old_hint_is_found() -> None:
    found = elections(ElectionSetup("", losses=2, leadership_steps=2, leader=ReadsFewHints))
    assert "serves another scale hint than the store has had" in found.problem


@pytest.mark.thorough
def test_a_sidecar_that_refuses_because_of_a_lost_message_is_found() -> None:
    class HasNoShare(Leases):
        """It has no share for requests whose message has failed."""

        def _admit_within_share(self, account: Account, cost: Cost, now: float) -> None:
            pass

    found = leases(LeaseSetup("", requests=1, losses=1, parts=Parts(leases=HasNoShare)))
    assert found.problem == "a request was refused, and there is no shortage"


def test_a_store_without_fencing_is_found() -> None:
    found = elections(ElectionSetup("", pauses=2, leadership_steps=2, store=Unfenced))
    assert found.problem == "the store accepted publish of epoch 1 after epoch 2 was granted"
    assert found.trace[-1] == "x's call publish of epoch 1 arrives"


# --- the command ---


def test_an_unknown_world_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing like it"])
    assert "--only: no world has 'nothing like it' in its name" in capsys.readouterr().err


def test_a_search_can_stop_early(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--large", "--only", "two requests for one", "--most", "100"]) == 0
    assert "(stopped early)" in capsys.readouterr().out


def test_a_result_shows_the_events_that_lead_to_a_problem() -> None:
    found = Found(7, 9, 2, 0.1, 3, "it broke", ["first", "second"])
    assert str(found).endswith("  broken: it broke\n    1. first\n    2. second")


# --- values ---


@dataclass
class Node:
    at: float
    count: int
    next: Node | None
    kept: deque[int]
    names: set[str]


def rules() -> Rules:
    fields = {(Node, "at"): time_field(-1.0, grid=0.25), (Node, "count"): fixed(0)}
    return Rules(fields, frozenset({LeaseSettings}))


def test_a_graph_of_objects_becomes_a_value_and_back() -> None:
    first = Node(NOW, 3, None, deque([1, 2], maxlen=2), {"b", "a"})
    first.next = first
    value = rules().freeze(first, NOW)
    again = rules().thaw(value)
    assert again.next is again
    assert (again.at, again.count, list(again.kept), again.kept.maxlen) == (NOW, 0, [1, 2], 2)
    assert again.names == {"a", "b"}
    assert rules().freeze(again, NOW) == value


def test_the_same_state_at_another_time_has_the_same_value() -> None:
    def node(now: float) -> Node:
        return Node(now + 0.5, 0, None, deque(maxlen=1), set())

    assert rules().freeze(node(NOW), NOW) == rules().freeze(node(NOW + 3), NOW + 3)
    assert rules().freeze(node(NOW), NOW) != rules().freeze(node(NOW), NOW + 0.25)


@pytest.mark.parametrize(
    ("at", "relative"), [(-math.inf, -1.0), (-5.0, -1.0), (0.1, 0.25), (0.25, 0.25), (math.inf, math.inf)]
)
def test_a_time_is_relative_bounded_and_on_its_grid(at: float, relative: float) -> None:
    assert time_field(-1.0, grid=0.25).encode(NOW + at, NOW) == relative
