"""Requests with quotas: covered, refused, or waiting for a portion; and nothing is held after their end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.domain_builders import ASK, account, cost
from tests.unit.tokenpool.control.test_admission_control import (
    NONE_NOW,
    ONE_MORE,
    SPENT,
    assert_is_empty,
    control_of,
    decisions,
)
from tests.unit.tokenpool.control.test_driver import Client, Ports
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import QUOTA_RETRY_S, Shed
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.control.quota_waits import LONGEST_S, RECLAIM_S
from tokenpool.entitlements import Quota, Window
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Usage
from tokenpool.quotas.budget import Budget
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage, QuotaPortion, Scope
from tokenpool.quotas.quotas import Quotas

START = 86400.0 * 20_000
QUOTA = Quota(1_000.0, Window.DAY)
Outcome = Ticket | PendingRequest | Shed


class QuotaPorts(Ports):
    """Ports that keep the messages about quotas."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas: list[QuotaMessage] = []

    def send_quotas(self, message: QuotaMessage) -> None:
        self.quotas.append(message)


class Pod:
    """A sidecar with one tenant that has a quota."""

    def __init__(self, *, slots: float = 100, is_alone: bool = False) -> None:
        self.ports = QuotaPorts()
        self.control: AdmissionControl = control_of(slots)
        self.driver = Driver(self.control, self.ports)
        self.quotas = Quotas("s1", 1.5, START, is_alone=is_alone)
        self.control.follow_quotas(self.quotas)
        self.tenant = account(name="gold")
        self.tenant.budgets = self.quotas.of(Scope.ENTITLEMENT, "gold", (QUOTA,))
        self.clients: list[Client] = []

    @property
    def budget(self) -> Budget:
        return self.tenant.budgets[0]

    def offer(self, tokens: int = 100, tenant: Account | None = None) -> Outcome:
        made = tenant or self.tenant
        found = self.control.offer(made, ASK, cost(tokens=tokens), self.ports.at, budgets=self.tenant.budgets)
        if isinstance(found, PendingRequest):
            self.clients.append(Client(self.driver))
            self.driver.wait(found, self.clients[-1])
        self.driver.act()
        return found

    def answer(self, portion: float, free: float = 0.0, spent: float = 0.0, *, is_open: bool = True) -> None:
        """The store answers the message in flight with this portion of the budget."""
        message = self.ports.quotas.pop()
        found = [QuotaPortion(portion, free, spent, 7.0, 1, is_open) for _ in message.requests]
        self.driver.quotas_answered(message, QuotaAnswer(found, START + self.ports.at, 1.0))

    def fail(self) -> None:
        self.driver.quotas_failed(self.ports.quotas.pop())

    def end_message(self, chance: Random, *, is_answered: bool) -> None:
        """Answer the message in flight at random, or let it fail. No effect without one."""
        if self.ports.quotas and is_answered:
            self.answer(chance.uniform(0, 1000), chance.uniform(-50, 500), chance.uniform(0, 900))
        elif self.ports.quotas:
            self.fail()

    def at(self, seconds: float) -> None:
        self.ports.at = seconds
        if seconds >= self.control.wakes_at():
            self.driver.wake()

    def settle(self, ticket: Ticket, usage: Usage = SPENT) -> None:
        self.driver.settle(ticket, usage, Ending.FINISHED)

    def outcomes(self) -> list[Reason | type[Ticket] | None]:
        return [
            client.outcome.reason if isinstance(client.outcome, Shed) else client.outcome and Ticket
            for client in self.clients
        ]

    def running(self, direct: list[Ticket]) -> list[Ticket]:
        """The tickets that have not ended: ``direct`` ones, and those of requests that waited."""
        waited = [client.outcome for client in self.clients if isinstance(client.outcome, Ticket)]
        return [ticket for ticket in (*direct, *waited) if ticket.ending is None]

    def assert_is_empty(self) -> None:
        assert_is_empty(self.control)
        assert (self.budget.held, self.budget.waiting, self.budget.needed) == (0, 0, 0)


@pytest.fixture
def pod() -> Pod:
    return Pod()


def test_a_request_waits_for_its_portion_and_runs(pod: Pod) -> None:
    assert isinstance(pod.offer(), PendingRequest)
    [message] = pod.ports.quotas
    assert (message.requests[0].needed, message.requests[0].tokens) == (100, 1000)
    pod.answer(400)
    assert pod.outcomes() == [Ticket]
    second = pod.offer()
    assert isinstance(second, Ticket), "the portion covers the next request without a message"
    assert pod.budget.held == 200
    pod.settle(second)
    pod.settle(pod.clients[0].ticket, Usage(10, 20))
    assert (pod.budget.held, pod.budget.settled) == (0, 130)
    pod.assert_is_empty()


def test_a_request_without_quotas_asks_nothing() -> None:
    pod = Pod()
    found = pod.control.offer(pod.tenant, ASK, cost(), 0.0)
    assert isinstance(found, Ticket)
    assert found.hold is None
    pod.driver.act()
    assert not pod.ports.quotas


def test_a_spent_quota_is_refused_with_the_time_of_its_reset(pod: Pod) -> None:
    pod.offer(300)
    pod.answer(200, free=0.0, spent=800.0)
    [client] = pod.clients
    assert isinstance(client.outcome, Shed)
    assert client.outcome.reason is Reason.INSUFFICIENT_QUOTA
    assert client.outcome.retry_after_s == 86400
    found = client.outcome.quota
    assert found is not None
    assert (found.spent, found.cost, found.tokens) == (800, 300, 1000)
    assert isinstance(pod.offer(300), Shed), "without a message"
    assert not pod.ports.quotas
    pod.at(5.1)
    assert isinstance(pod.offer(300), PendingRequest), "later it asks again"


def test_a_quota_that_running_requests_hold_is_refused_for_a_short_time(pod: Pod) -> None:
    pod.offer(300)
    pod.answer(0, free=100, spent=100)
    assert pod.outcomes() == [None], "other sidecars may return a part"
    pod.at(RECLAIM_S + 0.01)
    [client] = pod.clients
    assert isinstance(client.outcome, Shed)
    assert (client.outcome.reason, client.outcome.retry_after_s) == (Reason.QUOTA_IN_USE, QUOTA_RETRY_S)
    pod.assert_is_empty()


def test_a_returned_portion_ends_the_wait(pod: Pod) -> None:
    pod.offer(300)
    pod.answer(0, free=100, spent=100)
    pod.at(0.25)
    pod.driver.tick_quotas()
    pod.answer(300)
    assert pod.outcomes() == [Ticket]


def test_requests_wait_in_the_order_of_arrival(pod: Pod) -> None:
    pod.offer(300)
    pod.offer(50)
    pod.answer(100, free=0.0, spent=0.0)
    assert pod.outcomes() == [None, None], "a smaller request does not overtake"
    pod.at(0.25)
    pod.driver.tick_quotas()
    pod.answer(350)
    assert pod.outcomes() == [Ticket, Ticket]


def test_until_earlier_spending_is_known_requests_wait_longer(pod: Pod) -> None:
    pod.offer()
    pod.answer(0, is_open=False)
    pod.at(LONGEST_S - 0.1)
    assert pod.outcomes() == [None]
    pod.at(LONGEST_S + 0.1)
    assert pod.outcomes() == [Reason.QUOTA_IN_USE]
    pod.assert_is_empty()


def test_a_store_that_fails_ends_the_wait(pod: Pod) -> None:
    pod.offer()
    pod.fail()
    assert pod.outcomes() == [Reason.QUOTA_IN_USE]
    pod.assert_is_empty()


def test_a_client_that_leaves_a_wait_holds_nothing(pod: Pod) -> None:
    waiting = pod.offer()
    assert isinstance(waiting, PendingRequest)
    pod.driver.withdraw(waiting)
    pod.answer(100)
    pod.assert_is_empty()


def test_a_request_that_is_shed_for_capacity_returns_its_tokens() -> None:
    pod = Pod(is_alone=True)
    full = account(NONE_NOW, name="gold", ceiling=NONE_NOW)
    assert isinstance(pod.offer(tenant=full), Shed)
    pod.assert_is_empty()


def test_a_request_that_waits_for_room_keeps_its_tokens() -> None:
    pod = Pod(slots=1, is_alone=True)
    pod.tenant.set_limits(ONE_MORE, ONE_MORE, 0.0, 0.0)
    first = pod.offer()
    assert isinstance(first, Ticket)
    waiting = pod.offer()
    assert isinstance(waiting, PendingRequest)
    assert pod.budget.held == 200
    third = pod.offer()
    assert isinstance(third, PendingRequest)
    pod.driver.withdraw(third)
    assert pod.budget.held == 200
    pod.settle(first)
    assert pod.outcomes()[0] is Ticket
    pod.settle(pod.clients[0].ticket)
    assert pod.budget.settled == 200
    pod.assert_is_empty()


def test_a_request_that_waited_for_a_portion_may_wait_for_room() -> None:
    pod = Pod(slots=1)
    pod.offer(100)
    pod.answer(1000, free=0)
    first = pod.clients[0].ticket
    pod.budget.portion = 100
    pod.offer(100)
    pod.answer(1000)
    assert pod.outcomes() == [Ticket, None]
    pod.settle(first)
    assert pod.outcomes() == [Ticket, Ticket]


def test_a_running_request_that_outgrows_its_reservation_holds_more(pod: Pod) -> None:
    pod.offer(100)
    pod.answer(100)
    ticket = pod.clients[0].ticket
    pod.control.ledger.extend(ticket, 150, 16, 0.0)
    assert pod.budget.held == 200
    pod.settle(ticket, Usage(50, 160))
    assert pod.budget.settled == 210


def steps(chance: Random) -> Iterator[str]:
    for _ in range(40):
        yield chance.choice(["offer", "offer", "answer", "fail", "settle", "withdraw", "time", "tick"])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30))
def test_after_any_events_nothing_is_held(seed: int) -> None:
    chance = Random(seed)
    pod = Pod(slots=chance.choice([1, 2, 100]))
    direct: list[Ticket] = []
    waiting: list[PendingRequest] = []
    for step in steps(chance):
        if step == "offer":
            found = pod.offer(chance.choice([50, 100, 400]))
            if isinstance(found, Ticket):
                direct.append(found)
            elif isinstance(found, PendingRequest):
                waiting.append(found)
        elif step in ("answer", "fail"):
            pod.end_message(chance, is_answered=step == "answer")
        elif step == "settle" and direct:
            pod.settle(direct.pop())
        elif step == "withdraw" and waiting:
            pod.driver.withdraw(waiting.pop(chance.randrange(len(waiting))))
        elif step == "tick":
            pod.driver.tick_quotas()
        elif step == "time":
            pod.at(pod.ports.at + chance.uniform(0, 1.0))
    for pending in waiting:
        pod.driver.withdraw(pending)
    while running := pod.running(direct):
        for ticket in running:
            pod.settle(ticket)
    assert decisions(pod.control) == []
    assert (pod.budget.held, pod.budget.waiting, pod.budget.needed) == (0, 0, 0)
    assert pod.control.wakes_at() == math.inf
