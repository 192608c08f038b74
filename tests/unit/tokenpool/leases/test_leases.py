"""Leases and the exchange of messages, with the reference lease store at the other end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from tests.support.domain_builders import ASK, ROOM, cost, entitlement
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed, admit
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Limit, Message, Push
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.settings import LeaseSettings, Mode
from tokenpool.leases.sync import PER_STEP, LeaseSync
from tokenpool.leases.waits import ANSWER_S
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.idle import IdleTerms
from tokenpool.pricing.cost import Cost, Usage

SETTINGS = LeaseSettings()
OPEN = SETTINGS.lifetime_s
LIMITS = {"a": Limit(1000, 10_000, 4, 1000, assured_kv_tokens=5000, assured_concurrency=2)}
ONE = cost(tokens=100, kv_tokens=112)
LONGEST_WAIT_S = 0.01
TERMS = IdleTerms((1000.0, 10_000.0, 4.0), (1000.0, 10_000.0, 4.0), others_want=True)


class Sidecar:
    """Leases, their exchange with the store, and the requests that wait for them."""

    def __init__(
        self, name: str, lease_store: ReferenceLeaseStore, tenant: Entitlement | None = None, count: int = 2
    ) -> None:
        self.lease_store = lease_store
        self.queue = AdmissionQueue(QueueSettings())
        self.leases = Leases(SETTINGS, count, self.queue)
        self.sync = LeaseSync(name, self.leases)
        self.decisions: dict[PendingRequest, Callable[[], object]] = {}
        """The action at the end of each pending request's wait."""
        self.ledger = Ledger()
        self.account = Account(tenant or entitlement(), Pricing(), 0.0)
        self.sync.follow({"a": self.account}, 0.0)
        self.leases.learn(LIMITS, TERMS, 0.0)
        self.sent: Message | None = None
        self.pushes: list[Push] = []
        """The notifications that its messages caused."""
        self.room = ROOM

    def send(self, now: float, *, whole: bool = True) -> Message:
        """The next message, after the end of an interval; with ``whole=False``, within an interval."""
        if whole:
            deque(self.sync.tick_steps(now), maxlen=0)
        self.sent = message = self.sync.next_message(now)
        assert message is not None
        return message

    def fail(self, now: float) -> None:
        """The message that was sent last is not answered."""
        assert self.sent is not None
        self.sync.failed(self.sent, now)
        self.decide_due(now)

    def exchange_all(self, now: float, *, whole: bool = True) -> Answer:
        """Exchange all due messages; returns the last answer."""
        message: Message | None = self.send(now, whole=whole)
        while message is not None:
            answer, pushes = self.lease_store.exchange(message, now)
            self.pushes += pushes
            self.answered(message, answer, now)
            message = self.sync.next_message(now)
        return answer

    def answered(self, message: Message, answer: Answer, now: float) -> None:
        """The lease store answered. Decide the requests that are due."""
        self.sync.answered(message, answer, now)
        self.decide_due(now)

    def wake(self, now: float) -> None:
        """Deadlines may have passed."""
        self.leases.wake(now)
        self.decide_due(now)

    def decide_due(self, now: float) -> None:
        """Decide the requests whose wait has ended, in order."""
        for pending in self.leases.due(now):
            self.decisions.pop(pending)()

    def wait(
        self,
        now: float,
        decide: Callable[[], object] = lambda: None,
        price: Cost = ONE,
        longest_wait_s: float = LONGEST_WAIT_S,
        account: Account | None = None,
    ) -> PendingRequest | None:
        pending = PendingRequest(account or self.account, ASK, price, now, longest_wait_s=longest_wait_s)
        if not self.leases.wait(pending, longest_wait_s, now):
            return None
        self.decisions[pending] = decide
        return pending

    def admit(self, now: float, price: Cost = ONE) -> Ticket | Shed:
        decision = admit(self.ledger, self.account, ASK, price, self.room, now)
        if isinstance(decision, Shed):
            return decision
        decision.uses_free_capacity = self.account.take_free_use()
        return decision

    def settle(self, ticket: Ticket, now: float) -> None:
        self.ledger.settle(ticket, Usage(50, 50), Ending.FINISHED, now)


@pytest.fixture
def lease_store() -> ReferenceLeaseStore:
    made = ReferenceLeaseStore(0.0, SETTINGS.lifetime_s)
    made.publish(LIMITS, TERMS, 1, 0.0)
    return made


def joined(lease_store: ReferenceLeaseStore, name: str = "s1", tenant: Entitlement | None = None) -> Sidecar:
    made = Sidecar(name, lease_store, tenant)
    made.exchange_all(0.1)
    made.exchange_all(OPEN)
    assert made.leases.mode is Mode.JOINED
    return made


def test_while_the_lease_store_is_closed_a_sidecar_uses_its_share(lease_store: ReferenceLeaseStore) -> None:
    made = Sidecar("s1", lease_store)
    made.exchange_all(0.1)
    assert made.leases.mode is Mode.JOINING
    # The lease store knows no other sidecar yet, but there may be two.
    assert made.leases.covers(made.account, ONE, 0.1)
    assert made.account.limit.concurrency == 2
    made.leases.sidecars = 3
    made.leases.learn(LIMITS, TERMS, 0.2)
    assert made.account.limit.concurrency == 2  # ceil(4 / 3)
    assert made.leases.covers(made.account, ONE, 0.2)


def test_a_new_sidecar_holds_nothing_until_the_lease_store_answers_or_fails(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = Sidecar("s1", lease_store)
    assert not made.leases.covers(made.account, ONE, 0.0)
    decided: list[Ticket | Shed] = []
    assert made.wait(0.0, lambda: decided.append(made.admit(0.1)))
    made.send(0.0)
    made.fail(0.1)
    assert made.leases.mode is Mode.CUT_OFF
    assert isinstance(decided[0], Ticket)


def test_an_empty_lease_store_does_not_replace_known_limits(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    made.leases.learn({}, IdleTerms(), OPEN)
    made.send(OPEN)
    made.fail(OPEN + 0.5)
    made.leases.expire(OPEN + 2)
    assert made.leases.covers(made.account, ONE, OPEN + 2)
    assert made.account.limit.concurrency == 4  # one sidecar: its share is the whole limit


def test_while_the_lease_store_is_closed_again_shares_stay_those_of_all_sidecars(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    made.leases.sidecars = 20
    empty = ReferenceLeaseStore(OPEN, SETTINGS.lifetime_s)
    made.lease_store = empty
    made.exchange_all(OPEN)
    assert made.leases.mode is Mode.JOINING
    assert made.leases.sidecars == 20
    assert made.leases.covers(made.account, ONE, OPEN)
    assert made.account.limit.concurrency == 1


def test_a_share_of_a_guarantee_leaves_room_for_uneven_spread_and_no_more(
    lease_store: ReferenceLeaseStore,
) -> None:
    guarantee = Amount(1000, 5000, 4)
    made = joined(lease_store, tenant=entitlement(tier=Tier.GUARANTEED, guarantee=guarantee))
    made.leases.sidecars = 20
    made.send(OPEN)
    made.fail(OPEN + 0.5)
    made.leases.expire(OPEN + 2)
    assert made.leases.covers(made.account, ONE, OPEN + 2)
    # 4 / 20 on average, and three standard deviations: not the whole guarantee twenty times.
    assert made.account.limit.concurrency == made.account.assured.concurrency == 2
    assert made.account.limit.tokens_per_second == 500
    assert made.account.limit.kv_tokens == 2500


def test_once_joined_an_idle_entitlement_holds_nothing_and_waits_for_a_lease(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    assert made.account.limit.concurrency == 0
    assert not made.leases.covers(made.account, ONE, OPEN)
    decided: list[Ticket | Shed] = []
    assert made.wait(OPEN, lambda: decided.append(made.admit(OPEN)))
    made.exchange_all(OPEN + 0.001, whole=False)
    assert isinstance(decided[0], Ticket)
    assert made.queue.lease_waits[Tier.ELASTIC].count == 1


def test_a_steady_demand_is_held_in_advance(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    made.wait(OPEN, lambda: made.admit(OPEN))
    made.exchange_all(OPEN, whole=False)
    made.exchange_all(OPEN + 0.25)
    assert made.account.limit.concurrency >= 2
    assert made.leases.covers(made.account, ONE, OPEN + 0.25)


def test_a_new_load_asks_for_more_each_time_but_for_no_more_than_is_free(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    small = cost(tokens=20, kv_tokens=16)
    asked = []
    for number in range(40):
        now = OPEN + 0.001 * number
        if not made.leases.covers(made.account, small, now):
            assert made.wait(now, price=small)
            said = made.send(now, whole=False)
            asked.append(said.lease_requests["a"].tokens_wanted)
            answer = lease_store.exchange(said, now).answer
            assert not answer.leases["a"].is_contended
            made.answered(said, answer, now)
        ticket = made.admit(now, small)
        assert isinstance(ticket, Ticket)
        made.ledger.settle(ticket, Usage(10, 10), Ending.FINISHED, now)
    assert len(asked) < 12  # not one message for each of the forty
    assert asked == sorted(asked)


def test_a_waiting_request_is_shed_if_no_capacity_is_free_in_time(lease_store: ReferenceLeaseStore) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store)
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN)
    assert other.account.concurrency_in_use == 4
    decided: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: decided.append(made.admit(OPEN)))
    made.exchange_all(OPEN + 0.001, whole=False)
    assert decided == []
    assert made.leases.waits.wakes_at() <= OPEN + 0.01
    made.wake(OPEN + 0.02)
    shed = decided[0]
    assert isinstance(shed, Shed)
    assert (shed.reason, shed.limit, shed.in_use) == (Reason.CONCURRENCY, 4, 4)  # the numbers are pool-wide


def test_a_reclaim_returns_unused_leases_and_the_waiting_request_gets_them(
    lease_store: ReferenceLeaseStore,
) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store)
    for _ in range(3):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN + 0.1)
    assert other.account.limit.concurrency == 4
    decided: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: decided.append(made.admit(OPEN + 0.1)))
    made.exchange_all(OPEN + 0.1, whole=False)
    (reclaim,) = made.pushes
    assert other.leases.reclaimed(reclaim.entitlement, OPEN + 0.1)
    other.exchange_all(OPEN + 0.1, whole=False)
    assert other.account.limit.concurrency == 3
    assert made.leases.freed("a")
    made.exchange_all(OPEN + 0.1, whole=False)
    assert isinstance(decided[0], Ticket)


def test_a_lease_is_given_up_before_a_message_that_does_not_ask_for_it_is_sent(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    made.wait(OPEN, lambda: made.admit(OPEN))
    made.exchange_all(OPEN, whole=False)
    made.exchange_all(OPEN + 0.1)
    held = made.account.limit.concurrency
    made.leases.reclaimed("a", OPEN + 0.2)
    made.send(OPEN + 0.2, whole=False)
    assert made.account.limit.concurrency == 1 < held
    made.fail(OPEN + 0.3)  # the message may have arrived or not


def test_leases_expire_earlier_here_than_in_the_lease_store(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    made.wait(OPEN, lambda: made.admit(OPEN))
    made.exchange_all(OPEN, whole=False)
    late = OPEN + SETTINGS.lifetime_s * 0.85
    assert not made.leases.covers(made.account, ONE, late)
    assert made.leases.mode is Mode.EXPIRED
    assert made.account.limit.concurrency == 0
    page = lease_store.record("a", late)
    assert page is not None
    assert page.held.concurrency >= 1


def test_without_answers_a_sidecar_uses_its_leases_and_then_its_share(
    lease_store: ReferenceLeaseStore,
) -> None:
    made, _ = joined(lease_store), joined(lease_store, "s2")
    made.exchange_all(OPEN)
    made.send(OPEN + 0.1)
    made.fail(OPEN + 0.6)
    assert made.leases.mode is Mode.JOINED
    assert made.wait(OPEN + 0.6, lambda: None) is None  # no request waits while messages fail
    assert made.leases.covers(made.account, ONE, OPEN + 5)
    assert made.leases.mode is Mode.CUT_OFF
    assert made.account.limit.concurrency == 2  # 4 / 2 sidecars
    made.exchange_all(OPEN + 5)
    assert made.leases.mode is Mode.JOINING  # the store had no message for a lifetime
    made.exchange_all(OPEN + 5.8)
    made.exchange_all(OPEN + 5 + SETTINGS.lifetime_s)
    assert made.leases.mode is Mode.JOINED


def test_waiting_requests_are_decided_when_the_lease_store_fails(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    decided: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: decided.append(made.admit(OPEN)))
    made.send(OPEN, whole=False)
    made.fail(OPEN + 0.5)
    assert len(decided) == 1


def test_a_request_inside_a_guarantee_is_admitted_when_the_lease_store_has_just_failed(
    lease_store: ReferenceLeaseStore,
) -> None:
    tenant = entitlement(
        tier=Tier.GUARANTEED, guarantee=Amount(1000, 5000, 3), ceiling=Amount(math.inf, math.inf, 4)
    )
    made = joined(lease_store, tenant=tenant)
    made.send(OPEN)
    made.fail(OPEN + 0.1)
    for _ in range(4):
        if not made.leases.covers(made.account, ONE, OPEN + 0.1):
            assert made.wait(OPEN + 0.1, lambda: None) is None
        assert isinstance(made.admit(OPEN + 0.1), Ticket)
    made.wait(OPEN + 0.1, lambda: None)
    assert isinstance(made.admit(OPEN + 0.1), Shed)  # beyond it


def test_spending_is_stated_as_a_total_and_a_refund_can_be_spent_again(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    tickets: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.exchange_all(OPEN, whole=False)
    assert made.account.bucket.level == pytest.approx(0)
    ticket = tickets[0]
    assert isinstance(ticket, Ticket)
    made.ledger.settle(ticket, Usage(10, 10), Ending.FINISHED, OPEN)
    assert made.account.bucket.level == pytest.approx(80)
    made.exchange_all(OPEN)
    page = lease_store.record("a", OPEN)
    assert page is not None
    assert page.level == pytest.approx(980)


def test_a_request_whose_client_left_does_not_wait(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    waiter = made.wait(OPEN, lambda: pytest.fail("the client has left"))
    assert waiter is not None
    made.queue.leave(waiter, OPEN)
    made.exchange_all(OPEN)
    made.wake(OPEN + 1)


def test_while_the_pool_is_short_not_every_new_request_sends_a_message(
    lease_store: ReferenceLeaseStore,
) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store)
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN)
    decided: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: decided.append(made.admit(OPEN)), longest_wait_s=0.0)
    made.exchange_all(OPEN, whole=False)
    assert isinstance(decided[0], Shed)
    now = OPEN + 0.001
    assert made.wait(now, longest_wait_s=0.0) is None  # spot: decided at once
    assert made.wait(now, longest_wait_s=1.0) is not None  # elastic: waits, and a later message asks for it
    assert made.sync.next_message(now) is None
    while not made.sync.is_message_due:  # a wake may be earlier than needed
        made.wake(made.leases.waits.wakes_at())
    assert made.sync.next_message(now + 0.2) is not None


def test_an_entitlement_whose_last_lease_was_returned_is_not_named_again(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    tickets: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.exchange_all(OPEN, whole=False)
    ticket = tickets[0]
    assert isinstance(ticket, Ticket)
    made.settle(ticket, OPEN + 0.1)
    now = OPEN + 0.2
    for _ in range(40):
        made.exchange_all(now)
        now += 0.25
    assert made.send(now).lease_requests == {}


def test_spot_uses_free_room_while_the_lease_store_fails(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store, tenant=entitlement(tier=Tier.SPOT))
    made.send(OPEN)
    made.fail(OPEN + 0.5)
    made.leases.expire(OPEN + 2)
    assert made.leases.covers(made.account, ONE, OPEN + 2)
    assert made.account.assured == Amount()
    for _ in range(8):
        assert isinstance(made.admit(OPEN + 2.01), Ticket)
    shed = made.admit(OPEN + 2.01)
    assert isinstance(shed, Shed)
    assert shed.reason is Reason.ENGINE_FULL


def test_the_last_message_states_all_usage_and_returns_all_leases(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    tickets: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: tickets.append(made.admit(OPEN)))
    made.exchange_all(OPEN, whole=False)
    assert isinstance(tickets[0], Ticket)
    made.settle(tickets[0], OPEN)
    lease_store.exchange(made.sync.last_message(), OPEN)
    page = lease_store.record("a", OPEN)
    assert page is not None
    assert page.held == Amount()
    assert page.level == pytest.approx(900)


@pytest.mark.parametrize("first", ["a failed message", "a new request", "a tick"])
def test_messages_that_fail_after_a_pause_refuse_no_request(
    lease_store: ReferenceLeaseStore, first: str
) -> None:
    made = joined(lease_store)
    decided: list[object] = []
    before = made.send(OPEN + 0.1)
    made.wait(
        OPEN + 0.2, lambda: decided.append(made.admit(OPEN + 4.3)), price=cost(tokens=100, kv_tokens=1000)
    )
    also = made.send(OPEN + 0.3)
    if first == "a new request":
        made.leases.covers(made.account, ONE, OPEN + 4.2)
    elif first == "a tick":
        deque(made.sync.tick_steps(OPEN + 4.2), maxlen=0)
    for message in (before, also):  # both were in flight during a pause of four seconds
        made.sent = message
        made.fail(OPEN + 4.2)
    assert made.leases.mode is Mode.EXPIRED
    assert made.leases.failures == 0
    assert decided == []

    made.exchange_all(OPEN + 4.3)
    assert isinstance(decided[0], Ticket)


def test_an_old_message_that_fails_does_not_end_leases_that_were_renewed(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    made.wait(OPEN + 0.1, price=cost(tokens=100, kv_tokens=1000))
    old = made.send(OPEN + 0.1, whole=False)
    for later in (0.5, 1.2, 1.9):
        made.exchange_all(OPEN + later)
    made.sent = old
    made.fail(OPEN + 2.0)  # a time limit of the store that is longer than a lifetime
    assert made.leases.mode is Mode.JOINED
    assert made.leases.failures == 1


def test_a_store_that_fails_after_a_pause_has_failed(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    decided: list[object] = []
    made.send(OPEN + 0.1)
    made.wait(OPEN + 0.2, lambda: decided.append(True))
    made.fail(OPEN + 4.2)
    made.send(OPEN + 4.3)
    made.fail(OPEN + 8.4)  # a time limit of the store that is longer than a lifetime
    assert made.leases.mode is Mode.CUT_OFF
    assert decided == [True]


def test_a_paused_sidecar_asks_again_before_it_decides_a_waiting_request(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    running: list[Ticket | Shed] = []
    for _ in range(4):
        made.wait(OPEN, lambda: running.append(made.admit(OPEN)))
    made.exchange_all(OPEN, whole=False)
    decided: list[Ticket | Shed] = []
    made.wait(OPEN, lambda: decided.append(made.admit(OPEN + 2)))
    first = running[0]
    assert isinstance(first, Ticket)
    made.settle(first, OPEN + 2)
    made.wake(OPEN + 2)
    assert made.leases.mode is Mode.EXPIRED
    assert decided == []
    assert made.leases.waits.wakes_at() == pytest.approx(OPEN + 2 + ANSWER_S)
    made.wake(OPEN + 2 + ANSWER_S)
    assert isinstance(decided[0], Shed)


GUARANTEED = entitlement(tier=Tier.GUARANTEED, guarantee=Amount(1000, 5000, 1))


def test_a_short_deadline_behind_a_long_one_holds(lease_store: ReferenceLeaseStore) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store, tenant=GUARANTEED)
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN)
    decided: list[str] = []
    made.wait(OPEN, lambda: decided.append("inside"))
    made.wait(OPEN, lambda: decided.append("beyond"), cost(kv_tokens=6000))
    made.exchange_all(OPEN, whole=False)
    made.wake(OPEN + LONGEST_WAIT_S)
    assert decided == ["beyond"]


def test_a_request_inside_a_guarantee_waits_although_bursts_were_refused(
    lease_store: ReferenceLeaseStore,
) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store, tenant=GUARANTEED)
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN)
    burst = cost(kv_tokens=6000)
    made.wait(OPEN, price=burst, longest_wait_s=0.0)
    made.exchange_all(OPEN, whole=False)
    assert made.wait(OPEN, price=burst, longest_wait_s=0.0) is None
    assert made.wait(OPEN, longest_wait_s=0.0) is not None


def test_a_decision_may_cause_the_next_request_at_once(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    second = Account(entitlement("b"), Pricing(), 0.0)
    made.sync.follow({"a": made.account, "b": second}, OPEN)
    waits: list[object] = []
    made.wait(
        OPEN,
        lambda: waits.append(made.wait(OPEN + ANSWER_S, longest_wait_s=0.0, account=second)),
    )
    made.wake(OPEN + ANSWER_S)
    assert waits[0] is not None


def test_after_a_pause_no_request_is_decided_before_an_answer(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    late = OPEN + 4
    decided: list[Ticket | Shed] = []
    assert not made.leases.covers(made.account, ONE, late)
    assert made.wait(late, lambda: decided.append(made.admit(late)))
    assert made.leases.mode is Mode.EXPIRED
    made.leases.ended(made.account, late)  # another request ends: this one may fit
    made.leases.has_room_here(1e6, 8)
    made.decide_due(late)
    assert decided == []
    made.exchange_all(late + 0.01)
    made.exchange_all(late + OPEN)
    assert isinstance(decided[0], Ticket)


def test_a_pause_of_the_sidecar_does_not_count_as_a_slow_lease_store(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    message = made.send(OPEN)
    late = OPEN + 4
    made.answered(message, lease_store.exchange(message, OPEN).answer, late)
    assert made.leases.mode is Mode.EXPIRED
    assert made.wait(late, lambda: None) is not None


def test_a_request_is_not_refused_before_the_lease_store_has_answered_for_it(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    decided: list[Ticket | Shed] = []
    assert made.wait(OPEN, lambda: decided.append(made.admit(OPEN + 0.4)), longest_wait_s=0.0)
    message = made.send(OPEN, whole=False)
    made.wake(OPEN + 0.4)
    assert decided == []
    made.answered(message, lease_store.exchange(message, OPEN + 0.2).answer, OPEN + 0.4)
    assert isinstance(decided[0], Ticket)


def test_a_request_does_not_wait_for_the_answer_to_another(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    second = Account(entitlement("b"), Pricing(), 0.0)
    made.sync.follow({"a": made.account, "b": second}, OPEN)
    made.wait(OPEN)
    first = made.send(OPEN, whole=False)
    made.wait(OPEN, longest_wait_s=0.0, account=second)
    made.wait(OPEN)
    other = made.sync.next_message(OPEN)
    assert other is not None
    assert (set(first.lease_requests), set(other.lease_requests)) == ({"a"}, {"b"})
    assert made.sync.next_message(OPEN) is None  # a is named again once the first is answered
    made.answered(first, lease_store.exchange(first, OPEN).answer, OPEN)
    again = made.sync.next_message(OPEN)
    assert again is not None
    assert set(again.lease_requests) == {"a"}


AMPLE = Limit(100_000, 1_000_000, 40, 100_000)
ROOMY = IdleTerms((100_000.0, 1_000_000.0, 40.0), (100_000.0, 1_000_000.0, 40.0), others_want=True)


def joined_with_ample_room(lease_store: ReferenceLeaseStore, count: int = 2) -> list[Sidecar]:
    """Joined sidecars that have each had one request, in a pool with ample room."""
    lease_store.publish({"a": AMPLE}, ROOMY, 1, OPEN)
    made = [joined(lease_store, f"s{number}") for number in range(count)]
    for sidecar in made:
        sidecar.room = EngineRoom(slots=64, kv_tokens=1e6)
        sidecar.wait(OPEN, lambda sidecar=sidecar: sidecar.settle(sidecar.admit(OPEN), OPEN))  # type: ignore[misc]
        sidecar.exchange_all(OPEN, whole=False)
    for sidecar in made:
        sidecar.exchange_all(OPEN + 0.25)
    return made


def test_with_ample_room_a_request_is_admitted_first_and_reported_afterwards(
    lease_store: ReferenceLeaseStore,
) -> None:
    made, _ = joined_with_ample_room(lease_store)
    now, count = OPEN + 0.3, 0
    while made.leases.covers(made.account, ONE, now):
        assert isinstance(made.admit(now), Ticket)
        count += 1
    # A quarter of 40 each: half of the free part, for two sidecars.
    assert made.leases.taken_ahead >= 5
    assert 8 <= count <= 12
    said = made.sync.next_message(now)
    assert said is not None
    assert said.lease_requests["a"].concurrency_in_use == count
    made.answered(said, lease_store.exchange(said, now).answer, now)
    assert made.leases.covers(made.account, ONE, now)


def test_all_sidecars_take_at_most_half_of_the_free_capacity_before_their_reports(
    lease_store: ReferenceLeaseStore,
) -> None:
    sidecars = joined_with_ample_room(lease_store, 4)
    now = OPEN + 0.3
    for sidecar in sidecars:
        while sidecar.leases.covers(sidecar.account, ONE, now):
            sidecar.admit(now)
    assert sum(sidecar.leases.taken_ahead for sidecar in sidecars) <= AMPLE.concurrency / 2
    assert sum(sidecar.account.concurrency_in_use for sidecar in sidecars) <= AMPLE.concurrency


def test_no_capacity_is_taken_ahead_with_a_small_limit_a_busy_pool_or_old_answers(
    lease_store: ReferenceLeaseStore,
) -> None:
    small, _ = joined(lease_store), joined(lease_store, "s2")
    small.exchange_all(OPEN)
    small.wait(OPEN, lambda: small.admit(OPEN))
    small.exchange_all(OPEN, whole=False)
    small.exchange_all(OPEN + 0.1)
    while small.leases.covers(small.account, ONE, OPEN + 0.2):
        small.admit(OPEN + 0.2)
    assert small.leases.taken_ahead == 0  # a limit of four
    late, _ = joined_with_ample_room(lease_store)
    held = int(late.account.limit.concurrency)
    for _ in range(held):
        late.admit(OPEN + 0.3)
    assert not late.leases.covers(late.account, ONE, OPEN + 0.25 + 0.6)
    busy = IdleTerms((100.0, 1e6, 40.0), (100_000.0, 1e6, 40.0), others_want=True)
    lease_store.publish({"a": AMPLE}, busy, 1, OPEN + 0.8)
    late.exchange_all(OPEN + 0.9)
    before = late.leases.taken_ahead
    while late.leases.covers(late.account, ONE, OPEN + 0.9):
        late.admit(OPEN + 0.9)
    assert late.leases.taken_ahead == before


def test_while_nobody_else_wants_more_only_the_engines_room_bounds_a_request(
    lease_store: ReferenceLeaseStore,
) -> None:
    other, made = joined(lease_store, "s2"), joined(lease_store)
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    assert other.account.concurrency_in_use == 4  # the whole limit
    lease_store.publish(LIMITS, msgspec.structs.replace(TERMS, others_want=False), 2, OPEN + 0.1)
    made.exchange_all(OPEN + 0.2)
    assert made.leases.covers(made.account, ONE, OPEN + 0.2)
    ticket = made.admit(OPEN + 0.2)
    assert isinstance(ticket, Ticket)
    assert made.account.limit.concurrency == 1  # from free capacity
    made.settle(ticket, OPEN + 0.3)
    assert made.account.limit.concurrency == 0  # free capacity goes back at the end of its request


def test_a_ceiling_binds_whatever_is_free(lease_store: ReferenceLeaseStore) -> None:
    lease_store.publish(LIMITS, msgspec.structs.replace(TERMS, others_want=False), 2, 0.0)
    made = joined(lease_store, tenant=entitlement(ceiling=Amount(math.inf, math.inf, 6)))
    admitted = []
    for now in (OPEN, OPEN + 0.1, OPEN + 0.2, OPEN + 0.3, OPEN + 0.4, OPEN + 0.5):
        while made.leases.covers(made.account, ONE, now):
            assert isinstance(made.admit(now), Ticket)
        admitted.append(made.account.concurrency_in_use)
        made.wait(now, lambda now=now: made.admit(now))  # type: ignore[misc]
        made.exchange_all(now, whole=False)
    # The gap between the limit of four and the ceiling of six is two. The others have leases.
    assert (admitted[0], admitted[-1]) == (2, 6)


def test_an_idle_entitlement_is_named_in_no_message(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    many = {f"e{number}": Account(entitlement(f"e{number}"), Pricing(), 0.0) for number in range(1000)}
    made.sync.follow({"a": made.account, **many}, OPEN)
    made.exchange_all(OPEN + 0.1)
    message = made.send(OPEN + 0.2)
    assert message.lease_requests == {}
    assert message.renews


def test_rows_that_the_lease_store_lost_are_stated_again(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    made.wait(OPEN, lambda: made.admit(OPEN))
    made.exchange_all(OPEN, whole=False)
    made.exchange_all(OPEN + 0.1)
    lost = lease_store._records.pop("a")
    lease_store._holders["s1"].entitlements.clear()
    assert lost.rows
    made.exchange_all(OPEN + 0.3)
    made.exchange_all(OPEN + 0.4)
    again = lease_store.record("a", OPEN + 0.4)
    assert again is not None
    assert again.held.concurrency >= 1


def test_a_long_list_is_stated_in_several_messages(lease_store: ReferenceLeaseStore) -> None:
    many = {f"e{number}": Account(entitlement(f"e{number}"), Pricing(), 0.0) for number in range(120)}
    made = joined(lease_store)
    made.sync.follow(many, OPEN)
    tickets = []
    for account in many.values():
        made.wait(OPEN, lambda account=account: tickets.append(account), longest_wait_s=0.0, account=account)  # type: ignore[misc]
    sizes = []
    deque(made.sync.tick_steps(OPEN), maxlen=0)
    while (message := made.sync.next_message(OPEN)) is not None:
        sizes.append(len(message.lease_requests))
        made.answered(message, lease_store.exchange(message, OPEN).answer, OPEN)
    assert max(sizes) <= 50
    assert len(tickets) == 120


def test_a_request_of_a_removed_entitlement_does_not_stop_the_messages(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    removed, kept = made.account, Account(entitlement("b"), Pricing(), 0.0)
    made.sync.follow({"b": kept}, OPEN)
    made.leases.covers(removed, ONE, OPEN)  # its body ends only now
    assert made.wait(OPEN, longest_wait_s=1.0, account=removed) is None
    deque(made.sync.tick_steps(OPEN + 0.1), maxlen=0)
    made.exchange_all(OPEN + 0.2)
    assert made.leases.mode is Mode.JOINED


def test_any_number_of_requests_may_wait_for_the_first_answer(lease_store: ReferenceLeaseStore) -> None:
    made, _ = joined_with_ample_room(lease_store)
    made.account.set_lease(Amount(), Amount(), 0.0)  # no lease is held
    made.room = EngineRoom(slots=1000, kv_tokens=1e9)
    lease_store.publish({"a": Limit(1e9, 1e9, 1000, 1e9)}, ROOMY, 1, OPEN + 0.3)
    decided: list[Ticket | Shed] = []
    now = OPEN + 1.0
    for _ in range(150):
        assert made.wait(now, lambda: decided.append(made.admit(now))) is not None
    made.exchange_all(now, whole=False)
    assert len(decided) == 150
    assert all(isinstance(each, Ticket) for each in decided)


def test_when_the_lease_store_fails_an_idle_tenant_gets_exactly_its_share(
    lease_store: ReferenceLeaseStore,
) -> None:
    made = joined(lease_store)
    made.leases.sidecars = 2
    made.send(OPEN)
    made.fail(OPEN + 0.1)
    admitted = 0
    now = OPEN + 0.1
    while now < OPEN + 1.1:
        if not made.leases.covers(made.account, ONE, now):
            made.wait(now)
        ticket = made.admit(now)
        if isinstance(ticket, Ticket):
            admitted += 1
            made.settle(ticket, now)
        now += 0.01
    # Half of a rate of 1,000 tokens/s: a bucket of one second, and the refill until the leases expire.
    assert 5 <= admitted <= 12


def test_a_tick_is_done_in_steps(lease_store: ReferenceLeaseStore) -> None:
    made = joined(lease_store)
    many = {f"e{number}": Account(entitlement(f"e{number}"), Pricing(), 0.0) for number in range(100)}
    made.sync.follow(many, OPEN)
    for account in many.values():
        made.leases.covers(account, ONE, OPEN)
    steps = made.sync.tick_steps(OPEN)
    next(steps)
    made.sync.follow(dict(list(many.items())[:50]), OPEN)  # a reload between two steps
    assert sum(1 for _ in steps) <= 100 // PER_STEP


def test_a_request_that_comes_during_a_pause_is_asked_for_again_in_time(
    lease_store: ReferenceLeaseStore,
) -> None:
    made, other = joined(lease_store), joined(lease_store, "s2")
    for _ in range(4):
        other.wait(OPEN, lambda: other.admit(OPEN))
    other.exchange_all(OPEN, whole=False)
    other.exchange_all(OPEN)
    made.wait(OPEN, longest_wait_s=0.001)
    made.exchange_all(OPEN, whole=False)
    made.exchange_all(OPEN + 0.5, whole=False) if made.sync.is_message_due else None
    made.wake(OPEN + 3)  # the first request waits no longer
    state = made.leases.states["a"]
    state.short_until, state.ask_again_at = OPEN + 3.1, OPEN + 3.05
    assert made.wait(OPEN + 3.01, longest_wait_s=1.0) is not None
    assert made.leases.waits.wakes_at() <= OPEN + 3.05
