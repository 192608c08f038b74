"""The planner of a sidecar with several workers: limits from their reports, without a coordinator."""

from __future__ import annotations

from sidecar.workers.planner import PodPlanner
from tests.support.sidecar_builders import configuration
from tokenpool.amounts import Amount
from tokenpool.leases.messages import LeaseRequest, Message
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.quotas.messages import QuotaMessage, QuotaRequest

REPLICA = Amount(1000, 10_000, 8)
POOL = """
pools:
  - {{name: chat, models: [m], replica: {{tokens_per_second: 1000, kv_tokens: 10000, concurrency: 8}}}}
entitlements:
  - {{name: e, pool: chat, tier: elastic, ceiling: {{concurrency: {ceiling}}}, api_keys: [e-key]}}
"""
REQUEST = LeaseRequest(
    kv_wanted=100, concurrency_wanted=8, demand=(100.0, 100.0, 8.0), fresh=(100.0, 100.0, 8.0)
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def planner(clock: Clock, ceiling: int = 6) -> PodPlanner:
    return PodPlanner(configuration(POOL.format(ceiling=ceiling)), 0.25, 1.5, 1.0, clock)


def message(worker: int, number: int) -> Message:
    report = encode_report(SidecarReport(REPLICA * 0.5, REPLICA, True, workers=2))
    return Message(f"pod/{worker}-7", number, {"e": REQUEST}, report=report)


async def test_the_store_grants_leases_from_the_first_message_on() -> None:
    clock = Clock()
    made = planner(clock)
    await made.tick()
    clock.now += 5.0  # a worker takes so long to start

    answer = await made.store.exchange(message(0, 0))

    assert (answer.is_open, answer.is_known) == (True, True)


async def test_the_limits_follow_the_capacity_of_all_workers_and_the_pool_file() -> None:
    clock = Clock()
    made = planner(clock)
    for worker in range(2):
        await made.store.exchange(message(worker, 0))
    clock.now += 0.25
    await made.tick()

    assert made.last is not None
    assert (made.last.plan.capacity, made.last.engines) == (REPLICA, 1)
    leases = [(await made.store.exchange(message(worker, 1))).leases["e"] for worker in range(2)]
    assert leases[0].limit.concurrency == 6
    assert sum(each.concurrency for each in leases) == 6

    made.follow(configuration(POOL.format(ceiling=3)))
    clock.now += 0.25
    await made.tick()
    assert (await made.store.exchange(message(0, 2))).leases["e"].limit.concurrency == 3


async def test_quotas_grant_portions_and_are_shown() -> None:
    clock = Clock()
    made = planner(clock)
    start = clock.now - 3600  # the window began before this sidecar
    request = QuotaRequest("entitlement/day/UTC/e", start, start + 86400, 1000.0, wanted=100.0, settled=10.0)
    first = await made.store.exchange_quotas(QuotaMessage("pod/0-7", 0, [request]))
    assert not first.portions[0].is_open

    for number in range(1, 8):
        clock.now += 1.0
        await made.restore()
        answer = await made.store.exchange_quotas(QuotaMessage("pod/0-7", number, [request]))

    assert answer.portions[0].is_open
    assert answer.portions[0].portion > 0
    shown = {sample.name: sample.value for metric in made.metrics() for sample in metric.samples}
    assert shown == {"tokenpool_quota_tokens": 1000.0, "tokenpool_quota_spent_tokens": 10.0}
