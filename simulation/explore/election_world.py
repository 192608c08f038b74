"""A small world of the election: two coordinators, the lease store and the calls between.

The coordinators run the shipped ``PoolLeader``. Its tick is a coroutine that awaits one call after the other.
A coroutine cannot be copied. So a coordinator in the middle of a tick is its value at the start of the tick,
with the answers since then. The tick is run again up to there. So time may pass, a coordinator may crash and
another one may be elected between any two calls.

A call that is not answered within a step of time has failed, unless its coordinator is paused. It may still
arrive at the store later: then it is the write of a former leader.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from coordinator.leader import PoolLeader, PoolState
from coordinator.leadership import Leadership
from coordinator.scale_hint import HintMaker, HintView
from coordinator.settings import Settings
from simulation.explore.lease_world import Values
from simulation.explore.values import NOW, Field, Rules, fixed, made, time_field
from tokenpool.amounts import Amount
from tokenpool.entitlements import PoolFile
from tokenpool.leases.messages import Limit, PoolSnapshot, StoredScaleHint
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.tick import NO_MEMORY, tick
from tokenpool.leases.wire import SidecarReport, decode_hint, encode_hint, encode_report
from tokenpool.planning.idle import IdleTerms
from tokenpool.planning.scaling import ScalingSettings
from tokenpool.poolfile.reading import parse
from tokenpool.store import StoreDown

STEP_S = 0.5
"""One step of time: a tick of the coordinators, and the time limit of a call."""
LIFETIME_S = 2 * STEP_S
"""An empty store is closed for this time."""
MOST_STEPS = 20
_POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {{tokens_per_second: 1000, kv_tokens: auto, concurrency: 4}}
    replicas: {{min: {least}, max: 8}}
entitlements:
  - {{name: e, pool: chat, tier: elastic, api_keys: [e-key]}}
"""
_UP = SidecarReport(Amount(1000, 10_000, 4), Amount(1000, 10_000, 4), engine_up=True)
_DOWN = "the store does not answer"
"""In place of an answer: the call has failed."""
_SCALING = ScalingSettings(0.1, False, 1.0, 300.0)


@dataclass(frozen=True, slots=True)
class ElectionSetup:
    """One small world. The numbers of faults are for a whole path."""

    name: str
    losses: int = 0
    """Calls or answers that are lost."""
    late: int = 0
    """Steps of time that calls are late, together."""
    pauses: int = 0
    """Steps of time in which a coordinator does not run, together."""
    crashes: int = 0
    outages: int = 0
    """Losses of the store with its content."""
    leadership_steps: int = 3
    """The leadership timeout, in steps of time."""
    answers_wait: bool = False
    """Whether an answer may wait until its coordinator reads it. Otherwise it is read at once."""
    leader: type[PoolLeader] = PoolLeader
    store: type[ReferenceLeaseStore] = ReferenceLeaseStore


BUDGET = ("losses", "late", "pauses", "crashes", "outages")
(LOSSES, LATE, PAUSES, CRASHES, OUTAGES) = range(len(BUDGET))


class Call(NamedTuple):
    """A call of the store, with hashable arguments. It is what a tick awaits."""

    name: str
    arguments: tuple[Any, ...]

    def __await__(self) -> Generator[Call, Any, Any]:
        """Wait for the answer."""
        return (yield self)


class Calls:
    """The store as a coordinator sees it: each call is handed to the world."""

    async def lead(self, candidate: str, leadership_s: float) -> Any:
        """See ``Store``."""
        return await Call("lead", (candidate, leadership_s))

    async def scale_hint(self) -> Any:
        """See ``Store``."""
        return await Call("scale_hint", ())

    async def publish_file(self, version: str, content: bytes, epoch: int) -> Any:
        """See ``Store``."""
        return await Call("publish_file", (version, content, epoch))

    async def read(self, *, whole: bool = True) -> Any:
        """See ``Store``. The answer states whether the store is open; the pool is always the same."""
        del whole  # it changes the cost of a call only
        is_open, version = await Call("read", ())
        reports = {"s": encode_report(_UP)}
        return PoolSnapshot({}, reports, 0, is_open, NOW, version)

    async def publish(
        self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, *, whole: bool = True
    ) -> Any:
        """See ``Store``."""
        del whole
        return await Call("publish", (tuple(sorted(limits.items())), terms, epoch))

    async def publish_scale_hint(self, content: bytes, epoch: int) -> Any:
        """See ``Store``."""
        return await Call("publish_scale_hint", (content, epoch))


class VirtualTime:
    """The clock of the coordinator that runs now."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        """Seconds on the monotonic clock."""
        return self.now


class Position(NamedTuple):
    """A coordinator: its value at the start of its tick, and what has happened since."""

    value: int
    """The number of its value when its tick began; now, if it is between two ticks."""
    answers: tuple[tuple[int, int], ...] = ()
    """The answers so far: the number of each, and the steps of time from the start until it came."""
    steps: int = 0
    """The steps of time since the start."""
    is_waiting: bool = False
    """Whether it is in the middle of a tick."""
    has_ticked: bool = False
    """Whether it has begun a tick in this step of time."""


class State(NamedTuple):
    """One state. The numbers stand for values."""

    coordinators: tuple[Position, Position]
    store: int
    net: tuple[tuple[str, int, int], ...]
    """Calls (``c``: coordinator, call), calls whose coordinator does not wait any more (``l``) and answers
    (``a``: coordinator, answer)."""
    changed: int
    """The steps of time since the content of the stored scale hint changed, up to ``CHANGED_LONG_AGO``."""
    budget: tuple[int, ...]


LONG_AGO = 8
"""The steps of time from which on the age of a scale hint has no further effect: it is not served."""
CHANGED_LONG_AGO = 4
"""The same for the time since it changed: every coordinator has read it, or serves none."""


class Facts(NamedTuple):
    """What the world reads of a coordinator."""

    call: int
    """The call that it waits for; -1 for none."""
    value: int
    """Its value now. In the middle of a tick, the tick has local values too."""
    leads: bool
    hint: bytes
    """The scale hint that it serves; empty for none."""
    hint_age_s: float


class ElectionWorld:
    """The transition system. It implements ``World``."""

    def __init__(self, setup: ElectionSetup) -> None:
        self.setup = setup
        self._clock = VirtualTime()
        self._settings = Settings(
            config=Path("pool.yaml"),
            store="redis://127.0.0.1",
            tick=STEP_S,
            leadership_timeout=setup.leadership_steps * STEP_S,
        )
        self._calls: Any = Calls()
        self._files = [parse(_POOL.format(least=least), name="pool.yaml").file for least in (1, 2)]
        self._leaders = [self._new_leader(number) for number in (0, 1)]
        self._rules = [self._leader_rules(leader) for leader in self._leaders]
        self._store_rules = _store_rules(setup.store)
        self._values, self._stores, self._requests, self._answers = (Values() for _ in range(4))
        self._facts: dict[Any, Facts] = {}
        self._same: dict[Any, Position] = {}
        self._done: dict[Any, Any] = {}
        self._steps: dict[Any, int] = {}

    def _new_leader(self, number: int) -> PoolLeader:
        file: PoolFile = self._files[number]
        return self.setup.leader(
            self._settings,
            self._calls,
            file,
            file.pools[0],
            "xy"[number],
            self._clock,
        )

    # --- the search ---

    def start(self) -> State:
        """No coordinator leads, and the store is open."""
        store = self.setup.store(NOW - LIFETIME_S, LIFETIME_S)
        number = self._stores.number(self._store_rules.freeze(store, NOW))
        first, second = (
            Position(self._values.number(rules.freeze(leader, NOW)))
            for rules, leader in zip(self._rules, self._leaders, strict=True)
        )
        budget = tuple(getattr(self.setup, name) for name in BUDGET)
        return self._tidy(State((first, second), number, (), CHANGED_LONG_AGO, budget))

    def events(self, state: State) -> Iterator[tuple[Any, State, str]]:
        """See ``World``."""
        budget = state.budget
        for number, position in enumerate(state.coordinators):
            if not position.is_waiting and not position.has_ticked:
                yield ("tick", "xy"[number]), self._begin(state, number), ""
            if budget[CRASHES]:
                yield ("crash", "xy"[number]), self._crash(state, number), ""
        for place, item in enumerate(state.net):
            left = (*state.net[:place], *state.net[place + 1 :])
            told = self._label(item)
            after, broken = self._arrive(state._replace(net=left), item)
            yield ("arrives", *told), after, broken
            if item[0] == "c" and self.setup.answers_wait:
                after, broken = self._arrive(state._replace(net=left), item, is_read=False)
                yield ("arrives, and is answered", *told), after, broken
            if budget[LOSSES]:
                yield ("lost", *told), self._tidy(_less(state._replace(net=left), LOSSES)), ""
                if item[0] == "c":
                    after, broken = self._arrive(state._replace(net=left), item, is_read=False)
                    after = after._replace(
                        net=tuple(each for each in after.net if each[:2] != ("a", item[1]))
                    )
                    yield ("arrives, and its answer is lost", *told), self._tidy(_less(after, LOSSES)), broken
        if budget[OUTAGES]:
            yield ("store lost",), self._lose_store(state), ""
        yield from self._time(state)

    def problem(self, state: State) -> str:
        """See ``World``."""
        facts = [self._about(number, position) for number, position in enumerate(state.coordinators)]
        if all(each.leads for each in facts) and state.budget[OUTAGES] == self.setup.outages:
            return "both coordinators lead"
        view = self._leaders[0].hints
        stored = self._hint_of(state.store)
        for number, each in enumerate(facts):
            if not each.hint:
                continue
            if each.hint_age_s > view._stale_s:
                return f"{'xy'[number]} serves a scale hint of {each.hint_age_s:g} s"
            if stored and each.hint != stored and state.changed * STEP_S > view._unseen_s:
                return (
                    f"{'xy'[number]} serves another scale hint than the store has had for"
                    f" {state.changed * STEP_S:g} s"
                )
        return ""

    def steps_to_progress(self, state: State) -> int:
        """See ``World``. Progress: one coordinator leads, and both serve the same scale hint."""
        path: list[State] = []
        at = state._replace(budget=())
        known: int | None
        while (known := self._steps.get(at)) is None:
            if len(path) > MOST_STEPS:
                known = -1
                break
            path.append(at)
            if self._is_settled(at):
                known = self._steps[path.pop()] = 0
                break
            at = self._quiet_step(at)
        for each in reversed(path):
            known = known + 1 if known >= 0 else -1
            self._steps[each] = known
        return known

    def told(self, path: Sequence[tuple[State, Any]], problem: str) -> tuple[list[str], str]:
        """See ``World``."""
        return [_told(event) for _, event in path], problem

    # --- events ---

    def _begin(self, state: State, number: int) -> State:
        """A coordinator begins a tick."""
        before = state.coordinators[number]
        position = before._replace(answers=(), steps=0, is_waiting=True, has_ticked=True)
        return self._continue(state, number, position)

    def _continue(self, state: State, number: int, position: Position) -> State:
        """A coordinator runs until its next call, or to the end of its tick."""
        facts, net = self._about(number, position), state.net
        if facts.call >= 0:
            net = (*net, ("c", number, facts.call))
            # Two histories with the same future are one: the rest of the tick reads nothing else.
            known = tuple(each for each, _ in position.answers if self._is_remembered(each))
            same = (number, facts.value, facts.call, known, position.steps)
            position = self._same.setdefault(same, position)
        else:
            position = Position(facts.value, has_ticked=position.has_ticked)
        return self._tidy(_with(state._replace(net=net), number, position))

    def _arrive(self, state: State, item: tuple[str, int, int], *, is_read: bool = True) -> tuple[State, str]:
        """A call arrives at the store, and its answer is read at once (``is_read``) or later."""
        kind, number, what = item
        if kind == "a":
            return self._read(state, number, what), ""
        store, answer, broken = self._execute(state.store, what)
        changed = 0 if self._hint_of(store) != self._hint_of(state.store) else state.changed
        state = state._replace(store=store, changed=changed)
        if kind == "c" and is_read:
            return self._read(state, number, answer), broken
        net = (*state.net, ("a", number, answer)) if kind == "c" else state.net
        return self._tidy(state._replace(net=net)), broken

    def _read(self, state: State, number: int, answer: int) -> State:
        """A coordinator reads an answer."""
        position = state.coordinators[number]
        answers = (*position.answers, (answer, position.steps))
        return self._continue(state, number, position._replace(answers=answers))

    def _crash(self, state: State, number: int) -> State:
        """A new process replaces a coordinator. Its calls may still arrive."""
        leader = self._new_leader(number)
        leader.candidate = f"{'xy'[number]}{state.budget[CRASHES]}"
        position = Position(self._values.number(self._rules[number].freeze(leader, NOW)))
        net = tuple(
            ("l", who, what) if who == number else (kind, who, what)
            for kind, who, what in state.net
            if not (who == number and kind == "a")
        )
        return self._tidy(_less(_with(state._replace(net=net), number, position), CRASHES))

    def _lose_store(self, state: State) -> State:
        store = self.setup.store(NOW, LIFETIME_S)
        number = self._stores.number(self._store_rules.freeze(store, NOW))
        return self._tidy(_less(state._replace(store=number, changed=0), OUTAGES))

    def _time(self, state: State) -> Iterator[tuple[Any, State, str]]:
        """A step of time passes, with each choice of paused coordinators."""
        for paused in ((), (0,), (1,), (0, 1)):
            if len(paused) <= state.budget[PAUSES]:
                after = self._after_step(state, paused)
                if after is not None:
                    yield ("time", *("xy"[number] for number in paused)), after, ""

    def _after_step(self, state: State, paused: Sequence[int]) -> State | None:
        """The state after a step of time; ``None`` if a call would be later than it may be."""
        running = [number for number in (0, 1) if number not in paused]
        if any(
            not state.coordinators[n].has_ticked and not state.coordinators[n].is_waiting for n in running
        ):
            return None
        net = tuple(
            ("l", who, what)
            if kind == "c" and who in running
            else (kind, who, self._answer_after_step(what) if kind == "a" else what)
            for kind, who, what in state.net
            if not (kind == "a" and who in running)  # an answer to a call that has failed
        )
        late = sum(kind == "l" for kind, _, _ in net)
        if state.budget and late > state.budget[LATE]:
            return None
        budget = list(state.budget)
        if budget:
            budget[LATE] -= late
            budget[PAUSES] -= len(paused)
        store = self._store_after_step(state.store)
        changed = min(state.changed + 1, CHANGED_LONG_AGO)
        after = State(state.coordinators, store, net, changed, tuple(budget))
        for number, position in enumerate(state.coordinators):
            if position.is_waiting:
                later = position._replace(steps=position.steps + 1, has_ticked=False)
                after = _with(after, number, later)
                if number in running:
                    failed = (*later.answers, (self._answers.number(_DOWN), later.steps))
                    after = self._continue(after, number, later._replace(answers=failed))
            else:
                after = _with(after, number, Position(self._value_after_step(number, position.value)))
        return self._tidy(after)

    def _quiet_step(self, state: State) -> State:
        """One step of time without faults: each coordinator runs a tick, and all calls are answered."""
        state = self._answered(state)
        for number in (0, 1):
            position = state.coordinators[number]
            if not position.has_ticked and not position.is_waiting:
                state = self._answered(self._begin(state, number))
        after = self._after_step(state, ())
        assert after is not None
        return after

    def _answered(self, state: State) -> State:
        for _ in range(40):
            if not state.net:
                break
            state = self._arrive(state._replace(net=state.net[1:]), state.net[0])[0]
        return state

    def _is_settled(self, state: State) -> bool:
        facts = [self._about(number, position) for number, position in enumerate(state.coordinators)]
        return (
            not state.net
            and sum(each.leads for each in facts) == 1
            and facts[0].hint == facts[1].hint == self._hint_of(state.store) != b""
        )

    # --- parts as values ---

    def _is_remembered(self, answer: int) -> bool:
        """Whether a tick keeps this answer in a local variable: its epoch, and what it has read."""
        found = self._answers.all[answer]
        return type(found) is tuple and found[0] in ("epoch", "read")

    def _about(self, number: int, position: Position) -> Facts:
        """Run the tick of a coordinator again, up to the present."""
        key = (number, position.value, position.answers, position.steps, position.is_waiting)
        facts = self._facts.get(key)
        if facts is None:
            clock = self._clock
            clock.now = NOW
            leader: PoolLeader = self._rules[number].thaw(self._values.all[position.value])
            call = self._run(leader, position) if position.is_waiting else None
            clock.now = now = NOW + position.steps * STEP_S
            hint = leader.hint()
            facts = self._facts[key] = Facts(
                self._requests.number(call) if call is not None else -1,
                self._values.number(self._rules[number].freeze(leader, now)),
                leader.epoch > 0,
                encode_hint(hint) if hint is not None else b"",
                now - leader.hints.computed_at,
            )
        return facts

    def _run(self, leader: PoolLeader, position: Position) -> Call | None:
        """The call that a tick waits for after these answers; ``None`` if it has ended."""
        running: Any = leader.run_tick()
        call: Call
        try:
            call = running.send(None)
            for answer, steps in position.answers:
                self._clock.now = NOW + steps * STEP_S
                found = self._answers.all[answer]
                call = (
                    running.throw(StoreDown(_DOWN))
                    if found == _DOWN
                    else running.send(_live_answer(found, self._clock.now))
                )
        except StopIteration:
            if leader.rounds["failed"]:
                raise RuntimeError(f"a defect of the coordinator: {leader.error}") from None
            return None
        running.close()
        return call

    def _value_after_step(self, number: int, value: int) -> int:
        key = ("time", number, value)
        found = self._done.get(key)
        if found is None:
            leader = self._rules[number].thaw(self._values.all[value])
            found = self._values.number(self._rules[number].freeze(leader, NOW + STEP_S))
            self._done[key] = found
        return found

    def _answer_after_step(self, answer: int) -> int:
        found = self._answers.all[answer]
        if type(found) is tuple and found[0] == "hint":
            tag, content, at, age_s = found
            return self._answers.number((tag, content, at - STEP_S, age_s))
        if type(found) is tuple and found[0] == "stored":
            return self._answers.number((found[0], found[1] - STEP_S))
        return answer

    def _store_after_step(self, store: int) -> int:
        key = ("time", store)
        found = self._done.get(key)
        if found is None:
            live = self._store_rules.thaw(self._stores.all[store])
            found = self._done[key] = self._stores.number(self._store_rules.freeze(live, NOW + STEP_S))
        return found

    def _execute(self, store: int, request: int) -> tuple[int, int, str]:
        """The store executes a call: the store after it, the answer, and the invariant that breaks."""
        key = (store, request)
        found = self._done.get(key)
        if found is None:
            live: Any = self._store_rules.thaw(self._stores.all[store])
            highest = max(live._epoch, live._leader_epoch)
            name, arguments = self._requests.all[request]
            answer = _call(live, name, arguments)
            broken = ""
            if name.startswith("publish") and answer and arguments[-1] < highest:
                broken = (
                    f"the store accepted {name} of epoch {arguments[-1]} after epoch {highest} was granted"
                )
            found = self._done[key] = (
                self._stores.number(self._store_rules.freeze(live, NOW)),
                self._answers.number(answer),
                broken,
            )
        return found

    def _hint_of(self, store: int) -> bytes:
        key = ("hint", store)
        found = self._done.get(key)
        if found is None:
            live: Any = self._store_rules.thaw(self._stores.all[store])
            found = self._done[key] = live._scale_hint[0] if live._scale_hint is not None else b""
        return found

    def _leader_rules(self, leader: PoolLeader) -> Rules:
        """How a coordinator becomes a value. Plans and their memory are always the same here."""
        kind = type(leader)
        shown = PoolState(tick(PoolSnapshot({}, {}, 0, True), {}, None), (), 0.0, 0.0)
        fields: dict[tuple[type, str], Field] = {
            (kind, name): fixed(getattr(leader, name))
            for name in (
                "_settings", "store", "clock", "_planner", "pool", "_file", "entitlements", "_by_name",
                "groups", "promises", "file_version", "_content",
            )
        }  # fmt: skip
        fields |= {
            (kind, "_before"): fixed(None),
            (kind, "_memory"): fixed(NO_MEMORY),
            (kind, "_filed_at"): Field(lambda at, _now: at is not None, lambda has: NOW if has else None),
            (kind, "_rounds"): Field(lambda count, _now: count % 4, lambda stored: stored),
            (kind, "_hint_maker"): made(lambda: HintMaker(_SCALING)),
            (kind, "state"): Field(lambda state, _now: state is not None, lambda has: shown if has else None),
            (kind, "error"): Field(lambda error, _now: bool(error), lambda has: _DOWN if has else ""),
            (kind, "rounds"): made(Counter),
            (Leadership, "_until"): time_field(0.0),
            (HintView, "_stored"): Field(_stored_hint, _live_hint),
            (HintView, "_asked_at"): Field(
                lambda at, now: None if at is None else max(at - now, -LONG_AGO * STEP_S),
                lambda age: None if age is None else NOW + age,
            ),
            (HintView, "_changed_at"): time_field(-LONG_AGO * STEP_S),
            (HintView, "last"): Field(
                lambda hint, _now: None if hint is None else encode_hint(hint),
                lambda content: None if content is None else decode_hint(content),
            ),
        }
        return Rules(fields, frozenset())

    # --- one form for equal states ---

    def _tidy(self, state: State) -> State:
        """Equal items of the network are in a fixed order, and epochs are counted from the oldest."""
        epochs = self._epochs_of(state)
        ranks = {epoch: rank for rank, epoch in enumerate(sorted(epochs), 1)}
        if all(epoch == rank for epoch, rank in ranks.items()):
            return state._replace(net=tuple(sorted(state.net)))
        pairs = tuple(ranks.items())
        one, two = state.coordinators
        coordinators = (self._ranked_position(0, one, pairs), self._ranked_position(1, two, pairs))
        net = sorted(
            (
                kind,
                who,
                self._ranked_answer(what, pairs) if kind == "a" else self._ranked_request(what, pairs),
            )
            for kind, who, what in state.net
        )
        return state._replace(
            coordinators=coordinators, store=self._ranked_store(state.store, pairs), net=tuple(net)
        )

    def _epochs_of(self, state: State) -> set[int]:
        epochs = set(self._epochs_in("store", state.store))
        for number, position in enumerate(state.coordinators):
            epochs.update(self._epochs_in(number, position.value))
            for answer, _ in position.answers:
                epochs.update(self._epochs_in("answer", answer))
        for kind, _, what in state.net:
            epochs.update(self._epochs_in("answer" if kind == "a" else "request", what))
        epochs.discard(0)
        return epochs

    def _epochs_in(self, kind: Any, number: int) -> tuple[int, ...]:
        key = ("epochs", kind, number)
        found = self._done.get(key)
        if found is None:
            if kind == "store":
                live: Any = self._store_rules.thaw(self._stores.all[number])
                found = (live._epoch, live._leader_epoch)
            elif kind == "request":
                name, arguments = self._requests.all[number]
                found = (arguments[-1],) if name.startswith("publish") else ()
            elif kind == "answer":
                answer = self._answers.all[number]
                found = (answer[1],) if _is_epoch(answer) else ()
            else:
                found = (self._rules[kind].thaw(self._values.all[number])._leadership._epoch,)
            self._done[key] = found
        return found

    def _ranked_position(self, number: int, position: Position, pairs: Any) -> Position:
        key = ("ranked", number, position.value, pairs)
        value = self._done.get(key)
        if value is None:
            leader = self._rules[number].thaw(self._values.all[position.value])
            leader._leadership._epoch = dict(pairs).get(leader._leadership._epoch, 0)
            value = self._done[key] = self._values.number(self._rules[number].freeze(leader, NOW))
        answers = tuple((self._ranked_answer(each, pairs), steps) for each, steps in position.answers)
        return position._replace(value=value, answers=answers)

    def _ranked_answer(self, answer: int, pairs: Any) -> int:
        found = self._answers.all[answer]
        if not _is_epoch(found):
            return answer
        return self._answers.number(("epoch", dict(pairs).get(found[1], 0)))

    def _ranked_request(self, request: int, pairs: Any) -> int:
        name, arguments = self._requests.all[request]
        if not name.startswith("publish"):
            return request
        return self._requests.number(Call(name, (*arguments[:-1], dict(pairs).get(arguments[-1], 0))))

    def _ranked_store(self, store: int, pairs: Any) -> int:
        key = ("ranked store", store, pairs)
        found = self._done.get(key)
        if found is None:
            live: Any = self._store_rules.thaw(self._stores.all[store])
            ranks = dict(pairs)
            live._epoch, live._leader_epoch = ranks.get(live._epoch, 0), ranks.get(live._leader_epoch, 0)
            found = self._done[key] = self._stores.number(self._store_rules.freeze(live, NOW))
        return found

    def _label(self, item: tuple[str, int, int]) -> tuple[Any, ...]:
        kind, number, what = item
        if kind == "a":
            return (kind, "xy"[number], self._answers.all[what])
        call: Call = self._requests.all[what]
        epoch = call.arguments[-1] if call.name.startswith("publish") else None
        return (kind, "xy"[number], call.name, epoch)


def _is_epoch(answer: Any) -> bool:
    return type(answer) is tuple and answer[0] == "epoch"


def _live_answer(found: Any, now: float) -> Any:
    """The answer as the coordinator gets it at ``now``. A time in it is relative to now."""
    if type(found) is not tuple or found[0] == "read":
        return found[1:] if type(found) is tuple else found
    tag, *rest = found
    if tag == "hint":
        content, at, age_s = rest
        return StoredScaleHint(content, now + at, age_s)
    return rest[0] if tag == "epoch" else now + rest[0]


def _call(live: ReferenceLeaseStore, name: str, arguments: tuple[Any, ...]) -> Any:
    """Execute a call at ``NOW``. The answer has a hash."""
    if name == "lead":
        return ("epoch", live.lead(arguments[0], arguments[1], NOW))
    if name == "publish":
        limits, terms, epoch = arguments
        return live.publish(dict(limits), terms, epoch, NOW)
    if name == "publish_file":
        return live.publish_file(*arguments)
    if name == "publish_scale_hint":
        return ("stored", 0.0) if live.publish_scale_hint(arguments[0], arguments[1], NOW) else None
    if name == "read":
        snapshot = live.read(NOW)
        return ("read", live._is_open(NOW), snapshot.file_version)
    hint = live.scale_hint(NOW)
    return None if hint is None else ("hint", hint.content, round(hint.at - NOW, 6), hint.age_s)


def _less(state: State, costs: int) -> State:
    budget = list(state.budget)
    budget[costs] -= 1
    return state._replace(budget=tuple(budget))


def _with(state: State, number: int, position: Position) -> State:
    one, two = state.coordinators
    return state._replace(coordinators=(position, two) if number == 0 else (one, position))


def _stored_hint(stored: StoredScaleHint | None, now: float) -> Any:
    return None if stored is None else (stored.content, max(stored.at - now, -LONG_AGO * STEP_S))


def _live_hint(value: Any) -> StoredScaleHint | None:
    return None if value is None else StoredScaleHint(value[0], NOW + value[1], 0.0)


def _store_rules(kind: type[ReferenceLeaseStore]) -> Rules:
    """How the store becomes a value. It has no sidecars here."""

    def hint(stored: tuple[bytes, float] | None, now: float) -> Any:
        return None if stored is None else (stored[0], max(stored[1] - now, -LONG_AGO * STEP_S))

    fields: dict[tuple[type, str], Field] = {}
    for each in (kind, ReferenceLeaseStore):
        fields |= {
            (each, "_opens_at"): time_field(0.0),
            # The sidecars, which are not in this world, write to it all the time.
            (each, "_heard_at"): fixed(NOW),
            (each, "_published_at"): fixed(NOW),
            (each, "_expire_at"): fixed(math.inf),
            (each, "_leads_until"): time_field(0.0),
            (each, "_pool_at"): fixed(NOW),
            (each, "_scale_hint"): Field(hint, lambda v: None if v is None else (v[0], NOW + v[1])),
        }
    return Rules(fields, frozenset({IdleTerms, Limit}))


def _told(event: Any) -> str:
    kind, *rest = event
    if kind == "tick":
        return f"{rest[0]} begins a tick"
    if kind == "crash":
        return f"{rest[0]} crashes, and a new process takes its place"
    if kind == "store lost":
        return "the store loses its content"
    if kind == "time":
        return f"{STEP_S:g} s pass" + (f"; paused: {', '.join(rest)}" if rest else "")
    what = f"the answer to {rest[1]}" if rest[0] == "a" else f"{rest[1]}'s call {rest[2]}"
    if rest[0] == "a" and _is_epoch(rest[2]):
        what += f" ({f'leader, epoch {rest[2][1]}' if rest[2][1] else 'another coordinator leads'})"
    if rest[0] != "a" and rest[3] is not None:
        what += f" of epoch {rest[3]}"
    if rest[0] == "l":
        what += ", which had failed there,"
    return f"{what} {'is lost' if kind == 'lost' else kind}"
