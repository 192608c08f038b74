"""A small world of the lease protocol: two sidecars, one entitlement, the lease store and their messages.

The sidecars run the shipped driver, admission control, leases and exchange (``small_sidecar``). The lease
store is the reference store. The contract suite compares it with the scripts in Redis. In each step of time,
a sidecar closes one interval. Between two steps, requests arrive and end, messages and answers arrive, and
faults happen, in any order.

A state is a tuple of numbers. Each number stands for the value of one part: a sidecar, the store, a message.
A part changes by a pure function of its value and an event, so each pair is computed once, and kept.

Bounds that make the states finitely many:

- Each path has a number of requests and a number of faults of each kind (``LeaseSetup``).
- A sidecar has at most ``MOST_IN_FLIGHT`` messages between it and the store. A further one is lost.
- Numbers of messages are counted from the oldest that can still arrive.
- Two states that differ only by an exchange of the two sidecars are one state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from simulation.explore.small_sidecar import (
    AHEAD,
    KV,
    LEASE,
    LIFETIME_S,
    NAME,
    STEP_S,
    Parts,
    SmallSidecar,
    live_message,
    message_value,
    rules,
)
from simulation.explore.values import NOW, Field, Rules, fixed, time_field
from tokenpool.amounts import UNBOUNDED, Amount
from tokenpool.entitlements import Entitlement, Tier
from tokenpool.leases import reference_store
from tokenpool.leases.messages import Answer, Lease, Limit, ReplicaRoom
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.row_layout import HolderRow
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms

MOST_IN_FLIGHT = 3
"""The most messages of one sidecar on their way to the store."""
HOLDERS = ("a", "b", "c", "d")
"""The names of the two sidecars, and of crashed ones."""
NAMED = tuple(f"{{{name}}}" for name in HOLDERS)
"""The places of these names in a problem: ``told`` fills them in."""
MOST_STEPS = 40
"""The most time steps without faults until a state makes progress."""
DEPTH = 1000.0
"""The size and the rate of the token bucket. No bucket refills here, so its level shows each charge."""
Net = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class LeaseSetup:
    """One small world. The numbers of faults are for a whole path."""

    name: str
    limit: int = 2
    """The limit of the entitlement, in sequences."""
    requests: int = 3
    most_at_once: int = 2
    """The most requests that one sidecar runs or makes wait."""
    losses: int = 0
    """Messages, answers and notifications that are lost."""
    duplicates: int = 0
    """Messages that arrive twice."""
    late: int = 0
    """Time steps that messages are late, together."""
    pauses: int = 0
    """Time steps in which a sidecar does not run, together."""
    crashes: int = 0
    outages: int = 0
    """Outages of the store, with or without its content afterwards."""
    keeps_content: bool = True
    """Whether a store may come back with its content."""
    short_outages: bool = False
    """Whether an outage ends before time passes."""
    loses_content: bool = True
    """Whether it may come back empty."""
    drifts: int = 0
    """Time steps by which the clocks of sidecars fall behind, together. A lease has a margin of one."""
    limits: tuple[int, ...] = ()
    """Limits that the coordinator publishes later, in this order."""
    guarantee: int = 0
    headroom: float = 0.0
    """Free sequences of the pool, which allow admissions before the report."""
    ticks_at_once: bool = True
    """Whether the sidecars close their intervals when time passes, or at any moment between two steps."""
    parts: Parts = field(default_factory=Parts)
    store: type[ReferenceLeaseStore] = ReferenceLeaseStore

    def published(self, sequences: int) -> Limit:
        """A limit of so many sequences."""
        assured = min(self.guarantee, sequences)
        return Limit(DEPTH, float(sequences * KV), float(sequences), DEPTH, assured * KV, assured)

    @property
    def may_refuse(self) -> bool:
        """Whether a request may be refused. Not if a sidecar's share alone has room for all requests."""
        return self.requests > math.ceil(self.limit / 2) or bool(self.limits)

    @property
    def terms(self) -> IdleTerms:
        """The state of the pool: busy, or with headroom."""
        free = self.headroom
        return IdleTerms((DEPTH, free * KV, free), (DEPTH, 10.0 * KV, 10.0), not free)


class State(NamedTuple):
    """One state. The numbers stand for values, see ``Values``."""

    sidecars: tuple[int, int]
    store: int
    is_down: bool
    net: Net
    """Messages (``m``: holder, message), answers (``a``: holder, message, answer; ``old`` if the
    store has lost its content since) and notifications (``p``:
    holder, kind), in a fixed order."""
    budget: tuple[int, ...]
    """Requests and faults that may still happen, in the order of ``BUDGET``."""


BUDGET = ("requests", "losses", "duplicates", "late", "pauses", "crashes", "outages", "drifts", "limits")
(REQUESTS, LOSSES, DUPLICATES, LATE, PAUSES, CRASHES, OUTAGES, DRIFTS, LIMITS) = range(len(BUDGET))
KINDS = ("reclaim", "freed")


class Values:
    """Values with numbers: equal values have the same number."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The number of a value."""
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.all)
            self.all.append(value)
        return found


class SidecarFacts(NamedTuple):
    """What the world reads of a sidecar's value."""

    number: int
    """The number of its last message."""
    under_way: tuple[int, ...]
    state_number: int
    usable: float
    granted_of: float
    is_current: bool
    in_use: int
    spent: float
    bases: tuple[str, ...]
    waiting: int
    has_ticked: bool
    is_overdue: bool
    is_alarm_due: bool
    mode: Mode
    failures: int


class StoreFacts(NamedTuple):
    """What the world reads of the store's value."""

    holders: Mapping[str, tuple[int, bool, float]]
    """By holder: the number of its last complete message, whether it has a lifetime, and its rest in s."""
    rows: Mapping[str, tuple[int, float, float]]
    """By holder: the number of the message that wrote its row, the sequences held, and the tokens spent."""
    sum_of_rows: float
    sums: float
    served: float
    level: float
    is_open: bool
    has_limits: bool
    limit: float


class LocalResult(NamedTuple):
    """The result of one event in a sidecar."""

    sidecar: int
    messages: tuple[int, ...]
    broken: str


class LeaseWorld:
    """The transition system. It implements ``World``."""

    def __init__(self, setup: LeaseSetup) -> None:
        self.setup = setup
        ceiling = UNBOUNDED if setup.headroom else Amount(math.inf, math.inf, float(setup.limit))
        amount = Amount(0.0, float(setup.guarantee * KV), float(setup.guarantee))
        tier = Tier.GUARANTEED if setup.guarantee else Tier.ELASTIC
        self._entitlement = Entitlement(NAME, "pool", tier, guarantee=amount, ceiling=ceiling)
        template = SmallSidecar(self._entitlement, setup.parts)
        self._sidecar_rules = rules(template)
        self._store_rules = _store_rules(setup.store)
        self._sidecars, self._stores = Values(), Values()
        self._messages, self._answers = Values(), Values()
        self._local: dict[Any, LocalResult] = {}
        self._stored: dict[Any, Any] = {}
        self._facts: dict[int, SidecarFacts] = {}
        self._store_facts: dict[int, StoreFacts] = {}
        self._ranked: dict[Any, tuple[int, tuple[int, ...], tuple[int, ...]]] = {}
        self._steps: dict[Any, int] = {}
        self._arrived: dict[Any, Any] = {}
        self._is_swapped = False
        """Whether the last state has the sidecars exchanged."""

    # --- the search ---

    def start(self) -> State:
        """The store is open and has limits; both sidecars are new."""
        setup = self.setup
        store = setup.store(NOW - LIFETIME_S, LIFETIME_S)
        store.publish({NAME: setup.published(setup.limit)}, setup.terms, 1, NOW)
        stored = self._stores.number(self._store_rules.freeze(store, NOW))
        sidecar = self._new_sidecar(stored, is_down=False)
        budget = tuple(len(setup.limits) if name == "limits" else getattr(setup, name) for name in BUDGET)
        return self._tidy([sidecar, sidecar], stored, False, [], list(budget))

    def told(self, path: Sequence[tuple[State, Any]], problem: str) -> tuple[list[str], str]:
        """See ``World``. A sidecar keeps its name in all lines, although states exchange the sidecars."""
        names, lines = {name: name for name in HOLDERS}, []
        for state, event in path:
            for found, _, _ in self.events(state):
                if found == event:
                    break
            lines.append(_told(event, names))
            if self._is_swapped:
                names["a"], names["b"] = names["b"], names["a"]
        return lines, problem.format(**names)

    def events(self, state: State) -> Iterator[tuple[Any, State, str]]:
        """See ``World``."""
        budget, setup = state.budget, self.setup
        for slot in (0, 1):
            yield from self._events_of(state, slot)
        yield from self._events_of_net(state)
        yield from self._events_of_store(state)
        if len(state.net) > budget[LATE] or (state.is_down and setup.short_outages):
            return
        if not setup.ticks_at_once:
            paused = self._paused(state)
            if len(paused) <= budget[PAUSES]:
                yield ("time", *(HOLDERS[slot] for slot in paused)), *self._step(state, paused)
            return
        for paused in ((), (0,), (1,), (0, 1)):
            if len(paused) <= budget[PAUSES]:
                yield ("time", *(HOLDERS[slot] for slot in paused)), *self._step(state, paused)
        for slot in (0, 1) if budget[DRIFTS] else ():
            left = state._replace(budget=tuple(_less(budget, DRIFTS)))
            yield ("slow", HOLDERS[slot]), *self._step(left, (), slow=slot)

    def problem(self, state: State) -> str:
        """See ``World``."""
        setup, store = self.setup, self._about_store(state.store)
        facts = [self._about(sidecar) for sidecar in state.sidecars]
        usable = sum(each.usable for each in facts)
        limits = [each.granted_of for each in facts if each.usable > 0]
        ahead = sum(basis == AHEAD for each in facts for basis in each.bases)
        if limits and usable > max(limits):
            return f"the sidecars may use {usable:g} sequences together, and the limit is {max(limits):g}"
        by_lease = sum(basis == LEASE for each in facts for basis in each.bases)
        most = max(setup.limit, *setup.limits, *limits, 0)
        if by_lease > most:
            return f"{by_lease} requests run within leases of a limit of {most:g}"
        if ahead > setup.headroom / 2:
            return f"{ahead} requests run before their report; at most {setup.headroom / 2:g} may"
        if any(len(each.bases) != each.in_use for each in facts):
            return "the sequences in use are not those of the running requests"
        if abs(store.sum_of_rows - store.sums) > 1e-9:
            return f"the sums of the store are {store.sums:g}, and its rows add up to {store.sum_of_rows:g}"
        for slot, each in enumerate(facts):
            if each.usable > 0 and each.is_current:
                _, is_alive, rest = store.holders.get(HOLDERS[slot], (0, False, 0.0))
                held = store.rows.get(HOLDERS[slot], (0, 0.0, 0.0))[1]
                if not is_alive or rest <= 0:
                    return f"{NAMED[slot]} uses a lease that has expired in the store"
                if held < each.usable:
                    return (
                        f"the store has {held:g} sequences for {NAMED[slot]}, which may use {each.usable:g}"
                    )
        return self._accounts(state, facts, store)

    def _accounts(self, state: State, facts: list[SidecarFacts], store: StoreFacts) -> str:
        """Each token that the store has counted was spent, and none is counted twice."""
        spent = float(self.setup.requests - state.budget[REQUESTS])
        if store.served > spent:
            return f"the store has counted {store.served:g} tokens, and {spent:g} were spent"
        if store.level and abs(store.level + store.served - DEPTH) > 1e-9:
            return f"the bucket has {store.level:g} tokens after {store.served:g} of {DEPTH:g} were spent"
        for slot, each in enumerate(facts):
            row = store.rows.get(HOLDERS[slot])
            if row is not None and row[2] > each.spent:
                return f"the store has counted {row[2]:g} tokens of {NAMED[slot]}, which spent {each.spent:g}"
        return ""

    # --- events ---

    def _events_of(self, state: State, slot: int) -> Iterator[tuple[Any, State, str]]:
        setup, facts = self.setup, self._about(state.sidecars[slot])
        budget, who = state.budget, HOLDERS[slot]
        if budget[REQUESTS] and len(facts.bases) + facts.waiting < setup.most_at_once:
            yield self._in_sidecar(state, slot, ("offer",), ("offer", who), REQUESTS)
        for number, basis in enumerate(facts.bases):
            if basis not in facts.bases[:number]:
                yield self._in_sidecar(state, slot, ("finish", number), ("finish", who, basis))
        if not setup.ticks_at_once:
            for event in self._due(facts):
                yield self._in_sidecar(state, slot, event, (*event, who))
        if budget[CRASHES]:
            yield ("crash", who), self._crash(state, slot), ""

    def _events_of_net(self, state: State) -> Iterator[tuple[Any, State, str]]:
        budget, before = state.budget, None
        for place, item in enumerate(state.net):
            if item == before:
                continue
            before = item
            net = [*state.net[:place], *state.net[place + 1 :]]
            label = self._label(item)
            after, broken = self._arrive(state, item, [*net])
            yield ("arrives", *label), after, broken
            if budget[LOSSES]:
                yield ("lost", *label), self._spend(state, net, LOSSES), ""
            if budget[DUPLICATES] and item[0] == "m":
                after, broken = self._arrive(state, item, list(state.net), DUPLICATES)
                yield ("arrives and is doubled", *label), after, broken

    def _events_of_store(self, state: State) -> Iterator[tuple[Any, State, str]]:
        setup, budget = self.setup, state.budget
        if state.is_down:
            if setup.keeps_content:
                yield (
                    ("store back",),
                    self._tidy([*state.sidecars], state.store, False, [*state.net], [*budget]),
                    "",
                )
            if setup.loses_content:
                yield ("store back, empty",), self._store_emptied(state), ""
            return
        store = self._about_store(state.store)
        if budget[OUTAGES]:
            left = _less(budget, OUTAGES)
            yield ("store lost",), self._tidy([*state.sidecars], state.store, True, [*state.net], left), ""
        if store.is_open and not store.has_limits:
            yield ("publish",), self._publish(state, self._limit_now(budget), [*budget]), ""
        elif store.has_limits and budget[LIMITS]:
            left = _less(budget, LIMITS)
            limit = self._limit_now(tuple(left))
            yield ("publish", f"a limit of {limit}"), self._publish(state, limit, left), ""

    def _limit_now(self, budget: tuple[int, ...]) -> int:
        published = len(self.setup.limits) - budget[LIMITS]
        return self.setup.limits[published - 1] if published else self.setup.limit

    def _in_sidecar(
        self, state: State, slot: int, event: Any, label: Any, costs: int = -1
    ) -> tuple[Any, State, str]:
        result = self._run(state.sidecars[slot], event)
        sidecars = list(state.sidecars)
        sidecars[slot] = result.sidecar
        net = [*state.net]
        self._send(net, slot, result.messages)
        budget = [*state.budget] if costs < 0 else _less(state.budget, costs)
        return label, self._tidy(sidecars, state.store, state.is_down, net, budget), result.broken

    def _send(self, net: list[tuple[str, int, int, int]], slot: int, messages: tuple[int, ...]) -> None:
        for message in messages:
            if sum(item[0] == "m" and item[1] == slot for item in net) < MOST_IN_FLIGHT:
                net.append(("m", slot, message, -1))

    def _arrive(
        self, state: State, item: tuple[str, int, int, int], net: list[Any], costs: int = -1
    ) -> tuple[State, str]:
        kind, holder, what, answer = item
        budget = [*state.budget] if costs < 0 else _less(state.budget, costs)
        sidecars, store = list(state.sidecars), state.store
        if kind == "m":
            if state.is_down:
                return self._tidy(sidecars, store, True, net, budget), ""
            store, found, pushes = self._exchange(store, what, holder)
            if holder < 2:
                net.append(("a", holder, what, found))
            net += [("p", to, which, -1) for to, which in pushes if to < 2]
            return self._tidy(sidecars, store, False, net, budget), ""
        event = ("push", what) if kind == "p" else ("answer", what, answer, kind == "a")
        result = self._run(sidecars[holder], event)
        sidecars[holder] = result.sidecar
        self._send(net, holder, result.messages)
        return self._tidy(sidecars, store, state.is_down, net, budget), result.broken

    def _spend(self, state: State, net: list[Any], costs: int) -> State:
        return self._tidy([*state.sidecars], state.store, state.is_down, net, _less(state.budget, costs))

    def _crash(self, state: State, slot: int) -> State:
        """A new sidecar replaces one. Its messages may still arrive under its old name."""
        dead = 2 + self.setup.crashes - state.budget[CRASHES]
        names = {HOLDERS[slot]: HOLDERS[dead]}
        net = [
            (kind, dead if holder == slot else holder, what, answer)
            for kind, holder, what, answer in state.net
            if not (holder == slot and kind != "m")
        ]
        sidecars = list(state.sidecars)
        sidecars[slot] = self._new_sidecar(state.store, is_down=state.is_down)
        store = self._renamed(state.store, names)
        return self._tidy(sidecars, store, state.is_down, net, _less(state.budget, CRASHES))

    def _store_emptied(self, state: State) -> State:
        store = self.setup.store(NOW, LIFETIME_S)
        number = self._stores.number(self._store_rules.freeze(store, NOW))
        sidecars = [self._run(each, ("forgotten", True)).sidecar for each in state.sidecars]
        net = [("old" if kind == "a" else kind, *item) for kind, *item in state.net]
        return self._tidy(sidecars, number, False, net, [*state.budget])

    def _publish(self, state: State, limit: int, budget: list[int]) -> State:
        key = ("publish", state.store, limit)
        number = self._stored.get(key)
        if number is None:
            store = self._store_rules.thaw(self._stores.all[state.store])
            store.publish({NAME: self.setup.published(limit)}, self.setup.terms, 1, NOW)
            number = self._stored[key] = self._stores.number(self._store_rules.freeze(store, NOW))
        return self._tidy([*state.sidecars], number, False, [*state.net], budget)

    # --- time ---

    @staticmethod
    def _due(facts: SidecarFacts) -> list[tuple[str, ...]]:
        """What a sidecar does by itself in this step of time."""
        events: list[tuple[str, ...]] = []
        if facts.is_overdue:
            events.append(("timeout",))
        if facts.is_alarm_due:
            events.append(("wake",))
        if not facts.has_ticked:
            events.append(("tick",))
        return events

    def _paused(self, state: State) -> tuple[int, ...]:
        """The sidecars that have not done what was due in this step of time."""
        return tuple(slot for slot in (0, 1) if self._due(self._about(state.sidecars[slot])))

    def _step(self, state: State, paused: tuple[int, ...], slow: int = -1) -> tuple[State, str]:
        """A step of time passes, except on the clock of a sidecar that is ``slow``.

        With ``ticks_at_once``, each sidecar that is not paused does what is due.
        """
        budget = list(state.budget)
        budget[LATE] -= len(state.net)
        budget[PAUSES] -= len(paused)
        store, net, broken = self._after_step(state.store), [*state.net], ""
        sidecars = [
            sidecar if slot == slow else self._run(sidecar, ("time",)).sidecar
            for slot, sidecar in enumerate(state.sidecars)
        ]
        facts = self._about_store(store)
        for slot in (0, 1):
            known = facts.holders.get(HOLDERS[slot])
            if known is None or not known[1] or known[2] <= 0:
                sidecars[slot] = self._run(sidecars[slot], ("forgotten", False)).sidecar
            while self.setup.ticks_at_once and slot not in paused:
                due = self._due(self._about(sidecars[slot]))
                if not due:
                    break
                result = self._run(sidecars[slot], due[0])
                sidecars[slot], broken = result.sidecar, broken or result.broken
                self._send(net, slot, result.messages)
        return self._tidy(sidecars, store, state.is_down, net, budget), broken

    def _after_step(self, store: int) -> int:
        key = ("time", store)
        number = self._stored.get(key)
        if number is None:
            live = self._store_rules.thaw(self._stores.all[store])
            number = self._stores.number(self._store_rules.freeze(live, NOW + STEP_S))
            self._stored[key] = number
        return number

    # --- progress ---

    def steps_to_progress(self, state: State) -> int:
        """See ``World``. No fault happens any more, all messages arrive at once, and running requests end."""
        path: list[Any] = []
        at: State = state
        while True:
            key = (at.sidecars, at.store, at.is_down, at.net)
            known = self._steps.get(key)
            if known is not None:
                break
            if len(path) > MOST_STEPS:
                known = -1
                break
            path.append(key)
            if self._is_settled(at):
                known = 0
                self._steps[key] = 0
                path.pop()
                break
            at = self._quiet_step(at)
        for key in reversed(path):
            known = known + 1 if known >= 0 else -1
            self._steps[key] = known
        return known

    def _is_settled(self, state: State) -> bool:
        """Whether no request waits, both sidecars have joined, and each is served when it asks."""
        if state.net or state.is_down or not self._about_store(state.store).has_limits:
            return False
        for sidecar in state.sidecars:
            facts = self._about(sidecar)
            if facts.waiting or facts.bases or facts.mode is not Mode.JOINED:
                return False
        for slot in (0, 1):
            after = self._in_sidecar(state, slot, ("offer",), None)[1]
            after = self._delivered(after)
            # The sidecars may have changed places.
            if not any(
                LEASE in self._about(s).bases or AHEAD in self._about(s).bases for s in after.sidecars
            ):
                return False
        return True

    def _quiet_step(self, state: State) -> State:
        """One step of time without faults."""
        if state.is_down:
            state = (
                self._tidy([*state.sidecars], state.store, False, [*state.net], [*state.budget])
                if self.setup.keeps_content
                else self._store_emptied(state)
            )
        store = self._about_store(state.store)
        if store.is_open and not store.has_limits:
            state = self._publish(state, self._limit_now(state.budget), [*state.budget])
        state = self._delivered(state)
        for _ in range(8):
            moved = self._next_local(state)
            if moved is None:
                break
            state = self._delivered(moved)
        return self._delivered(self._step(state, ())[0])

    def _next_local(self, state: State) -> State | None:
        """What a sidecar does next in this step of time: what is due, and running requests end."""
        for slot in (0, 1):
            facts = self._about(state.sidecars[slot])
            events: list[Any] = [("finish", 0)] if facts.bases else self._due(facts)
            if events:
                return self._in_sidecar(state, slot, events[0], None)[1]
        return None

    def _delivered(self, state: State) -> State:
        """All messages arrive, and those that they cause."""
        passed: list[Any] = []
        for _ in range(50):
            if not state.net:
                break
            key = (state.sidecars, state.store, state.is_down, state.net)
            known = self._arrived.get(key)
            if known is not None:
                state = State(known[0], known[1], known[2], known[3], state.budget)
                break
            passed.append(key)
            state = self._arrive(state, state.net[0], [*state.net[1:]])[0]
        for key in passed:
            self._arrived[key] = (state.sidecars, state.store, state.is_down, state.net)
        return state

    # --- parts as values ---

    def _new_sidecar(self, store: int, *, is_down: bool) -> int:
        sidecar = SmallSidecar(self._entitlement, self.setup.parts)
        if not is_down:
            limits, terms = self._store_rules.thaw(self._stores.all[store]).limits()
            sidecar.learn(limits, terms)
        return self._sidecars.number(self._sidecar_rules.freeze(sidecar, NOW))

    def _run(self, sidecar: int, event: Any) -> LocalResult:
        """One event in a sidecar. The result depends on nothing else, so it is kept."""
        key = (sidecar, event)
        result = self._local.get(key)
        if result is None:
            live: SmallSidecar = self._sidecar_rules.thaw(self._sidecars.all[sidecar])
            now = NOW
            if event[0] == "answer":
                answer: Answer = self._answers.all[event[2]][0]
                message = live_message(self._messages.all[event[1]], "")
                live.answer(message, answer, is_current=event[3])
            elif event[0] == "push":
                live.push(KINDS[event[1]])
            elif event[0] == "time":
                now, live.has_ticked = NOW + STEP_S, False
            elif event[0] == "numbers":
                _renumber_sidecar(live, dict(event[1]), event[2])
            elif event[0] == "forgotten":
                live.forgotten(by_loss=event[1])
            else:
                getattr(live, event[0])(*event[1:])
            after = self._sidecars.number(self._sidecar_rules.freeze(live, now))
            sent = tuple(self._messages.number(message_value(message)) for message in live.outbox)
            broken = live.broken
            if live.sheds and not self.setup.may_refuse:
                broken = broken or "a request was refused, and there is no shortage"
            result = self._local[key] = LocalResult(after, sent, broken)
        return result

    def _exchange(
        self, store: int, message: int, holder: int
    ) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        """The store applies a message: the store after it, the answer, and the notifications."""
        key = (store, message, holder)
        found = self._stored.get(key)
        if found is None:
            live: ReferenceLeaseStore = self._store_rules.thaw(self._stores.all[store])
            answer, pushes = live.exchange(live_message(self._messages.all[message], HOLDERS[holder]), NOW)
            found = self._stored[key] = (
                self._stores.number(self._store_rules.freeze(live, NOW)),
                self._answers.number(_HashedAnswer(answer)),
                tuple((HOLDERS.index(push.holder), KINDS.index(push.kind)) for push in pushes),
            )
        return found

    def _renamed(self, store: int, names: Mapping[str, str]) -> int:
        key = ("names", store, tuple(names.items()))
        number = self._stored.get(key)
        if number is None:
            live = self._store_rules.thaw(self._stores.all[store])
            _rename(live, names)
            number = self._stored[key] = self._stores.number(self._store_rules.freeze(live, NOW))
        return number

    def _about(self, sidecar: int) -> SidecarFacts:
        facts = self._facts.get(sidecar)
        if facts is None:
            live: SmallSidecar = self._sidecar_rules.thaw(self._sidecars.all[sidecar])
            state = live.leases.states.get(NAME)
            facts = self._facts[sidecar] = SidecarFacts(
                live.sync._number,
                tuple(sorted(live.under_way)),
                state.number if state is not None else -1,
                live.usable,
                live.granted_of,
                live.is_current,
                live.account.concurrency_in_use,
                live.account.meter.spent,
                tuple(request.basis for request in live.running),
                live.waiting,
                live.has_ticked,
                live.is_overdue,
                live.wakes_at <= NOW,
                live.leases.mode,
                live.leases.failures,
            )
        return facts

    def _about_store(self, store: int) -> StoreFacts:
        facts = self._store_facts.get(store)
        if facts is None:
            live: Any = self._store_rules.thaw(self._stores.all[store])
            record = live._records.get(NAME)
            rows = record.rows if record is not None else {}
            limit = live._limits.get(NAME)
            facts = self._store_facts[store] = StoreFacts(
                {n: (h.number, h.is_alive, h.expires_at - NOW) for n, h in live._holders.items()},
                {n: (row.number, row.values.concurrency, row.served[0]) for n, row in rows.items()},
                sum(row.values.concurrency for row in rows.values()),
                record.sums.concurrency if record is not None else 0.0,
                record.served[0] if record is not None else 0.0,
                record.level if record is not None else 0.0,
                live._is_open(NOW),
                limit is not None,
                limit.concurrency if limit is not None else 0.0,
            )
        return facts

    # --- one form for equal states ---

    def _tidy(
        self, sidecars: list[int], store: int, is_down: bool, net: list[Any], budget: list[int]
    ) -> State:
        """The state in its one form: numbers from the oldest message, and the sidecars in a fixed order."""
        for holder in range(2 + self.setup.crashes):
            net, store = self._renumbered(holder, sidecars, store, net)
        net.sort()
        one, two = sidecars
        self._is_swapped = one > two
        if one >= two:
            other = sorted((k, 1 - h if h < 2 else h, what, answer) for k, h, what, answer in net)
            swapped = self._renamed(store, {"a": "b", "b": "a"})
            if one > two or (other, swapped) < (net, store):
                self._is_swapped = True
                one, two, store, net = two, one, swapped, other
        return State((one, two), store, is_down, tuple(net), tuple(budget))

    def _renumbered(
        self, holder: int, sidecars: list[int], store: int, net: list[Any]
    ) -> tuple[list[Any], int]:
        """Count the numbers of a holder's messages from the oldest that can still have an effect."""
        sidecar = sidecars[holder] if holder < 2 else -1
        own = tuple([item[2] for item in net if item[1] == holder and item[0] != "p"])
        key = (sidecar, own)
        known = self._ranked.get(key)
        if known is None:
            known = self._ranked[key] = self._rank_all(sidecar, own)
        sidecar, messages, live = known
        if holder < 2:
            sidecars[holder] = sidecar
        if messages != own:
            left = iter(messages)
            net = [
                (k, h, next(left) if h == holder and k != "p" else what, answer) for k, h, what, answer in net
            ]
        stored_key = (store, holder, live)
        number = self._stored.get(stored_key)
        if number is None:
            number = self._stored[stored_key] = self._store_ranked(store, HOLDERS[holder], live)
        return net, number

    def _rank_all(self, sidecar: int, own: tuple[int, ...]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """The sidecar and its messages with ranks as numbers, and the numbers before that, in order."""
        facts = self._about(sidecar) if sidecar >= 0 else None
        live = {self._messages.all[what][0] for what in own}
        if facts is not None:
            live.update(facts.under_way)
        ordered = tuple(sorted(live))
        ranks = {number: rank for rank, number in enumerate(ordered, 1)}
        if facts is not None:
            wanted = (len(ordered), ranks.get(facts.state_number, -1))
            if ordered != tuple(ranks.values()) or wanted != (facts.number, facts.state_number):
                sidecar = self._run(sidecar, ("numbers", tuple(ranks.items()), len(ordered))).sidecar
        return sidecar, tuple(self._message_with(what, ranks) for what in own), ordered

    def _store_ranked(self, store: int, name: str, ordered: tuple[int, ...]) -> int:
        """The store with ranks as the numbers of a holder."""
        about = self._about_store(store)
        found, row = about.holders.get(name), about.rows.get(name)
        if found is None:
            return store
        before = (found[0], row[0] if row is not None else 0)
        wanted = (_rank(before[0], ordered), _rank(before[1], ordered))
        return store if wanted == before else self._store_with(store, name, wanted)

    def _message_with(self, message: int, ranks: Mapping[int, int]) -> int:
        value = self._messages.all[message]
        return self._messages.number((ranks[value[0]], *value[1:]))

    def _store_with(self, store: int, name: str, numbers: tuple[int, int]) -> int:
        live: Any = self._store_rules.thaw(self._stores.all[store])
        live._holders[name].number = numbers[0]
        record = live._records.get(NAME)
        if record is not None and name in record.rows:
            record.rows[name].number = numbers[1]
        return self._stores.number(self._store_rules.freeze(live, NOW))

    def _label(self, item: tuple[str, int, int, int]) -> tuple[Any, ...]:
        kind, holder, what, answer = item
        if kind == "p":
            return ("p", HOLDERS[holder], KINDS[what])
        return (kind, HOLDERS[holder], self._messages.all[what], answer)


class _HashedAnswer(tuple[Any, ...]):
    """An answer with the hash of its content."""

    __slots__ = ()

    def __new__(cls, answer: Answer) -> _HashedAnswer:
        """Keep the answer beside a hashable form of it."""
        return super().__new__(cls, (answer,))

    def _key(self) -> tuple[Any, ...]:
        answer: Answer = self[0]
        return (
            tuple(sorted(answer.leases.items())), answer.is_open, answer.sidecars, answer.terms,
            answer.is_known, answer.rows, answer.free, tuple(answer.peers), answer.limits_age_s,
        )  # fmt: skip

    def __hash__(self) -> int:
        """The hash of the content."""
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        """Whether both answers say the same."""
        return isinstance(other, _HashedAnswer) and self._key() == other._key()

    def __ne__(self, other: object) -> bool:
        """Whether the answers differ."""
        return not self == other


def _less(budget: tuple[int, ...], costs: int) -> list[int]:
    left = list(budget)
    left[costs] -= 1
    return left


def _rank(number: int, ordered: tuple[int, ...]) -> int:
    """The rank of the last message that is not newer than ``number``; 0 if all are."""
    return sum(each <= number for each in ordered)


def _renumber_sidecar(live: SmallSidecar, ranks: Mapping[int, int], last: int) -> None:
    sync = live.sync
    under_way = list(sync._under_way.values())
    sync._under_way.clear()
    for message, sent_at in under_way:
        value = message_value(message)
        rank = ranks[message.number]
        sync._under_way[rank] = (live_message((rank, *value[1:]), ""), sent_at)
    sync._number = last
    for state in live.leases.states.values():
        state.number = ranks.get(state.number, -1)


def _rename(live: Any, names: Mapping[str, str]) -> None:
    def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): each for name, each in found.items()}

    live._holders = renamed(live._holders)
    live._with_room = [names.get(name, name) for name in live._with_room]
    for record in live._records.values():
        record.rows, record.waiters = renamed(record.rows), renamed(record.waiters)


def _store_rules(kind: type[ReferenceLeaseStore]) -> Rules:
    """How the reference store becomes a value. Dictionaries are stored in the order of their keys."""
    record, row, holder = reference_store._Record, reference_store._Row, reference_store._Holder
    past = time_field(0.0)

    def waiting(waiters: Mapping[str, float], now: float) -> Any:
        return tuple(sorted((name, until - now) for name, until in waiters.items() if until > now))

    zeros = (0.0, 0.0, 0.0)
    fields: dict[tuple[type, str], Field] = {
        (record, "at"): fixed(NOW),
        (record, "floor"): fixed(zeros),
        (record, "served"): Field(lambda served, _now: served[0], lambda tokens: (tokens, 0.0, 0.0)),
        (record, "contended_until"): past,
        (record, "waiters"): Field(waiting, lambda stored: {name: NOW + rest for name, rest in stored}),
        (row, "served"): Field(lambda served, _now: served[0], lambda tokens: (tokens, 0.0, 0.0)),
        (holder, "heard_at"): fixed(NOW),
        (holder, "expires_at"): past,
        (holder, "report"): fixed(b""),
        (holder, "room"): Field(
            lambda room, _now: room is not None, lambda has: ReplicaRoom() if has else None
        ),
    }
    for each in (kind, ReferenceLeaseStore):
        fields |= {
            (each, "_opens_at"): past,
            (each, "_heard_at"): time_field(-LIFETIME_S - STEP_S),
            (each, "_published_at"): fixed(NOW),
            (each, "_expire_at"): fixed(-math.inf),
            (each, "_leader"): fixed(""),
            (each, "_leader_epoch"): fixed(0),
            (each, "_leads_until"): fixed(-math.inf),
            (each, "_epoch"): fixed(0),
            (each, "_pool_at"): fixed(NOW),
            (each, "_pool_level"): fixed(0.0),
            (each, "_state"): fixed(1),
            (each, "_with_room"): Field(lambda names, _now: tuple(sorted(names)), list),
        }
    atoms = frozenset({Amount, HolderRow, IdleTerms, Lease, Limit, ReplicaRoom})
    return _SortedRules(fields, atoms, {record: lambda: record(NOW)})


class _SortedRules(Rules):
    """The order of the keys of the store's dictionaries has no effect."""

    def freeze(self, root: object, now: float) -> Any:
        """See ``Rules``."""
        live: Any = root
        live._holders = dict(sorted(live._holders.items()))
        for record in live._records.values():
            record.rows = dict(sorted(record.rows.items()))
        return super().freeze(root, now)


_PARTS: Mapping[str, Callable[..., str]] = {
    "offer": lambda who: f"a client sends a request to {who}",
    "finish": lambda who, basis: f"a request of {who} ends (it ran by {basis})",
    "tick": lambda who: f"{who} closes an interval",
    "timeout": lambda who: f"a message of {who} has failed: no answer in time",
    "wake": lambda who: f"the alarm of {who}",
    "crash": lambda who: f"{who} crashes, and a new sidecar takes its place",
    "store lost": lambda: "the store does not answer any more",
    "store back": lambda: "the store answers again, with its content",
    "store back, empty": lambda: "the store answers again, and is empty",
    "slow": lambda who: f"{STEP_S:g} s pass, but not on the clock of {who}",
    "publish": lambda *what: f"the coordinator publishes {what[0] if what else 'limits'}",
    "time": lambda *paused: f"{STEP_S:g} s pass" + (f"; paused: {', '.join(paused)}" if paused else ""),
}
_NET = {
    "m": "message {} of {}",
    "a": "the answer to message {} of {}",
    "old": "the answer of the lost store to message {} of {}",
}


def _told(event: Any, names: Mapping[str, str]) -> str:
    kind, *rest = event
    if kind not in ("arrives", "lost", "arrives and is doubled"):
        return _PARTS[kind](*(names.get(word, word) for word in rest))
    who = names[rest[1]]
    if rest[0] == "p":
        what = f"the notification {rest[2]!r} for {who}"
    else:
        what = _NET[rest[0]].format(rest[2][0], who)
        requests = dict(rest[2][1])
        if NAME in requests and rest[0] == "m":
            request = requests[NAME]
            what += f" (in use {request.concurrency_in_use:g}, wants {request.concurrency_wanted:g})"
    return f"{what} {'is lost' if kind == 'lost' else kind}"
