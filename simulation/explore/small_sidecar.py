"""One sidecar of a small world: the shipped driver, admission control, leases and exchange, as a value.

``SmallSidecar`` is to the driver what a process is: it has the time, the messages to send and the requests
that run. For the invariants it notes on which basis each request runs. ``rules`` says how it becomes a value.

Each request costs one token, ``KV`` KV tokens and one sequence. The engine has room for all requests, and the
sidecar states none to others. So only the leases decide.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from simulation.explore.values import NOW, Field, Rules, Value, fixed, made, time_field
from tokenpool.accounting.account import Account, Missing, PoolView
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.meter import Meter
from tokenpool.accounting.report import Report
from tokenpool.accounting.retries import Retries
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.queue import AdmissionQueue, QueueSettings, WaitCounts
from tokenpool.admission.rules import Shed
from tokenpool.amounts import NOTHING, Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.leases.lease_state import LeaseState
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Lease, LeaseRequest, Limit, Message, Push, ReplicaRoom
from tokenpool.leases.row_layout import HolderRow
from tokenpool.leases.settings import LeaseSettings, Mode
from tokenpool.leases.sync import LeaseSync
from tokenpool.leases.waits import LeaseWaits
from tokenpool.outcomes import Ending
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.planning.idle import IdleTerms
from tokenpool.pricing.cost import Ask, Cost, Usage
from tokenpool.pricing.estimators import Average
from tokenpool.quotas.messages import QuotaMessage

NAME = "e"
KV = 16
ASK = Ask(token_ids=0, output_bound=1)
COST = Cost(0, 1, 1, 1.0, KV)
SPENT = Usage(0, 1)
STEP_S = 0.25
"""One step of time: the interval of the sidecars' messages."""
LIFETIME_S = 1.25
"""A lease expires here after four steps and in the lease store after five."""
TIMEOUT_S = 0.5
"""A message without an answer has failed after two steps."""
SETTINGS = LeaseSettings(LIFETIME_S, STEP_S)

LEASE, AHEAD, FREE, SHARE, UNBOOKED = "lease", "ahead", "free", "share", "unbooked"
"""The basis of a running request: a lease, an admission before the report, free capacity, a share. A request
is unbooked if the lease store has forgotten it: the sidecar was away for a lifetime, or the store lost its
content."""


class SmallRequest:
    """One request. It implements ``Waiter`` and ``Runner`` of the driver."""

    __slots__ = ("basis", "sidecar", "ticket")

    def __init__(self, sidecar: SmallSidecar) -> None:
        self.sidecar = sidecar
        self.ticket: Ticket | None = None
        self.basis = ""

    def decided(self, outcome: Ticket | Shed) -> None:
        """See ``Waiter``."""
        self.sidecar.decided(self, outcome)

    def start(self) -> None:
        """See ``Runner``."""

    def preempt(self) -> None:
        """See ``Runner``. No tenant here is spot."""
        raise AssertionError("no request here is preemptible")


class SmallSidecar:
    """One sidecar. It implements ``Ports`` of the driver."""

    __slots__ = (
        "account",
        "broken",
        "control",
        "driver",
        "granted",
        "granted_of",
        "has_ticked",
        "is_current",
        "leases",
        "outbox",
        "running",
        "sheds",
        "sync",
        "wakes_at",
    )

    def __init__(self, entitlement: Entitlement, parts: Parts, sidecars: int = 2) -> None:
        self.account = Account(entitlement, Pricing(), NOW)
        queue = AdmissionQueue(QueueSettings(elastic_s=STEP_S * 3, guaranteed_s=STEP_S * 3))
        self.leases: Leases = parts.leases(SETTINGS, sidecars, queue)
        self.control = AdmissionControl(NOW, queue, leases=self.leases, has_slo_feedback=False)
        self.control.engine_changed(EngineRoom(1000.0, 1e6, proven_slots=1000.0), NOW)
        self.sync: LeaseSync = parts.sync("", self.leases)
        self.sync.follow({NAME: self.account}, NOW)
        self.driver = Driver(self.control, self, self.sync)
        self.wakes_at = math.inf
        self.running: list[SmallRequest] = []
        self.outbox: list[Message] = []
        self.sheds = 0
        self.broken = ""
        """The invariant that the last event broke."""
        self.has_ticked = False
        """Whether the interval of this time step has been closed."""
        self.granted = 0.0
        """The sequences of the last lease that the store granted."""
        self.granted_of = 0.0
        """The limit of which they were granted."""
        self.is_current = False
        """Whether the store has kept its content since then."""

    # --- events ---

    def offer(self) -> None:
        """A client sends a request."""
        request = SmallRequest(self)
        outcome = self.control.offer(self.account, ASK, COST, NOW, request=request)
        if isinstance(outcome, PendingRequest):
            self.driver.wait(outcome, request)
        else:
            self.decided(request, outcome)
        self.driver.act()

    def finish(self, number: int) -> None:
        """A running request ends."""
        ticket = self.running.pop(number).ticket
        assert ticket is not None
        self.driver.settle(ticket, SPENT, Ending.FINISHED, reported=False)

    def tick(self) -> None:
        """Close an interval."""
        self.has_ticked = True
        for _ in self.driver.tick_steps():
            pass

    def answer(self, message: Message, answer: Answer, *, is_current: bool) -> None:
        """An answer arrives. It is ignored if its message has failed already, as in production.

        ``is_current`` states whether the store has kept its content since it answered.
        """
        if message.number not in self.under_way:
            return
        state = self.leases.states.get(NAME)
        is_heard = state is not None and state.number == message.number and NAME in answer.leases
        if is_heard:  # noted first, because the answer may admit waiting requests
            lease = answer.leases[NAME]
            self.granted, self.granted_of = lease.concurrency, lease.limit.concurrency
            self.is_current = is_current
        self.driver.answered(message, answer)
        if is_heard and self.leases.mode is Mode.JOINED:
            for request in self.running:
                if request.basis == AHEAD:
                    request.basis = LEASE if self.account.concurrency_in_use <= self.granted else AHEAD

    def timeout(self) -> None:
        """The oldest message without an answer in time has failed."""
        for message, sent_at in list(self.sync._under_way.values()):
            if NOW - sent_at >= TIMEOUT_S:
                self.driver.failed(message)
                return

    def push(self, kind: str) -> None:
        """A notification arrives."""
        self.driver.pushed(Push("", kind, NAME))

    def wake(self) -> None:
        """The alarm."""
        self.wakes_at = math.inf
        self.driver.wake()

    def learn(self, limits: dict[str, Limit], terms: IdleTerms) -> None:
        """The limits are read from the lease store."""
        self.driver.learned(limits, terms)

    def forgotten(self, *, by_loss: bool) -> None:
        """The lease store does not know any more what this sidecar has."""
        for request in self.running:
            request.basis = UNBOOKED
        if by_loss:
            self.is_current = False

    def decided(self, request: SmallRequest, outcome: Ticket | Shed) -> None:
        """A request is admitted or shed."""
        if isinstance(outcome, Shed):
            self.sheds += 1
            return
        request.ticket, request.basis = outcome, self._basis(outcome)
        self.running.append(request)
        self.driver.begin(outcome, request)

    def _basis(self, ticket: Ticket) -> str:
        leases, in_use = self.leases, self.account.concurrency_in_use
        ahead, leases.taken_ahead = leases.taken_ahead, 0
        if leases.mode in (Mode.JOINING, Mode.CUT_OFF):
            return self._share(in_use)
        if in_use <= self.usable:
            return LEASE
        if ticket.uses_free_capacity:
            return FREE
        if ahead:
            return AHEAD
        if leases.mode is Mode.JOINED and leases.failures:
            return self._share(in_use)
        self.broken = "a request was admitted beyond the lease, without a rule that allows it"
        return LEASE

    def _share(self, in_use: int) -> str:
        """A request runs within a share: the limit divided by the known sidecars, at least one request."""
        leases, entitlement = self.leases, self.account.entitlement
        known = leases.limit_of(self.account).concurrency if leases.has_limits else math.inf
        whole = min(known, entitlement.ceiling.concurrency)
        own = sum(request.basis == SHARE for request in self.running)
        if own >= max(math.ceil(whole / leases.sidecars), 1) and in_use > self.usable:
            self.broken = f"{own + 1} requests run within a share of {whole:g} / {leases.sidecars}"
        return SHARE

    # --- what the invariants read ---

    @property
    def usable(self) -> float:
        """The sequences that its lease allows it now."""
        leases = self.leases
        if leases.mode is not Mode.JOINED or leases.expires_at <= NOW:
            return 0.0
        return min(self.account.limit.concurrency, self.granted)

    @property
    def under_way(self) -> dict[int, tuple[Message, float]]:
        """The messages without an answer."""
        return self.sync._under_way

    @property
    def is_overdue(self) -> bool:
        """Whether a message has failed that the sidecar has not noticed yet."""
        return any(NOW - sent_at >= TIMEOUT_S for _, sent_at in self.under_way.values())

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self.control.queue)

    # --- the driver's ports ---

    def now(self) -> float:
        """See ``Ports``."""
        return NOW

    def wake_at(self, at: float) -> None:
        """See ``Ports``."""
        self.wakes_at = at

    def send_message(self, message: Message) -> None:
        """See ``Ports``. Before it is sent, the sidecar has given up what it does not ask for."""
        self.outbox.append(message)
        if NAME in message.lease_requests:
            self.granted = min(self.granted, self.account.limit.concurrency)

    def notify_worker(self, worker: int) -> None:
        """See ``Ports``. A simulated sidecar is one process."""

    def send_quotas(self, message: QuotaMessage) -> None:
        """See ``Ports``."""
        raise AssertionError("no quota is configured")

    def ask(self, ask: PeerAsk) -> None:
        """See ``Ports``."""
        raise AssertionError("there is no handover here")

    def cancel(self, ask: PeerAsk) -> None:
        """See ``Ports``."""

    def failed(self, what: str, error: Exception) -> None:
        """See ``Ports``. A defect ends the search."""
        raise error


class Parts:
    """The classes that a world runs. A test plants a defect in one of them."""

    def __init__(self, leases: type[Leases] = Leases, sync: type[LeaseSync] = LeaseSync) -> None:
        self.leases = leases
        self.sync = sync


# --- values ---


def coarse(demand: Amount) -> Amount:
    """Demand in three sizes: none, little and more. An average has infinitely many values."""
    sequences = demand.concurrency
    size = 0.5 if sequences >= 0.5 else 0.25 if sequences >= 0.25 else 0.0
    return Amount(size, size * KV, size)


_REPORT_FLOOR = Amount(0.0, float(KV), 1.0)


def coarse_request(request: LeaseRequest) -> LeaseRequest:
    """A lease request with coarse demand and without the statistics that only the planner reads."""
    demand = coarse(Amount(*request.demand)).values()
    fresh = coarse(Amount(*request.fresh)).values()
    return request._replace(demand=demand, fresh=fresh, kv_seconds=0.0, concurrency_seconds=0.0)


def message_value(message: Message) -> tuple[Any, ...]:
    """A message as a value."""
    requests = tuple(sorted((n, coarse_request(r)) for n, r in message.lease_requests.items()))
    return (message.number, requests, message.is_complete, message.renews, message.kept)


def live_message(value: tuple[Any, ...], holder: str) -> Message:
    """The message with this value. It states no free room."""
    number, requests, is_complete, renews, kept = value
    return Message(holder, number, dict(requests), is_complete, kept=kept, renews=renews, room=ReplicaRoom())


def _under_way(under_way: dict[int, tuple[Message, float]], now: float) -> Value:
    return tuple((message_value(message), at - now) for message, at in under_way.values())


def _live_under_way(value: Any) -> dict[int, tuple[Message, float]]:
    return {stored[0]: (live_message(stored, ""), NOW + age) for stored, age in value}


def _peaks(peaks: deque[tuple[int, int]], _now: float) -> Value:
    """Only the highest of a peak and all later ones can ever be the highest of a window."""
    kept: list[tuple[int, int]] = []
    for kv_tokens, sequences in reversed(peaks):
        kv_before, before = kept[-1] if kept else (0, 0)
        kept.append((max(kv_tokens, kv_before), max(sequences, before)))
    return tuple(reversed(kept))


def _sent(sent: LeaseRequest | None, _now: float) -> Value:
    return None if sent is None else coarse_request(sent)


def _round_trip(seconds: float, _now: float) -> Value:
    return 0.0 if seconds < 0.1 else STEP_S


def _average(value: float) -> Average:
    average = Average(value)
    average.observe(value)
    return average


def rules(template: SmallSidecar) -> Rules:
    """How a sidecar becomes a value. ``template`` has the parts that no event changes."""
    control, account = template.control, template.account
    past = time_field(0.0)
    late = time_field(0.0, grid=STEP_S)
    coarse_field = Field(lambda demand, _now: coarse(demand), lambda stored: stored)
    no_report = Field(lambda r, _now: coarse(r.demand), lambda d: Report(d, NOTHING, _REPORT_FLOOR))
    zero = fixed(0.0)
    fields: dict[tuple[type, str], Field] = {
        (AdmissionControl, "peer_accounts"): fixed(control.peer_accounts),
        (AdmissionControl, "slo"): fixed(control.slo),
        (AdmissionControl, "_shadow"): fixed(None),
        (AdmissionControl, "free_capacity"): fixed(None),
        (AdmissionControl, "room"): fixed(control.room),
        (ActiveAccounts, "_planned_at"): fixed(-math.inf),
        (ActiveAccounts, "_planned_before"): fixed(-math.inf),
        (AdmissionQueue, "room_waits"): made(_no_waits),
        (AdmissionQueue, "lease_waits"): made(_no_waits),
        (AdmissionQueue, "peer_waits"): made(_no_waits),
        (Ledger, "residence"): made(lambda: _average(STEP_S)),
        (Account, "pricer"): fixed(account.pricer),
        (Account, "planned_at"): zero,
        (Account, "retries"): made(Retries),
        (TokenBucket, "_filled_at"): fixed(NOW),
        (Meter, "_held_at"): fixed(NOW),
        (Meter, "_reported_at"): fixed(NOW - STEP_S),
        (Meter, "kv_seconds"): zero,
        (Meter, "concurrency_seconds"): zero,
        (Meter, "_reported_kv_s"): zero,
        (Meter, "_reported_concurrency_s"): zero,
        (Meter, "_largest_kv"): fixed(float(KV)),
        (Meter, "_largest_sequences"): fixed(1.0),
        (Meter, "demand"): coarse_field,
        (Meter, "fresh"): coarse_field,
        (Meter, "residence"): made(lambda: _average(STEP_S)),
        (Meter, "typical_tokens"): made(lambda: _average(1.0)),
        (Ticket, "admitted_at"): fixed(NOW),
        (PendingRequest, "arrived_at"): fixed(NOW),
        (PendingRequest, "leaves_by"): past,
        (PendingRequest, "deadline"): past,
        (PendingRequest, "entered_at"): time_field(-2.0),
        (PendingRequest, "first_answer_at"): time_field(-2.0),
        (PendingRequest, "places_until"): fixed(-math.inf),
        (LeaseState, "peaks"): Field(_peaks, lambda stored: deque(stored, maxlen=4)),
        (LeaseState, "report"): no_report,
        (LeaseState, "fresh"): coarse_field,
        (LeaseState, "contended_until"): past,
        (LeaseState, "ask_again_at"): late,
        (LeaseState, "short_until"): late,
        (LeaseState, "pause_s"): fixed(STEP_S),
        (LeaseState, "sent"): Field(_sent, lambda stored: stored),
        (LeaseState, "answered_at"): time_field(-3 * STEP_S),
        (LeaseWaits, "_wakes_at"): late,
        (LeaseSync, "answered_at"): zero,
        (LeaseSync, "limits_age_s"): zero,
        (LeaseSync, "_under_way"): Field(_under_way, _live_under_way),
        (Driver, "_wakes_at"): late,
        (SmallSidecar, "wakes_at"): late,
        (SmallSidecar, "outbox"): made(list),
        (SmallSidecar, "broken"): fixed(""),
        (SmallSidecar, "sheds"): fixed(0),
    }
    for kind in (type(template.leases), Leases):
        fields |= {
            (kind, "paused_until"): time_field(-4.0),
            (kind, "expires_at"): past,
            (kind, "free_at"): fixed(-math.inf),
            (kind, "free"): fixed((0.0, 0.0, 0.0)),
            (kind, "round_trip_s"): Field(_round_trip, lambda stored: stored),
            (kind, "failures"): Field(lambda count, _now: min(count, 2), lambda stored: stored),
            (kind, "taken_ahead"): fixed(0),
        }
    for rule in [key for key in fields if key[0] is LeaseSync]:
        fields[type(template.sync), rule[1]] = fields[rule]
    atoms = frozenset(
        {
            Amount, Ask, Cost, Entitlement, EngineRoom, HolderRow, IdleTerms, Lease, LeaseRequest,
            LeaseSettings, Limit, Missing, PoolView, QueueSettings, Report,
        }
    )  # fmt: skip
    return Rules(fields, atoms)


def _no_waits() -> dict[Tier, WaitCounts]:
    return {tier: WaitCounts() for tier in Tier}
