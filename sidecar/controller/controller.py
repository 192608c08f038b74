"""The controller: who a request is, what it costs, whether it passes, and how it is settled.

Synchronous and without I/O: the protocol layer brings heads and bodies, and takes away a ``Passage`` or a
``Refusal``. All state that admission needs is here, replaced as a whole when the pool file changes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.controller.identity import MOST_KEYS, KeyRing, sent_keys
from sidecar.controller.stored_responses import Stored
from sidecar.dialects.bodies import MOST_UNPRICED, Malformed, Parsed, check_unpriced
from sidecar.dialects.fields import with_priority, without_priority
from sidecar.dialects.reported_usage import NoUsage
from sidecar.dialects.routes import Route, find, stored_id
from sidecar.engine.state import EngineState
from sidecar.proxy.heads import RequestHead
from sidecar.telemetry import Telemetry
from tokenpool.accounting.ledger import Account, Ledger, Ticket
from tokenpool.admission.preemption import Running, victims
from tokenpool.admission.queue import AdmissionQueue, Place, QueueSettings
from tokenpool.admission.rules import Shed, admit, hopeless
from tokenpool.amounts import Dimension
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE
from tokenpool.capacity.slo_controller import SloController
from tokenpool.entitlements import Entitlement, Pool, PoolFile, Tier
from tokenpool.leases.leases import Leases, Waiter
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Cost, Usage
from tokenpool.pricing.estimators import Average

log = logging.getLogger(__name__)

ENGINE_RETRY_S = 1.0
"""When to come back to an engine that is down: about how often it is looked at."""
LONGEST_SDK_WAIT_S = 60.0
"""Official clients ignore a longer wait and retry by their own clock: better told not to."""
PER_STEP = 50
"""Accounts that are made in one step while a pool file is prepared: 12 µs each."""
ENTERS_S = 0.25
"""For so long after a request inside its guarantee, or until its first token, no spot request is sent to wait
in the engine. Each is on a connection of its own: one that was sent 1 ms later was read first, had the slot
that was made free, and left the other a P99 of 3.6 times alone (2 of 3 seeds; without, 1.3)."""
JITTER = 0.25
"""A shed's wait is lengthened by up to this share, so that those shed together do not return together."""


PRIORITY_GUARANTEED, PRIORITY_SHARED, PRIORITY_SPOT = 0, 10, 20
"""What is sent to the engine: inside a guarantee, elastic and bursts, spot. Lower is sooner, as with vLLM."""


class EnginePriority(StrEnum):
    """Whether requests carry a priority for the engine."""

    AUTO = "auto"
    """Unless the engine refuses it. It may ignore the field: requests are admitted as if it did."""
    ON = "on"
    """Always: the engine is known to schedule by priority."""
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the sidecar's own."""

    reason: Reason
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    account: Account | None = None


class PendingRequest:
    """A priced request that waits, for a larger lease or in the queue. Decided once, or given up."""

    __slots__ = (
        "_controller",
        "account",
        "cost",
        "is_counted",
        "on_decided",
        "parsed",
        "place",
        "started_at",
        "waiter",
    )

    def __init__(
        self, controller: Controller, account: Account, parsed: Parsed, cost: Cost, started_at: float
    ) -> None:
        self._controller = controller
        self.account = account
        self.parsed = parsed
        self.cost = cost
        self.started_at = started_at
        self.is_counted = False
        """Whether its offer was counted as demand."""
        self.waiter: Waiter | None = None
        self.place: Place | None = None
        self.on_decided: Callable[[AdmittedRequest | Refusal], None] = _nobody_waits

    def decide(self) -> None:
        """The wait for a lease is over, for better or worse."""
        decided = self._controller.decide(self)
        if decided is not None:
            self._tell(decided)

    def try_now(self, is_last: bool) -> bool:
        """In the queue: decide, if it fits or must; returns whether that was the end of the wait there."""
        decided = self._controller.decide(self, is_last=is_last)
        if decided is None:
            return self.waiter is not None
        self._tell(decided)
        return True

    def _tell(self, decided: AdmittedRequest | Refusal) -> None:
        tell = self.on_decided
        self.end()
        tell(decided)

    def end(self) -> None:
        """Nobody waits any more. These are circles, which only the garbage collector would undo."""
        self.on_decided, self.place, self.waiter = _nobody_waits, None, None


def _nobody_waits(decided: AdmittedRequest | Refusal) -> None:
    raise AssertionError("a request was decided before anyone waited for it")


class AdmittedRequest:
    """A request that may go to the engine, and what is to be settled afterwards."""

    __slots__ = (
        "account",
        "body",
        "has_begun",
        "hides_usage",
        "is_guaranteed",
        "on_preempted",
        "priority",
        "started_at",
        "streams",
        "ticket",
    )

    def __init__(
        self,
        body: bytes,
        started_at: float,
        account: Account | None = None,
        ticket: Ticket | None = None,
        streams: bool = False,
        hides_usage: bool = False,
    ) -> None:
        self.body = body
        self.started_at = started_at
        self.account = account
        self.ticket = ticket
        self.streams = streams
        self.hides_usage = hides_usage
        self.has_begun = False
        """Whether its first token has come."""
        self.is_guaranteed = False
        """Whether it was inside its entitlement's guarantee when it was admitted."""
        self.priority: int | None = None
        """The priority that the body carries, where the engine may refuse it."""
        self.on_preempted: Callable[[], None] | None = None
        """Ends the request at once, for the sake of a guarantee; set by whoever relays it."""


@dataclass(frozen=True, slots=True)
class Policies:
    """What is done for guarantees beyond admission; each can be switched off."""

    queue: QueueSettings = QueueSettings()
    engine_priority: EnginePriority = EnginePriority.AUTO
    slo_feedback: bool = True
    """Whether slots are reserved while guaranteed requests miss their SLO."""


class Prepared:
    """The accounts of a pool file that is not in force yet."""

    __slots__ = ("accounts", "changed", "epoch", "file")

    def __init__(
        self,
        file: PoolFile,
        epoch: int,
        accounts: dict[str, Account],
        changed: list[tuple[Account, Entitlement]],
    ) -> None:
        self.file = file
        self.epoch = epoch
        """Of the controller while they were gathered: they are worth nothing after another change."""
        self.accounts = accounts
        self.changed = changed


class Controller:
    """Admission for one sidecar."""

    def __init__(
        self,
        file: PoolFile,
        pool: Pool,
        keys: KeyRing,
        telemetry: Telemetry,
        engine: EngineState,
        *,
        identity_header: str | None = None,
        policies: Policies = Policies(),
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.ledger = Ledger()
        self.engine = engine
        self.accounts: dict[str, Account] = {}
        self.is_draining = False
        self.epoch = 0
        """Rises with each pool file: what was found out about a head holds for one epoch."""
        self.tokens_per_event = Average(1.0, share=0.05)
        """Output tokens per streamed event, to settle streams that end before their usage comes."""
        self.leases: Leases | None = None
        """What is held of limits that are shared with other sidecars; ``None`` for a lone one."""
        self.on_message_due: Callable[[], None] = lambda: None
        """Is told when there is something to say to the lease store at once."""
        self.journal: Callable[[dict[str, object]], None] | None = None
        """Is told of every request that ends, if the operator wants a line for each."""
        self.policies = policies
        self.queue = AdmissionQueue(policies.queue)
        self.stored = Stored()
        self.on_queue_changed: Callable[[], None] = lambda: None
        """Is told when the queue's earliest deadline may have changed."""
        self.slo_controller = SloController(clock())
        self.priorities: Counter[int] = Counter()
        """Requests that went to the engine, by priority."""
        self.priorities_refused = 0
        """Requests that were sent again without."""
        self._spot: dict[AdmittedRequest, None] = {}
        """Spot requests in flight."""
        self._not_begun: dict[AdmittedRequest, None] = {}
        """Requests inside their guarantee without a first token yet: the engine may still queue them."""
        self._enters: AdmittedRequest | None = None
        """The last request inside its guarantee, while the engine may not have begun with it."""
        self._restarts_seen = engine.restarts
        self._clock = clock
        self._random = random
        self._telemetry = telemetry
        self._pricing = pool.pricing
        self._prepared: Prepared | None = None
        self._identity_header = identity_header.lower().encode() if identity_header else None
        self.configure(file, pool, keys)

    def prepare(self, file: PoolFile, pool: Pool) -> Iterator[None]:
        """Make the accounts of a pool file that is about to be put in force, in steps of ``PER_STEP``.

        Nothing changes for requests meanwhile.
        """
        entitlements, now = file.entitlements_of(pool.name), self._clock()
        made: dict[str, Account] = {}
        changed: list[tuple[Account, Entitlement]] = []
        epoch = self.epoch
        for first in range(0, len(entitlements), PER_STEP):
            self._gather(entitlements[first : first + PER_STEP], pool, now, made, changed)
            yield
        self._prepared = Prepared(file, epoch, made, changed)

    def _gather(
        self,
        entitlements: Sequence[Entitlement],
        pool: Pool,
        now: float,
        made: dict[str, Account],
        changed: list[tuple[Account, Entitlement]],
    ) -> None:
        """Find or make the account of each entitlement, and note which of those found are to change."""
        known, is_repriced = self.accounts, pool.pricing != self._pricing
        for entitlement in entitlements:
            name = entitlement.name
            account = known.get(name)
            if account is None:
                account = Account(entitlement, pool.pricing, now)
            elif is_repriced or account.entitlement != entitlement:
                changed.append((account, entitlement))
            made[name] = account

    def configure(self, file: PoolFile, pool: Pool, keys: KeyRing) -> None:
        """Put a pool file in force. Accounts live on by name; requests in flight settle as they began."""
        now, prepared = self._clock(), self._prepared
        if prepared is None or prepared.file is not file or prepared.epoch != self.epoch:
            prepared = Prepared(file, self.epoch, {}, [])
            self._gather(file.entitlements_of(pool.name), pool, now, prepared.accounts, prepared.changed)
        self._prepared = None
        self.epoch += 1
        for account, entitlement in prepared.changed:
            account.entitlement = entitlement
            self.ledger.retier(account)
            account.pricer.reprice(entitlement, pool.pricing)
        for name in self.accounts.keys() - prepared.accounts.keys():
            self.ledger.active.expel(self.accounts[name])
        self.accounts = prepared.accounts
        self._pricing = pool.pricing
        self.pool = pool
        self._keys = keys
        self._anonymous = self.accounts.get(file.anonymous) if file.anonymous else None
        self._telemetry.follow(self.accounts, self.ledger)
        if self.leases is not None:
            self.leases.follow(self.accounts, now)

    def refresh(self, account: Account, now: float) -> None:
        """Bring the limits of an idle account up to date, before they are shown."""
        self.ledger.active.refresh(account, now)
        if self.leases is not None:
            self.leases.refresh(account)

    # --- before the body: what a head alone can decide ---

    def authorize(self, head: RequestHead) -> Refusal | tuple[Route, Account | None]:
        """The route and the caller of a request, or why there is no point in reading its body."""
        route = head.route = find(head.path)
        if route is None:
            return Refusal(
                Reason.UNKNOWN_ROUTE,
                f"{_printable(head.method)} {_printable(head.path)} is not served here",
            )
        if head.method not in route.methods:
            allowed = ", ".join(method.decode() for method in route.methods)
            return Refusal(
                Reason.METHOD_NOT_ALLOWED,
                f"{_printable(head.method)} is not allowed on {_printable(head.path)}; allowed: {allowed}",
            )
        draining = self.draining(None)
        if draining is not None:
            return draining
        if route.is_public or head.method == b"OPTIONS":
            return route, None
        account = self._identify(head)
        if isinstance(account, Refusal):
            return account
        if route.names_stored:
            name = stored_id(head.path)
            if name is not None and self.stored.tokens(name, account.entitlement.name) is None:
                return _no_response(name, account)
        return route, account

    def draining(self, account: Account | None) -> Refusal | None:
        """What a request is told that comes too late."""
        if not self.is_draining:
            return None
        return Refusal(
            Reason.DRAINING,
            "this replica is shutting down; another one will answer",
            retry_after_s=ENGINE_RETRY_S,
            account=account,
        )

    def _identify(self, head: RequestHead) -> Account | Refusal:
        if self._identity_header is not None:
            names = head.all(self._identity_header)
            if names:
                return self._named(names)
        keys, has_other = sent_keys(head.headers)
        if not keys:
            if self._anonymous is not None:
                return self._anonymous
            sent = "the Authorization header holds" if has_other else "the request has"
            return Refusal(Reason.UNKNOWN_KEY, f"{sent} no API key; send it as 'Authorization: Bearer KEY'")
        if len(keys) > MOST_KEYS:
            return Refusal(
                Reason.UNKNOWN_KEY, f"more than {MOST_KEYS} different API keys were sent; send one"
            )
        owners = {name for name in map(self._keys.find, keys) if name is not None and name in self.accounts}
        if not owners:
            return Refusal(Reason.UNKNOWN_KEY, "this API key belongs to no entitlement of this pool")
        if len(owners) > 1:
            return Refusal(Reason.UNKNOWN_KEY, "API keys of different entitlements were sent; send one")
        return self.accounts[owners.pop()]

    def _named(self, names: list[bytes]) -> Account | Refusal:
        account = self.accounts.get(names[0].decode("latin-1"))
        if len(names) > 1 or account is None:
            return Refusal(
                Reason.UNKNOWN_KEY,
                "the gateway's identity header names no entitlement of this pool",
            )
        return account

    # --- the whole request ---

    def open(
        self, route: Route, account: Account | None, body: bytes
    ) -> AdmittedRequest | Refusal | PendingRequest:
        """Price a request and decide, or have it wait. an admitted request must be closed exactly once."""
        started_at = self._clock()
        if not self.engine.is_up:
            return Refusal(
                Reason.ENGINE_DOWN,
                "the engine behind this proxy does not answer; it is looked for again and again",
                retry_after_s=ENGINE_RETRY_S,
                account=account,
            )
        if route.parse is None or account is None:
            return AdmittedRequest(body, started_at, account)
        try:
            parsed = route.parse(body)
            if len(body) > MOST_UNPRICED:
                check_unpriced(parsed)
        except Malformed as error:
            return Refusal(Reason.MALFORMED, str(error), error.param, account=account)
        if parsed.model is not None and not self.pool.serves(parsed.model):
            message = f"The model `{parsed.model}` does not exist."
            return Refusal(Reason.UNKNOWN_MODEL, message, "model", account=account)
        if parsed.continues is not None or parsed.called is not None:
            found = self._with_stored(account, parsed)
            if isinstance(found, Refusal):
                return found
            parsed = found
        return self._admit(account, parsed, started_at)

    def _with_stored(self, account: Account, parsed: Parsed) -> Parsed | Refusal:
        """A request with what its stored responses add to its prompt; they must be its own."""
        name = account.entitlement.name
        if parsed.called is not None and self.stored.is_taken(parsed.called, name):
            message = f"there is a response with the id '{parsed.called}'; choose another request_id, or none"
            return Refusal(Reason.MALFORMED, message, "request_id", account=account)
        if parsed.continues is None:
            return parsed
        tokens = self.stored.tokens(parsed.continues, name)
        if tokens is None:
            return _no_response(parsed.continues, account)
        return parsed._replace(ask=parsed.ask._replace(token_ids=tokens))

    def _admit(
        self, account: Account, parsed: Parsed, now: float
    ) -> AdmittedRequest | Refusal | PendingRequest:
        cost = account.pricer.price(parsed.ask, self.engine.shape)
        if not account.is_active:
            self.ledger.active.touch(account, now)
        leases = self.leases
        if leases is not None and not leases.covers(account, cost, now):
            is_retry = account.retries.is_retry(parsed.body, now)
            shed = hopeless(self.ledger, account, cost, self.engine.room, is_retry=is_retry)
            pending = PendingRequest(self, account, parsed, cost, now)
            if shed is not None:
                pending.is_counted = True
                return self._wait_or_shed(pending, shed, now)
            patience_s = self.queue.settings.patience(account)
            pending.waiter = leases.wait(account, cost, now, patience_s, pending.decide)
            if pending.waiter is not None:
                self.on_message_due()
                return pending
        elif self.queue.has_waiting(account):
            pending = PendingRequest(self, account, parsed, cost, now)
            if self._wait_in_queue(pending, None, now):
                return pending
        outcome = self._try(account, parsed, cost, now)
        if leases is not None and leases.has_something_to_say:
            self.on_message_due()  # what was taken ahead is reported
        if isinstance(outcome, AdmittedRequest):
            return outcome
        pending = PendingRequest(self, account, parsed, cost, now)
        pending.is_counted = True
        return self._wait_or_shed(pending, outcome, now)

    def _wait_or_shed(self, pending: PendingRequest, shed: Shed, now: float) -> PendingRequest | Refusal:
        if self._fits_in_a_moment(shed) and self._wait_in_queue(pending, shed, now):
            return pending
        return self._shed(pending.account, pending.parsed.body, shed, now)

    def _fits_in_a_moment(self, shed: Shed) -> bool:
        """Shared limits have a wait of their own, for a lease; what the engine lacks is waited for here."""
        if shed.reason is Reason.NEVER_FITS:
            return False
        return self.leases is None or shed.reason is Reason.ENGINE_FULL

    def _wait_in_queue(self, pending: PendingRequest, shed: Shed | None, now: float) -> bool:
        """Have a request wait in the queue, if it may: for room, or behind others of its entitlement."""
        queue, account = self.queue, pending.account
        needs_engine = shed is not None and shed.reason is Reason.ENGINE_FULL
        expected_s = shed.expected_s if shed is not None else 0.0
        if not queue.waits(account, expected_s, needs_engine=needs_engine):
            return False
        pending.place = queue.enter(
            account,
            now,
            pending.try_now,
            came_at=pending.started_at,
            needs_engine=needs_engine,
            retry_in_s=_retry_in_s(shed),
        )
        self.on_queue_changed()
        return True

    def serve_queue(self, ended: Account | None = None) -> None:
        """Room may be free, or a deadline over. ``ended`` is whose request ended, if nothing else changed."""
        if len(self.queue):
            self.queue.serve(self._clock(), ended)
            self.on_queue_changed()

    def withdraw(self, pending: PendingRequest) -> None:
        """A request waits no longer, undecided."""
        if pending.place is not None:
            self.queue.leave(pending.place, self._clock())
        if self.leases is not None and pending.waiter is not None:
            self.leases.give_up(pending.waiter)
        pending.end()

    def give_up(self, pending: PendingRequest) -> None:
        """The client of a request that waits is gone."""
        self.withdraw(pending)
        self._telemetry.ended(pending.account, Ending.CLIENT_GONE)

    def decide(self, pending: PendingRequest, *, is_last: bool = False) -> AdmittedRequest | Refusal | None:
        """Decide a request that waited; ``None`` where it waits on, in the queue or for a larger lease."""
        account, parsed = pending.account, pending.parsed
        pending.waiter = None
        is_counted, pending.is_counted = pending.is_counted, True
        outcome = self._try(account, parsed, pending.cost, pending.started_at, is_counted=is_counted)
        if isinstance(outcome, AdmittedRequest):
            return outcome
        now = self._clock()
        may_wait = not is_last and self._fits_in_a_moment(outcome)
        place = pending.place
        if may_wait and place is not None:
            place.needs_engine = outcome.reason is Reason.ENGINE_FULL
            place.retry_in_s = _retry_in_s(outcome)
            return None
        if may_wait and self._wait_in_queue(pending, outcome, now):
            return None
        if place is not None and not is_last and self._asks_store(pending, outcome, now):
            return None
        return self._shed(account, parsed.body, outcome, now)

    def _asks_store(self, pending: PendingRequest, shed: Shed, now: float) -> bool:
        """Have a request that waited for the engine wait for a larger lease, if that is what it lacks now."""
        leases, account = self.leases, pending.account
        if leases is None or shed.reason in (Reason.ENGINE_FULL, Reason.NEVER_FITS):
            return False
        left_s = max(pending.started_at + self.queue.settings.patience(account) - now, 0.0)
        pending.waiter = leases.wait(account, pending.cost, now, left_s, pending.decide)
        if pending.waiter is None:
            return False
        pending.place = None  # the queue takes it out
        self.on_message_due()
        return True

    def _try(
        self, account: Account, parsed: Parsed, cost: Cost, started_at: float, *, is_counted: bool = False
    ) -> AdmittedRequest | Shed:
        """Decide a priced request now."""
        body, retries, room = parsed.body, account.retries, self.engine.room
        now = self._clock() if is_counted or self.leases is not None else started_at
        if room.preemptible_queue and account.is_preemptible and self._queue_is_closed(now):
            room = replace(room, preemptible_queue=0.0)
        is_retry = retries.is_retry(body, now)
        decision = admit(
            self.ledger, account, parsed.ask, cost, room, now, is_retry=is_retry, is_counted=is_counted
        )
        if isinstance(decision, Shed):
            return decision
        if is_retry:
            retries.admitted(body)
        admitted = AdmittedRequest(
            body, started_at, account, decision.ticket, parsed.streams, parsed.hides_usage
        )
        admitted.is_guaranteed = account.is_inside_guarantee()
        if parsed.takes_priority and self.policies.engine_priority is not EnginePriority.OFF:
            self._prioritise(admitted, parsed)
        if account.is_spot:
            self._spot[admitted] = None
        elif admitted.is_guaranteed:
            self._enters = admitted
            self._not_begun[admitted] = None
            if self._spot:
                self._make_room()
        return admitted

    def _queue_is_closed(self, now: float) -> bool:
        """Whether no preemptible request may wait in the engine: it would pass those that wait for room here,
        or a guaranteed one that is on its way."""
        enters = self._enters
        if enters is not None:
            ticket = enters.ticket
            if ticket is not None and not enters.has_begun and now - ticket.admitted_at < ENTERS_S:
                return True
            self._enters = None
        return self.queue.needs_engine

    def _prioritise(self, admitted: AdmittedRequest, parsed: Parsed) -> None:
        """Write the request's priority into its body.

        The field is the sidecar's: a client's own is replaced, and removed where the engine takes none, so
        that a request means the same on every engine.
        """
        engine, is_auto = self.engine, self.policies.engine_priority is EnginePriority.AUTO
        if is_auto and (engine.takes_priority is False or not engine.is_vllm):
            if parsed.has_priority:
                admitted.body = without_priority(parsed.body, is_ours=False)
            return
        priority = PRIORITY_SPOT
        if admitted.account is not None and not admitted.account.is_spot:
            priority = PRIORITY_GUARANTEED if admitted.is_guaranteed else PRIORITY_SHARED
        self.priorities[priority] += 1
        admitted.body = with_priority(parsed, priority)
        if is_auto:
            admitted.priority = priority

    def priority_refused(self, admitted: AdmittedRequest) -> None:
        """The engine refused the request for its priority: it is to be sent again without."""
        admitted.body, admitted.priority = without_priority(admitted.body, is_ours=True), None
        self.priorities_refused += 1

    def _make_room(self) -> None:
        """End as many spot requests as the engine has too many for a request that was just admitted."""
        ledger, room = self.ledger, self.engine.room
        sequences = ledger.concurrency_in_use + room.foreign_sequences - room.proven_slots
        kv_tokens = ledger.kv_in_use + room.foreign_kv_tokens - room.kv_tokens
        if sequences > 0 or kv_tokens > 0:
            self._preempt(self._preemptible(), sequences, kv_tokens)

    def _end_surplus(self) -> None:
        """End spot requests if the engine has fewer slots than assumed, for guaranteed ones that may wait.

        Only this sidecar's own requests count: on the engine's page, ended ones are shown for a while. No
        more are ended than may wait before a guaranteed request, and only once for each of those.
        """
        surplus = self.ledger.concurrency_in_use - self.engine.room.slots
        if surplus <= PREEMPTIBLE_QUEUE:
            return
        running = self._preemptible()
        waiting = sum(request.sequences for _, request in running if not request.has_begun)
        at_most = sum(request.sequences for _, request in running)
        sequences = min(surplus, waiting + len(self._not_begun), at_most)
        self._not_begun.clear()
        self._preempt(running, sequences, 0)

    def _preemptible(self) -> list[tuple[AdmittedRequest, Running]]:
        """The requests in flight that may be ended."""
        return [
            (admitted, _running(admitted, admitted.ticket))
            for admitted in self._spot
            if admitted.ticket is not None and admitted.ticket.account.is_preemptible
        ]

    def _preempt(
        self, running: Sequence[tuple[AdmittedRequest, Running]], sequences: float, kv_tokens: float
    ) -> None:
        for admitted, _ in victims(running, sequences, kv_tokens):
            if admitted.on_preempted is not None:
                admitted.on_preempted()

    def _shed(self, account: Account, body: bytes, shed: Shed, now: float) -> Refusal:
        if shed.reason is not Reason.NEVER_FITS:
            account.retries.shed(body, now)
        if shed.reason is Reason.TOKENS_PER_SECOND:
            self.engine.lacked_throughput()
        elif shed.dimension is Dimension.CONCURRENCY:
            self.engine.lacked_slots()
        return self._refusal(account, shed)

    def _refusal(self, account: Account, shed: Shed) -> Refusal:
        name = account.entitlement.name
        if shed.reason is Reason.NEVER_FITS:
            message = (
                f"entitlement {name!r}: this request needs {shed.cost:.0f} {shed.dimension}, but"
                f" can never have more than {shed.limit:.0f}; make it smaller (fewer sequences, a"
                " shorter prompt or output bound) or ask for a higher ceiling"
            )
            return Refusal(shed.reason, message, account=account)
        wait = shed.retry_after_s * (1 + JITTER * self._random())
        whose = "the engine" if shed.reason is Reason.ENGINE_FULL else f"entitlement {name!r}"
        use = (
            f"{shed.in_use:.0f} tokens spent ahead"
            if shed.dimension is Dimension.TOKENS_PER_SECOND
            else f"in use {shed.in_use:.0f}"
        )
        message = (
            f"entitlement {name!r} shed on {shed.dimension}: limit of {whose} {shed.limit:.0f},"
            f" {use}, cost {shed.cost:.0f}; come back in {wait:.2f} s"
        )
        return Refusal(shed.reason, message, retry_after_s=wait, account=account)

    # --- while it runs, and its end ---

    def first_token(self, admitted: AdmittedRequest, seconds: float) -> None:
        """The first output of an answer came so long after the request."""
        account = admitted.account
        admitted.has_begun = True
        self._not_begun.pop(admitted, None)
        self._telemetry.first_token(account, seconds)
        if admitted.is_guaranteed and admitted.streams and account is not None and self.policies.slo_feedback:
            promised = account.entitlement.slo.ttft_ms
            if promised is not None and account.entitlement.tier is Tier.GUARANTEED:
                self.slo_controller.observe(seconds, promised / 1000)

    def engine_changed(self, now: float) -> None:
        """The engine was polled: reserve slots by its SLO, end surplus spot requests, serve the queue.

        ``now`` is seconds by the controller's clock.
        """
        engine = self.engine
        if engine.restarts != self._restarts_seen:
            self._restarts_seen = engine.restarts
            for account in self.accounts.values():  # its prefix cache is empty
                account.pricer.forget_cache()
        if self.policies.slo_feedback:
            engine.reserve(self.slo_controller.judge(engine.room.slots, now))
        if self._spot and self._not_begun:
            self._end_surplus()
        self.serve_queue()

    def relayed(self, admitted: AdmittedRequest, events: int) -> int:
        """A stream has relayed so many events: grow the reservation where it outgrows it.

        Returns the number of events at which to ask again.
        """
        ticket = admitted.ticket
        if ticket is None:
            return events + 1
        per_event = max(self.tokens_per_event.value, 0.01)
        tokens = round(events * per_event)
        if tokens >= ticket.output_held:
            block = self.engine.shape.block_size
            self.ledger.extend(ticket, tokens + block, block, self._clock())
        return max(int(ticket.output_held / per_event), events + 1)

    def close(
        self,
        admitted: AdmittedRequest,
        ending: Ending,
        usage: Usage | None,
        events: int | None,
        *,
        spent: bool,
        unreported: int = 0,
        no_usage: NoUsage = NoUsage.MISSING,
        stored: str | None = None,
    ) -> None:
        """Settle an admitted request. ``usage`` is the engine's report; ``spent`` whether it computed.

        ``events`` were relayed, ``None`` where they were not counted; ``unreported`` of them came after the
        report. ``no_usage`` is why there is no report, ``stored`` the name by which the engine may have
        stored the answer.
        """
        admitted.on_preempted = None
        ticket = admitted.ticket
        if ticket is None:
            self._telemetry.ended(admitted.account, ending)
            self._write_down(admitted.account, ending, admitted.started_at, None)
            return
        admitted.ticket = None
        self._spot.pop(admitted, None)
        self._not_begun.pop(admitted, None)
        if admitted is self._enters:
            self._enters = None
        reported = usage is not None
        if stored is not None and usage is not None:
            tokens = usage.input_tokens + usage.output_tokens
            self.stored.remember(stored, ticket.account.entitlement.name, tokens)
        if usage is None:
            usage = self._guess(ticket, events, ending) if spent else Usage(0, 0)
        elif unreported:
            # The report is of the stream's beginning: a Messages stream that was cut, or lost its end.
            output = usage.output_tokens + round(unreported * self.tokens_per_event.value)
            usage = usage._replace(output_tokens=output)
            reported = ending is not Ending.FINISHED
        elif ending is Ending.FINISHED and events is not None and events > 2:
            self.tokens_per_event.observe(usage.output_tokens / events)
        if ending is Ending.FINISHED and spent and not reported:
            self._telemetry.answered_without_usage(ticket.account, no_usage)
        now = self._clock()
        self.ledger.settle(ticket, usage, ending, now, reported=reported)
        if self.leases is not None and self.leases.ended(ticket.account, now):
            self.on_message_due()
        self._telemetry.settled(ticket, ending, usage, reported=reported)
        self.serve_queue(ticket.account)
        if self.journal is not None:
            self._write_down(ticket.account, ending, admitted.started_at, usage)

    def _guess(self, ticket: Ticket, events: int | None, ending: Ending) -> Usage:
        """What was spent where the engine did not report it: the prompt, and the output that was relayed."""
        if events is not None:
            output = round(events * self.tokens_per_event.value)
        else:
            output = ticket.cost.output_tokens if ending is Ending.FINISHED else 0
        return ticket.account.pricer.spent_so_far(ticket.cost, output)

    def metrics(self) -> Iterator[Metric]:
        """What is done for guarantees beyond admission, for Prometheus."""
        yield CounterMetricFamily(
            "tokenpool_queue_waits", "Requests that waited in the admission queue.", value=self.queue.waited
        )
        yield CounterMetricFamily(
            "tokenpool_queue_wait_seconds",
            "The time that they waited in the admission queue.",
            value=self.queue.waited_s,
        )
        yield GaugeMetricFamily(
            "tokenpool_slots_reserved",
            "Slots kept from spot and bursts while guaranteed requests miss their SLO.",
            value=self.slo_controller.reserved_slots,
        )
        sent = CounterMetricFamily(
            "tokenpool_engine_priority", "Requests sent with a priority.", labels=("priority",)
        )
        for priority in (PRIORITY_GUARANTEED, PRIORITY_SHARED, PRIORITY_SPOT):
            sent.add_metric((str(priority),), self.priorities[priority])
        yield sent
        yield CounterMetricFamily(
            "tokenpool_engine_priority_refused",
            "Requests that the engine refused for their priority and that were sent again without.",
            value=self.priorities_refused,
        )

    def refused(self, refusal: Refusal) -> None:
        """Count an answer of the sidecar's own."""
        self._telemetry.refused(refusal.account, refusal.reason)
        if self.journal is not None:
            self._write_down(refusal.account, refusal.reason, self._clock(), None)

    def _write_down(
        self, account: Account | None, outcome: Ending | Reason, started_at: float, usage: Usage | None
    ) -> None:
        """Tell the journal: who, how it ended, how long it took, what it spent. Never what was said."""
        if self.journal is None:
            return
        entry: dict[str, object] = {
            "entitlement": account.entitlement.name if account is not None else None,
            "outcome": outcome.value,
            "seconds": round(self._clock() - started_at, 6),
        }
        if usage is not None:
            entry |= usage._asdict()
        self.journal(entry)


def _running(admitted: AdmittedRequest, ticket: Ticket) -> Running:
    """A spot request as it may be chosen to be ended. What does not stream may hold a slot at any time."""
    has_begun = admitted.has_begun or not admitted.streams
    return Running(ticket.admitted_at, ticket.cost.sequences, ticket.kv_held, has_begun)


def _retry_in_s(shed: Shed | None) -> float:
    """When time alone may make the request fit: only a bucket fills by itself."""
    return shed.expected_s if shed is not None and shed.reason is Reason.TOKENS_PER_SECOND else math.inf


def _no_response(name: str, account: Account) -> Refusal:
    # The engine's own words.
    return Refusal(
        Reason.UNKNOWN_RESPONSE, f"Response with id '{name}' not found.", "response_id", account=account
    )


def _printable(text: bytes) -> str:
    """Client bytes for a message: short, and nothing but printable ASCII."""
    shown = text[:100].decode("ascii", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)
