"""The driver: it performs effects, sends messages and sets the alarm, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tests.support.build import from_source
from tests.support.domain_builders import ASK, PLENTY, account, cost, entitlement
from tests.unit.tokenpool.control.test_admission_control import (
    NONE_NOW,
    OPEN,
    SPENT,
    WAITS,
    Leased,
    assert_is_empty,
    control_of,
    gold,
    room,
    spot,
)
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest, WaitsFor
from tokenpool.admission.placement import KnownPeer, PeerAsk, Placement
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.leases.messages import RECLAIM, Message, PeerRoom, Push
from tokenpool.leases.sync import LeaseSync
from tokenpool.outcomes import Ending, Reason
from tokenpool.quotas.messages import QuotaMessage


class Ports:
    """Virtual time, and records of the driver's calls."""

    def __init__(self, at: float = 0.0) -> None:
        self.at = at
        self.alarms: list[float] = []
        self.sent: list[Message] = []
        self.asked: list[PeerAsk] = []
        self.cancelled: list[PeerAsk] = []
        self.errors: list[str] = []

    def now(self) -> float:
        return self.at

    def wake_at(self, at: float) -> None:
        self.alarms.append(at)

    def send_message(self, message: Message) -> None:
        self.sent.append(message)

    def notify_worker(self, worker: int) -> None:
        raise AssertionError("there is one worker")

    def send_quotas(self, message: QuotaMessage) -> None:
        raise AssertionError("no quota is configured")

    def ask(self, ask: PeerAsk) -> None:
        self.asked.append(ask)

    def cancel(self, ask: PeerAsk) -> None:
        self.cancelled.append(ask)

    def failed(self, what: str, error: Exception) -> None:
        self.errors.append(f"{what}: {error}")


class Client:
    """The owner of one request; ``on_decided`` is called at the decision."""

    def __init__(self, driver: Driver, on_decided: Callable[[], None] = lambda: None) -> None:
        self.driver = driver
        self.on_decided = on_decided
        self.outcome: Ticket | Shed | None = None
        self.was_preempted = self.has_started = False

    def decided(self, outcome: Ticket | Shed) -> None:
        assert self.outcome is None
        self.outcome = outcome
        if isinstance(outcome, Ticket):
            self.driver.begin(outcome, self)
        self.on_decided()

    def start(self) -> None:
        self.has_started = True

    def preempt(self) -> None:
        self.was_preempted = True
        self.driver.settle(self.ticket, SPENT, Ending.PREEMPTED)

    @property
    def ticket(self) -> Ticket:
        assert isinstance(self.outcome, Ticket)
        return self.outcome


class Pod:
    """A driver with its control and its ports."""

    def __init__(
        self,
        slots: float = 1,
        *,
        foreign: float = 0.0,
        control: AdmissionControl | None = None,
        sync: LeaseSync | None = None,
        at: float = 0.0,
    ) -> None:
        self.ports = Ports(at)
        self.control = control or control_of(slots)
        if foreign:
            self.control.engine_changed(room(slots, foreign), at)
        self.driver = Driver(self.control, self.ports, sync)

    def offer(self, tenant: Account, client: Client | None = None) -> Client:
        """Offer a request, as a sidecar does."""
        client = client or Client(self.driver)
        made = self.control.offer(tenant, ASK, cost(), self.ports.at, body=b"body", request=client)
        if isinstance(made, PendingRequest):
            self.driver.wait(made, client)
        else:
            client.decided(made)
        self.driver.act()
        return client

    def wait(self, tenant: Account) -> PendingRequest:
        """Offer a request that waits, without an owner yet."""
        made = self.control.offer(tenant, ASK, cost(), self.ports.at, body=b"body")
        assert isinstance(made, PendingRequest)
        return made

    def free_all(self, tenant: Account) -> None:
        """The tenant gets a limit, and the whole engine is free."""
        tenant.set_limits(PLENTY, PLENTY, 0.0, 0.0)
        self.control.room = room(self.control.room.slots)

    def finish(self, *clients: Client) -> None:
        for client in clients:
            self.driver.settle(client.ticket, SPENT, Ending.FINISHED)

    def assert_is_empty(self) -> None:
        assert_is_empty(self.control)
        assert not self.driver._waiters
        assert not self.driver._runners
        assert not self.driver._ended_early


# --- decisions ---


def test_the_end_of_a_request_delivers_the_decision_about_the_next() -> None:
    pod = Pod()
    first, second = pod.offer(account()), pod.offer(account(name="b"))
    assert second.outcome is None
    pod.finish(first)
    assert isinstance(second.outcome, Ticket)
    pod.finish(second)
    pod.assert_is_empty()


def test_a_delivery_may_cause_decisions_and_none_runs_within_another() -> None:
    pod, order = Pod(), []
    first = pod.offer(account())
    second = pod.offer(account(name="b"))
    third = pod.offer(account(name="c"))

    def end_at_once() -> None:
        order.append("second begins")
        pod.finish(second)
        pod.driver.act()
        assert third.outcome is None
        order.append("second ends")

    second.on_decided = end_at_once
    third.on_decided = lambda: order.append("third")
    pod.finish(first)
    assert order == ["second begins", "second ends", "third"]
    pod.finish(third)
    pod.assert_is_empty()


def test_an_admitted_request_without_an_owner_is_settled_and_its_room_is_used() -> None:
    pod = Pod()
    first = pod.offer(account())
    gone = pod.wait(account(name="b"))
    last = pod.offer(account(name="c"))
    pod.finish(first)
    assert gone.has_left
    assert isinstance(last.outcome, Ticket)
    assert pod.control.ledger.concurrency_in_use == 1
    pod.finish(last)
    pod.assert_is_empty()


def test_a_client_that_leaves_during_another_delivery_uses_no_room() -> None:
    pod, tenant = Pod(2, foreign=2), account(NONE_NOW)
    first, second = Client(pod.driver), Client(pod.driver)
    pending = [pod.wait(tenant) for _ in range(2)]
    for each, client in zip(pending, (first, second), strict=True):
        pod.driver.wait(each, client)
    first.on_decided = lambda: pod.driver.withdraw(pending[1])
    pod.free_all(tenant)
    pod.driver.serve()
    assert second.outcome is None
    assert pod.control.ledger.concurrency_in_use == 1
    pod.finish(first)
    pod.assert_is_empty()


def test_a_withdrawn_request_is_not_decided_and_the_next_is_tried_soon() -> None:
    pod, tenant = Pod(1, foreign=1), account(NONE_NOW)
    first = pod.wait(tenant)
    pod.driver.wait(first, Client(pod.driver))
    second = pod.offer(tenant)
    before = pod.ports.alarms[-1]
    pod.driver.withdraw(first)
    assert pod.ports.alarms[-1] < 0.01 < before
    pod.free_all(tenant)
    pod.ports.at = pod.ports.alarms[-1]
    pod.driver.wake()
    pod.finish(second)
    pod.assert_is_empty()


def test_a_failed_delivery_is_reported_and_the_others_continue() -> None:
    pod, tenant = Pod(2, foreign=2), account(NONE_NOW)

    def fail() -> None:
        raise ValueError("a defect")

    first = pod.offer(tenant, Client(pod.driver, fail))
    second = pod.offer(tenant)
    pod.free_all(tenant)
    pod.driver.serve()
    assert pod.ports.errors == ["a decision could not be delivered: a defect"]
    assert isinstance(second.outcome, Ticket)
    pod.finish(first, second)
    pod.assert_is_empty()


def test_the_body_of_a_request_is_dropped_once_its_wait_has_ended() -> None:
    """The heaps of the queue keep the request itself until its deadline."""
    pod = Pod()
    first = pod.offer(account())
    told, gone = pod.wait(account(name="b")), pod.wait(account(name="c"))
    client = Client(pod.driver)
    pod.driver.wait(told, client)
    pod.driver.withdraw(gone)
    assert (told.body, gone.body) == (b"body", b"")
    pod.finish(first)
    assert (told.body, told.request) == (b"", None)


# --- preemption ---


def test_a_guaranteed_request_ends_a_spot_request_and_gets_its_slot() -> None:
    pod = Pod()
    victim = pod.offer(spot())
    owner = pod.offer(gold())
    assert victim.was_preempted
    assert victim.ticket.ending is Ending.PREEMPTED
    assert pod.control.ledger.concurrency_in_use == 1
    pod.finish(owner)
    pod.assert_is_empty()


def test_a_request_that_is_preempted_before_it_has_an_owner_is_ended_with_its_owner() -> None:
    pod = Pod()
    ticket = pod.control.offer(spot(), ASK, cost(), 0.0)
    assert isinstance(ticket, Ticket)
    owner = pod.offer(gold())
    assert ticket.ending is None
    victim = Client(pod.driver)
    victim.decided(ticket)
    assert victim.was_preempted
    pod.finish(owner)
    pod.assert_is_empty()


def test_a_spot_request_that_is_admitted_and_preempted_in_one_batch_is_delivered_and_ended() -> None:
    pod, owner = Pod(), gold(NONE_NOW)
    pod.control.engine_changed(room(1, foreign=1), 0.0)
    victim, first = pod.offer(spot()), pod.offer(owner)
    owner.set_limits(PLENTY, PLENTY, 0.0, 0.0)
    pod.control.engine_changed(room(1), 0.0)
    pod.driver.act()
    assert victim.was_preempted
    assert isinstance(first.outcome, Ticket)
    pod.finish(first)
    pod.assert_is_empty()


def test_a_preempted_request_whose_client_left_leaves_no_state() -> None:
    pod, owner = Pod(), gold(NONE_NOW)
    pod.control.engine_changed(room(1, foreign=1), 0.0)
    pod.wait(spot())
    first = pod.offer(owner)
    owner.set_limits(PLENTY, PLENTY, 0.0, 0.0)
    pod.control.engine_changed(room(1), 0.0)
    pod.driver.act()
    pod.finish(first)
    pod.assert_is_empty()


def test_a_request_that_ended_after_its_preemption_was_decided_is_not_ended_again() -> None:
    pod = Pod(2)
    victim, first, second = (pod.offer(each) for each in (spot(), account(), account(name="b")))
    made: list[Client] = []

    def decide_the_preemption_and_settle() -> None:
        made.append(pod.offer(gold()))
        pod.driver.settle(victim.ticket, SPENT, Ending.CLIENT_GONE)

    second.on_decided = decide_the_preemption_and_settle
    pod.finish(first)
    assert not victim.was_preempted
    pod.finish(second, *made)
    pod.assert_is_empty()


def test_a_failed_preemption_is_reported_and_the_others_continue() -> None:
    pod, owner = Pod(2), gold(NONE_NOW)

    class Defective(Client):
        def preempt(self) -> None:
            raise ValueError("a defect")

    greedy = spot()
    old, young = pod.offer(greedy), pod.offer(greedy, Defective(pod.driver))
    first, second = pod.offer(owner), pod.offer(owner)
    owner.set_limits(PLENTY, PLENTY, 0.0, 0.0)
    pod.driver.serve()
    assert pod.ports.errors == ["a request could not be ended for a guarantee: a defect"]
    assert old.was_preempted
    pod.finish(young, first, second)
    pod.assert_is_empty()


def test_a_request_whose_entitlement_is_no_longer_spot_leaves_no_state() -> None:
    pod, tenant = Pod(), spot()
    client = pod.offer(tenant)
    tenant.is_spot = False
    pod.finish(client)
    pod.assert_is_empty()


# --- the alarm ---


def test_the_alarm_is_the_next_deadline_and_is_cancelled_when_none_is_left() -> None:
    pod = Pod(control=control_of(1, QueueSettings(elastic_s=5.0)))
    first = pod.offer(account())
    assert pod.ports.alarms == []
    second = pod.offer(account(name="b"))
    assert pod.ports.alarms == [5.0]
    pod.ports.at = 1.0
    third = pod.offer(account(name="c"))
    assert pod.ports.alarms == [5.0]
    pod.finish(first)
    assert pod.ports.alarms == [5.0, 6.0]
    pod.finish(second)
    assert pod.ports.alarms == [5.0, 6.0, math.inf]
    pod.finish(third)
    assert pod.ports.alarms == [5.0, 6.0, math.inf]
    pod.assert_is_empty()


def test_at_the_alarm_a_request_is_shed_and_the_next_alarm_is_set() -> None:
    pod = Pod(control=control_of(1, QueueSettings(elastic_s=5.0)))
    first, second = pod.offer(account()), pod.offer(account(name="b"))
    pod.ports.at = 1.0
    third = pod.offer(account(name="c"))
    pod.ports.at = 5.0
    pod.driver.wake()
    assert isinstance(second.outcome, Shed)
    assert second.outcome.reason is Reason.ENGINE_FULL
    assert pod.ports.alarms == [5.0, 6.0]
    pod.finish(first)
    pod.finish(third)
    pod.assert_is_empty()


# --- the lease store ---


def leased(*names: str) -> tuple[Pod, Leased]:
    sidecar = Leased(*(entitlement(name) for name in names or ("a",)))
    return Pod(control=sidecar.control, sync=sidecar.sync, at=OPEN), sidecar


def test_a_request_without_a_lease_sends_a_message_at_once_and_the_answer_admits_it() -> None:
    pod, sidecar = leased()
    client = pod.offer(sidecar.accounts["a"])
    (message,) = pod.ports.sent
    assert message.lease_requests["a"].is_urgent
    assert pod.ports.alarms[-1] < math.inf
    pod.ports.at += 0.01
    pod.driver.answered(message, sidecar.store.exchange(message, pod.ports.at).answer)
    assert isinstance(client.outcome, Ticket)
    assert pod.ports.alarms[-1] == math.inf
    pod.finish(client)
    pod.assert_is_empty()


def test_a_failed_message_decides_the_requests_that_wait_for_its_answer() -> None:
    pod, sidecar = leased()
    client = pod.offer(sidecar.accounts["a"])
    pod.ports.at += 0.5
    pod.driver.failed(pod.ports.sent[0])
    assert client.outcome is not None
    assert pod.ports.sent[1].is_complete
    assert not pod.driver._waiters


def test_an_answer_does_not_try_the_requests_that_wait_for_the_engine() -> None:
    pod, sidecar = leased("a", "b")
    pod.control.engine_changed(room(1, foreign=1), OPEN)
    client = pod.offer(sidecar.accounts["a"])
    message = pod.ports.sent[-1]
    pod.driver.answered(message, sidecar.store.exchange(message, OPEN).answer)
    assert client.outcome is None
    assert pod.control.queue.needs_engine
    pod.driver.pushed(Push("s1", RECLAIM, "a"))
    answered = 1
    while answered < len(pod.ports.sent):
        assert answered < 5
        message, answered = pod.ports.sent[answered], answered + 1
        pod.driver.answered(message, sidecar.store.exchange(message, OPEN).answer)
    (waiting,) = pod.driver._waiters
    assert waiting.waits_for is WaitsFor.ENGINE


def test_a_tick_renews_the_leases() -> None:
    pod, _ = leased()
    for _ in pod.driver.tick_steps():
        pass
    (message,) = pod.ports.sent
    assert message.renews


def test_a_lone_sidecar_sends_nothing() -> None:
    pod = Pod()
    assert list(pod.driver.tick_steps()) == []
    assert pod.driver.stop() is None
    assert pod.ports.sent == []


def test_after_the_stop_no_message_is_sent_and_no_alarm_is_set() -> None:
    pod, sidecar = leased("a", "b")
    running = pod.offer(sidecar.accounts["a"])
    (message,) = pod.ports.sent
    pod.driver.answered(message, sidecar.store.exchange(message, OPEN).answer)
    pod.offer(sidecar.accounts["b"])
    count = len(pod.ports.sent)
    pod.driver.stop()
    last_message = pod.driver.last_message()
    assert last_message is not None
    assert set(last_message.lease_requests) == {"a"}  # b has spent nothing
    assert pod.ports.alarms[-1] == math.inf
    pod.ports.alarms.clear()
    pod.offer(sidecar.accounts["b"])
    pod.driver.pushed(Push("s1", RECLAIM, "a"))
    pod.finish(running)
    for _ in pod.driver.tick_steps():
        pass
    assert len(pod.ports.sent) == count
    assert pod.ports.alarms == []


class Broken(Client):
    """An owner that fails before it begins with its ticket."""

    def decided(self, outcome: Ticket | Shed) -> None:
        raise ValueError("a defect")


def test_a_ticket_that_its_owner_did_not_begin_with_is_settled() -> None:
    pod, tenant = Pod(2, foreign=2), account(NONE_NOW)
    pod.offer(tenant, Broken(pod.driver))
    second = pod.offer(tenant)
    pod.free_all(tenant)
    pod.driver.serve()
    assert pod.ports.errors == ["a decision could not be delivered: a defect"]
    pod.finish(second)
    pod.assert_is_empty()


class Starting(Client):
    """An owner that notes whether the victim had ended when it started."""

    def __init__(self, driver: Driver, victim: Client) -> None:
        super().__init__(driver)
        self.victim = victim
        self.order: list[bool] = []

    def start(self) -> None:
        self.order.append(self.victim.was_preempted)

    def decided_by(self, pod: Pod) -> None:
        """Another delivery makes this request known."""
        pod.offer(gold(), self)


def test_a_request_that_a_delivery_admits_starts_after_its_victim_has_ended() -> None:
    pod, waiting = Pod(2), account(NONE_NOW)
    victim = pod.offer(spot())
    starting = Starting(pod.driver, victim)
    first = pod.offer(waiting, Client(pod.driver, lambda: starting.decided_by(pod)))
    waiting.set_limits(PLENTY, PLENTY, 0.0, 0.0)
    pod.driver.serve()
    assert starting.order == [True]
    pod.finish(first, starting)
    pod.assert_is_empty()


class BrokenSync:
    """An exchange whose messages cannot be made."""

    is_message_due = True

    def messages(self, now: float) -> list[Message]:
        raise KeyError("a defect")


@from_source
def test_a_message_that_cannot_be_made_reaches_no_request() -> None:
    pod = Pod(1, sync=BrokenSync())  # type: ignore[arg-type]
    tenant = account()
    tenant.set_limits(PLENTY, PLENTY, 0.0, 0.0)
    client = pod.offer(tenant)
    assert isinstance(client.outcome, Ticket)
    assert pod.ports.errors[0].startswith("a message to the lease store could not be made")


# --- other replicas ---


def with_peer() -> tuple[Pod, Client, Client]:
    """A sidecar with a running request and a waiting one that asks another replica."""
    control = AdmissionControl(0.0, AdmissionQueue(WAITS), placement=Placement("me"))
    control.engine_changed(room(1), 0.0)
    pod = Pod(control=control)
    control.peers_named([KnownPeer("p", "p:1", 1e6, 4.0)], 0.0)
    return pod, pod.offer(account()), pod.offer(account(name="b"))


def test_an_ask_is_sent_and_its_offer_starts_the_request() -> None:
    pod, running, waiting = with_peer()
    (ask,) = pod.ports.asked
    assert waiting.outcome is None
    assert pod.driver.peer_offered(ask)
    assert waiting.has_started
    assert waiting.ticket.place == ask.place
    assert pod.ports.cancelled == []
    assert not pod.driver.peer_offered(ask)
    pod.finish(running, waiting)
    pod.assert_is_empty()


def test_an_ask_is_cancelled_when_its_request_needs_it_no_more() -> None:
    pod, running, waiting = with_peer()
    pod.finish(running)
    assert waiting.ticket.place is None
    assert pod.ports.cancelled == pod.ports.asked
    assert not pod.driver.peer_offered(pod.ports.asked[0])
    pod.finish(waiting)
    pod.assert_is_empty()


def test_a_client_that_leaves_cancels_its_ask() -> None:
    pod, running, _ = with_peer()
    (pending,) = pod.driver._waiters
    pod.driver.withdraw(pending)
    assert pod.ports.cancelled == pod.ports.asked
    assert not pod.driver.peer_offered(pod.ports.asked[0])
    pod.finish(running)
    pod.assert_is_empty()


def test_a_request_that_ends_while_its_offer_is_delivered_leaves_no_state() -> None:
    pod, running, waiting = with_peer()
    waiting.on_decided = lambda: pod.driver.settle(waiting.ticket, SPENT, Ending.CLIENT_GONE)
    assert pod.driver.peer_offered(pod.ports.asked[0])
    assert waiting.ticket.ending is Ending.CLIENT_GONE
    pod.finish(running)
    pod.assert_is_empty()


def test_a_refused_request_waits_on_and_a_failed_peer_is_not_asked_again_at_once() -> None:
    pod, running, waiting = with_peer()
    pod.driver.peer_refused(pod.ports.asked[0], has_failed=True)
    assert len(pod.ports.asked) == 1
    assert waiting.outcome is None
    pod.finish(running)
    pod.finish(waiting)
    pod.assert_is_empty()


def test_messages_state_the_room_here_and_answers_name_other_replicas() -> None:
    pod, sidecar = leased()
    pod.control.is_serving, pod.control.placement = True, Placement("me")
    for _ in pod.driver.tick_steps():
        pass
    (message,) = pod.ports.sent
    assert message.room == pod.control.stated_room()
    answer = sidecar.store.exchange(message, OPEN).answer
    named = [PeerRoom("p", "p:1", 1000.0, 3.0)]
    pod.driver.answered(message, replace(answer, peers=named))
    assert pod.control.placement.known == [KnownPeer("p", "p:1", 1000.0, 3.0)]
    last_message = pod.driver.last_message()
    assert last_message is not None
    assert last_message.room is None  # a sidecar that stops has none
