"""The driver after a withdrawal and in a failed tick: its calls of its ports."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tests.support.build import from_source
from tests.support.domain_builders import ASK, ROOM, account, cost
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import NOTHING_SPENT, Driver
from tokenpool.entitlements import Tier
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Message
from tokenpool.leases.settings import LeaseSettings
from tokenpool.leases.sync import LeaseSync
from tokenpool.outcomes import Ending
from tokenpool.quotas.messages import QuotaMessage


class Recorded:
    """Ports that record the calls of the driver."""

    def __init__(self) -> None:
        self.at = 100.0
        self.alarm = math.inf
        self.sent: list[Message] = []
        self.asked: list[PeerAsk] = []
        self.cancelled: list[PeerAsk] = []
        self.failures: list[Exception] = []

    def now(self) -> float:
        return self.at

    def wake_at(self, at: float) -> None:
        self.alarm = at

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
        self.failures.append(error)


class Owner:
    """The owner of a request that waits."""

    def __init__(self) -> None:
        self.outcome: Ticket | Shed | None = None

    def decided(self, outcome: Ticket | Shed) -> None:
        self.outcome = outcome


def test_when_the_first_waiting_request_leaves_the_next_one_is_tried_soon() -> None:
    """The next request may be smaller and fit now."""
    ports = Recorded()
    control = AdmissionControl(ports.at, AdmissionQueue(QueueSettings(elastic_s=5.0)))
    control.room = ROOM
    driver = Driver(control, ports)
    tenant = account(Amount(1e6, 1e6, 2), ceiling=Amount(math.inf, math.inf, 2))
    running = control.offer(tenant, ASK, cost(), ports.at)
    large = control.offer(tenant, ASK, cost(sequences=2), ports.at)
    small = control.offer(tenant, ASK, cost(), ports.at)
    assert isinstance(running, Ticket)
    assert isinstance(large, PendingRequest)
    assert isinstance(small, PendingRequest)
    first, second = Owner(), Owner()
    driver.wait(large, first)
    driver.wait(small, second)
    driver.act()
    assert ports.alarm == ports.at + 5.0

    driver.withdraw(large)

    assert ports.at < ports.alarm < ports.at + 0.01
    ports.at, ports.alarm = ports.alarm, math.inf
    driver.wake()
    assert first.outcome is None
    assert isinstance(second.outcome, Ticket)
    assert ports.alarm == math.inf


@from_source
def test_a_failed_tick_still_renews_the_leases() -> None:
    class BrokenTick(LeaseSync):
        """A tick with a defect in one of its entitlements."""

        def tick_steps(self, now: float) -> Iterator[None]:
            yield from super().tick_steps(now)
            raise ZeroDivisionError

    ports = Recorded()
    queue = AdmissionQueue(QueueSettings())
    leases = Leases(LeaseSettings(1.5, 0.25), 1, queue)
    sync = BrokenTick("s1", leases)
    sync.follow({"a": account()}, ports.at)
    driver = Driver(AdmissionControl(ports.at, queue, leases=leases), ports, sync)

    list(driver.tick_steps())

    assert [type(error) for error in ports.failures] == [ZeroDivisionError]
    assert [message.is_complete for message in ports.sent] == [True]


def test_after_its_stop_a_driver_sends_only_its_last_message() -> None:
    ports = Recorded()
    queue = AdmissionQueue(QueueSettings())
    leases = Leases(LeaseSettings(1.5, 0.25), 1, queue)
    driver = Driver(AdmissionControl(ports.at, queue, leases=leases), ports, LeaseSync("s1", leases))

    driver.stop()
    list(driver.tick_steps())

    assert ports.sent == []
    last_message = driver.last_message()
    assert last_message is not None
    assert (last_message.is_complete, last_message.lease_requests) == (True, {})
    assert Driver(AdmissionControl(ports.at, queue), ports).last_message() is None


class Starts:
    """The owner of a request. It notes when the request starts, and settles it when it is ended."""

    def __init__(self, driver: Driver, name: str, started: list[str]) -> None:
        self.ticket: Ticket | None = None
        self._driver = driver
        self._name = name
        self._started = started

    def decided(self, outcome: Ticket | Shed) -> None:
        assert isinstance(outcome, Ticket)
        self.begin(outcome)

    def begin(self, ticket: Ticket) -> None:
        """Begin with a ticket."""
        self.ticket = ticket
        self._driver.begin(ticket, self)

    def start(self) -> None:
        self._started.append(self._name)

    def preempt(self) -> None:
        assert self.ticket is not None
        self._driver.settle(self.ticket, NOTHING_SPENT, Ending.PREEMPTED, reported=False)


def test_a_request_for_which_spot_ends_starts_before_others_that_get_the_rest_of_its_room() -> None:
    ports, started = Recorded(), list[str]()
    control = AdmissionControl(ports.at, AdmissionQueue(QueueSettings(elastic_s=5.0)))
    control.engine_changed(EngineRoom(2.0, 1e6, proven_slots=2.0), ports.at)
    driver = Driver(control, ports)
    large = control.offer(account(tier=Tier.SPOT), ASK, cost(sequences=2), ports.at)
    assert isinstance(large, Ticket)
    Starts(driver, "spot", started).begin(large)
    waiting = control.offer(account(name="e"), ASK, cost(), ports.at)
    assert isinstance(waiting, PendingRequest)
    driver.wait(waiting, Starts(driver, "elastic", started))
    driver.act()
    promise = Amount(1e6, 1e6, 2)
    owner = account(promise, assured=promise, tier=Tier.GUARANTEED, guarantee=promise, name="g")

    guaranteed = control.offer(owner, ASK, cost(), ports.at)
    assert isinstance(guaranteed, Ticket)
    Starts(driver, "guaranteed", started).begin(guaranteed)

    assert started == ["spot", "guaranteed", "elastic"]
    assert ports.failures == []
