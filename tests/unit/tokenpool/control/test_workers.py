"""The workers of one sidecar: they share the room of its engine, and one queue for it."""

from __future__ import annotations

import random
from array import array

import pytest

from tests.support.domain_builders import ASK, account, cost
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import KnownPeer, PeerAsk, Placement
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.capacity.shared_room import STRIDE, SharedRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import NOTHING_SPENT, Driver
from tokenpool.entitlements import Tier
from tokenpool.leases.messages import Message
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Cost
from tokenpool.quotas.messages import QuotaMessage

SLOTS = 4
GUARANTEE = Amount(1e4, 1e6, 100)


class Pod:
    """Some workers with one engine and one clock. ``deliver_notifications`` delivers what they sent."""

    def __init__(self, workers: int, slots: float = SLOTS) -> None:
        self.now = 100.0
        self.notified: list[int] = []
        self.cells = array("d", [0.0] * (workers * STRIDE))
        self.workers = [Worker(self, index, workers, slots) for index in range(workers)]
        for worker in self.workers:
            worker.driver.act()
        for worker in self.workers:
            worker.control.peers_named([], self.now)

    def deliver_notifications(self) -> None:
        while self.notified:
            self.workers[self.notified.pop(0)].driver.serve()

    @property
    def running(self) -> int:
        return sum(each.control.ledger.concurrency_in_use for each in self.workers)


class Worker:
    """One worker: the ports of its driver, and the owner of its requests."""

    def __init__(self, pod: Pod, index: int, workers: int, slots: float) -> None:
        self._pod = pod
        self.asked: list[PeerAsk] = []
        self.decided_outcomes: list[Ticket | Shed] = []
        self.control = AdmissionControl(
            pod.now, AdmissionQueue(QueueSettings(5.0, 5.0, 5.0)), placement=Placement(f"w{index}")
        )
        self.control.shared_room = SharedRoom(pod.cells, index, workers)
        self.control.worker_address = "unix:/run/peer-"
        self.control.is_serving = True
        self.driver = Driver(self.control, self)
        self.control.engine_changed(EngineRoom(slots, 1e6, proven_slots=slots), pod.now)

    def offer(self, tenant: Account, priced: Cost | None = None) -> Ticket | PendingRequest | Shed:
        outcome = self.control.offer(tenant, ASK, priced or cost(), self._pod.now)
        if isinstance(outcome, PendingRequest):
            self.driver.wait(outcome, self)
        self.driver.act()
        return outcome

    def decided(self, outcome: Ticket | Shed) -> None:
        self.decided_outcomes.append(outcome)
        if isinstance(outcome, Ticket):
            self.driver.begin(outcome, self)

    def end(self, ticket: Ticket) -> None:
        self.driver.settle(ticket, NOTHING_SPENT, Ending.FINISHED)

    # --- Runner and Ports ---

    def start(self) -> None:
        pass

    def preempt(self) -> None:
        raise AssertionError("nothing is preempted here")

    def now(self) -> float:
        return self._pod.now

    def wake_at(self, at: float) -> None:
        pass

    def send_message(self, message: Message) -> None:
        raise AssertionError("there is no lease store")

    def send_quotas(self, message: QuotaMessage) -> None:
        raise AssertionError("no quota is configured")

    def ask(self, ask: PeerAsk) -> None:
        self.asked.append(ask)

    def cancel(self, ask: PeerAsk) -> None:
        pass

    def notify_worker(self, worker: int) -> None:
        self._pod.notified.append(worker)

    def failed(self, what: str, error: Exception) -> None:
        raise error


def tenant(name: str = "elastic", tier: Tier = Tier.ELASTIC) -> Account:
    return account(tier=tier, name=name)


def owner() -> Account:
    made = account(tier=Tier.GUARANTEED, guarantee=GUARANTEE, assured=GUARANTEE, name="owner")
    made.has_peers = True
    return made


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_all_workers_together_admit_as_many_requests_as_the_engine_runs(workers: int) -> None:
    pod = Pod(workers)
    accounts = [tenant() for _ in pod.workers]

    outcomes = [pod.workers[n % workers].offer(accounts[n % workers]) for n in range(SLOTS + 3)]

    assert [isinstance(each, Ticket) for each in outcomes] == [True] * SLOTS + [False] * 3
    assert pod.running == SLOTS


def test_one_worker_may_use_the_whole_engine() -> None:
    pod = Pod(8)
    one = tenant()

    assert all(isinstance(pod.workers[3].offer(one), Ticket) for _ in range(SLOTS))


def test_a_large_request_fits_at_every_worker() -> None:
    pod = Pod(8)

    assert isinstance(pod.workers[0].offer(tenant(), cost(kv_tokens=900_000, sequences=SLOTS)), Ticket)


def test_a_slot_goes_to_the_request_that_waits_longest_at_any_worker() -> None:
    pod = Pod(3)
    one, two, three = pod.workers
    mine, other, third = tenant(), tenant(), tenant()
    running = [one.offer(mine) for _ in range(SLOTS)]
    pod.now += 0.1
    first = two.offer(other)
    pod.now += 0.1
    second, last = one.offer(mine), three.offer(third)
    assert all(isinstance(each, PendingRequest) for each in (first, second, last))

    for number, ticket in enumerate(running[:3]):
        assert isinstance(ticket, Ticket)
        one.end(ticket)
        pod.deliver_notifications()
        decided = [len(each.decided_outcomes) for each in pod.workers]
        assert decided == [[0, 1, 0], [1, 1, 0], [1, 1, 1]][number]
        assert pod.running == SLOTS


def test_a_higher_tier_comes_first_at_any_worker() -> None:
    pod = Pod(2)
    one, two = pod.workers
    running = [one.offer(tenant("other")) for _ in range(SLOTS)]
    assert isinstance(one.offer(tenant("other")), PendingRequest)
    pod.now += 0.1
    assert isinstance(two.offer(owner()), PendingRequest)

    assert isinstance(running[0], Ticket)
    one.end(running[0])
    assert pod.notified == [1]
    pod.deliver_notifications()

    assert (len(one.decided_outcomes), len(two.decided_outcomes)) == (0, 1)


def test_a_new_request_takes_no_slot_before_one_that_waits_at_another_worker() -> None:
    pod = Pod(2)
    one, two = pod.workers
    running = [one.offer(tenant()) for _ in range(SLOTS)]
    assert isinstance(two.offer(tenant()), PendingRequest)
    assert isinstance(running[0], Ticket)
    one.end(running[0])

    pod.now += 0.01
    assert isinstance(one.offer(tenant("new")), PendingRequest)  # before the notification is delivered
    pod.deliver_notifications()

    assert (len(one.decided_outcomes), len(two.decided_outcomes)) == (0, 1)


def test_a_request_that_comes_first_takes_free_room_at_once() -> None:
    """A guaranteed request that arrives meanwhile comes before an elastic one at another worker."""
    pod = Pod(2)
    one, two = pod.workers
    running = [one.offer(tenant()) for _ in range(SLOTS)]
    assert isinstance(two.offer(tenant()), PendingRequest)
    assert isinstance(running[0], Ticket)
    one.end(running[0])

    one.offer(owner())

    assert len(one.decided_outcomes) == 1
    assert pod.running == SLOTS


def test_the_room_of_a_request_that_leaves_the_queue_is_offered_to_others() -> None:
    pod = Pod(2)
    one, two = pod.workers
    running = [one.offer(tenant()) for _ in range(SLOTS)]
    left = two.offer(tenant())
    assert isinstance(left, PendingRequest)
    assert isinstance(one.offer(tenant("second")), PendingRequest)
    assert isinstance(running[0], Ticket)
    one.end(running[0])

    two.driver.withdraw(left)
    pod.deliver_notifications()

    assert len(one.decided_outcomes) == 1


def test_only_a_guaranteed_request_asks_other_workers_to_end_spot() -> None:
    pod = Pod(2)
    one, two = pod.workers
    for _ in range(SLOTS):
        assert isinstance(one.offer(tenant("spot", Tier.SPOT)), Ticket)

    two.offer(tenant())
    assert two.asked == []
    two.offer(owner())

    assert [(ask.peer, ask.place.address, ask.is_probe) for ask in two.asked] == [
        ("worker 0", "unix:/run/peer-0", True)
    ]


def test_spot_ends_if_the_engine_has_fewer_slots_than_all_workers_use() -> None:
    pod = Pod(2, slots=8)
    one, two = pod.workers
    spot = tenant("spot", Tier.SPOT)
    for _ in range(3):
        running = one.offer(spot)
        assert isinstance(running, Ticket)
        one.control.first_token(running, 0.1)
    for _ in range(4):
        assert isinstance(two.offer(tenant()), Ticket)
    assert isinstance(one.offer(owner()), Ticket)  # the engine has not begun with it
    few = EngineRoom(5.0, 1e6, proven_slots=5.0)

    for worker in pod.workers:
        worker.control.engine_changed(few, pod.now)

    assert [each.account.name for each in one.control.take_effects().to_end] == ["spot"]
    assert not two.control.take_effects().to_end


def test_other_replicas_are_asked_as_before() -> None:
    pod = Pod(2)
    one, two = pod.workers
    for worker in pod.workers:
        worker.control.peers_named([KnownPeer("x", "x:1", 1e6, 1.0)], pod.now)
    for _ in range(SLOTS):
        one.offer(tenant())

    two.offer(tenant())

    assert {ask.peer for ask in two.asked} <= {"x"}


def test_the_expected_wait_counts_the_engine_of_another_sidecar_once() -> None:
    """Two engines with two workers each free slots four times as often as one worker alone."""
    pod = Pod(2)
    one, two = pod.workers
    named = [KnownPeer(f"x-1-ab/{index}-0", f"x:{index}", 0.0, 0.0) for index in range(2)]
    for worker in pod.workers:
        worker.control.peers_named(named, pod.now)
        worker.control.ledger.residence.value = 4.5 * 5.0
    assert isinstance(two.offer(tenant(), cost(sequences=SLOTS - 1)), Ticket)
    assert isinstance(one.offer(tenant()), Ticket)

    assert isinstance(one.offer(tenant("second")), Shed)


def test_each_worker_states_its_part_of_the_free_room() -> None:
    pod = Pod(4)
    pod.workers[0].offer(tenant())

    for worker in pod.workers:
        worker.driver.serve()  # it sees the load when it acts

    stated = [each.control.stated_room() for each in pod.workers]
    assert [each.sequences for each in stated] == [0.0, 1.0, 1.0, 1.0]
    assert sum(each.kv_tokens for each in stated) == 1e6 - 112


def test_a_request_at_an_engine_that_is_down_waits_for_no_other_worker() -> None:
    pod = Pod(2)
    one = pod.workers[0]
    one.control.use_room(EngineRoom(SLOTS, 1e6, is_down=True))

    assert not one.control.knows_others
    assert isinstance(one.offer(tenant()), Shed)


def test_the_load_of_all_workers_is_known_when_the_engines_page_is_read() -> None:
    pod = Pod(2)
    pod.workers[0].offer(tenant(), cost(kv_tokens=100))
    pod.workers[1].offer(tenant(), cost(kv_tokens=50))

    assert pod.workers[0].control.load() == pod.workers[1].control.load() == (2, 150)


@pytest.mark.parametrize("seed", range(20))
def test_random_work_keeps_the_engine_full_and_never_beyond_its_room(seed: int) -> None:
    """A notification may be late. Nothing waits while a slot is free and all notifications are delivered."""
    chance = random.Random(seed)
    pod = Pod(chance.choice([2, 3, 5]))
    accounts = [[tenant(), tenant("spot", Tier.SPOT), tenant("second")] for _ in pod.workers]
    running: list[tuple[Worker, Ticket]] = []
    for step in range(400):
        pod.now += chance.random() * 0.01
        if step % 50 == 0:
            for each in pod.workers:
                each.driver.act()  # as the loop of a worker does four times a second
        place = chance.randrange(len(pod.workers))
        worker = pod.workers[place]
        if chance.random() < 0.55:
            outcome = worker.offer(chance.choice(accounts[place]))
            if isinstance(outcome, Ticket):
                running.append((worker, outcome))
        elif running:
            ended, ticket = running.pop(chance.randrange(len(running)))
            ended.end(ticket)
        if chance.random() < 0.7:
            pod.deliver_notifications()
        for each in pod.workers:
            running += [(each, made) for made in each.decided_outcomes if isinstance(made, Ticket)]
            each.decided_outcomes.clear()
        assert pod.running <= SLOTS
        if not pod.notified:
            waiting = sum(each.control.queue.waiting_for_engine for each in pod.workers)
            assert pod.running == SLOTS or not waiting
