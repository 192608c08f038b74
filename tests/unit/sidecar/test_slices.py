"""Periodic work with 2,000 entitlements is done in slices: each one handles a bounded number of them.

The tests count entitlements, not time. ``python -m bench.holds`` measures the longest slice of each job.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar import configuration as reading
from sidecar.controller import accounts as accounts_of_a_file
from sidecar.controller.controller import Controller
from sidecar.local_planner import PER_STEP, LocalPlanner
from sidecar.telemetry import Telemetry
from tests.support.sidecar_builders import configuration, controller
from tokenpool.accounting.account import Account
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.capacity.model import CapacityModel
from tokenpool.entitlements import Pricing, ReplicaCapacity
from tokenpool.leases import sync as lease_sync
from tokenpool.leases.lease_state import LeaseState
from tokenpool.leases.leases import Leases
from tokenpool.leases.settings import LeaseSettings
from tokenpool.planning.planner import PlannerSettings

COUNT = 2000
CHANGED = 5


def pool_file(weight: int = 1, comments: int = 0) -> str:
    """A pool file with ``COUNT`` entitlements, the first ``CHANGED`` of which have this weight."""
    head = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: 1000000, concurrency: 1000}
entitlements:
"""
    quotas = "quotas: [{tokens: 900G, per: day}]"
    rows = [
        f"  - {{name: e{n}, pool: chat, tier: elastic, weight: {weight if n < CHANGED else 1}, {quotas},"
        f" api_keys: [key-{n}]}}\n"
        for n in range(COUNT)
    ]
    return "# a comment\n" * comments + head + "".join(rows)


@pytest.fixture(scope="module")
def texts() -> tuple[str, str]:
    return pool_file(), pool_file(weight=3, comments=2)


def all_active(made: Controller) -> Controller:
    for account in made.accounts.values():
        made.control.active.touch(account, 0.0)
    return made


def test_the_lone_planner_asks_few_accounts_in_one_step(texts: tuple[str, str]) -> None:
    telemetry = Telemetry(10)
    made = all_active(controller(texts[0], telemetry=telemetry))
    planner = LocalPlanner(
        made, telemetry, CapacityModel(ReplicaCapacity(1000.0, 10_000.0, 8.0)), PlannerSettings()
    )
    steps = planner.tick_steps(lambda: 1e9)

    asked = []
    for _ in range(COUNT // PER_STEP):
        next(steps)
        asked.append(sum(account.meter._reported_at == 1e9 for account in made.accounts.values()))

    assert asked == [PER_STEP * number for number in range(1, COUNT // PER_STEP + 1)]


def test_a_tick_of_the_leases_examines_few_entitlements_in_one_step(texts: tuple[str, str]) -> None:
    leases = Leases(LeaseSettings(), 1, AdmissionQueue(QueueSettings()))
    sync = lease_sync.LeaseSync("s1", leases)
    entitlements = configuration(texts[0]).file.entitlements
    accounts = {each.name: Account(each, Pricing(), 0.0) for each in entitlements}
    sync.follow(accounts, 0.0)
    for name in accounts:
        leases.states[name] = LeaseState()

    examined = [len(sync._changed) for _ in sync.tick_steps(1.0)]

    assert len(examined) == COUNT // lease_sync.PER_STEP
    assert {after - before for before, after in pairwise(examined)} == {lease_sync.PER_STEP}
    assert len(leases.states) == COUNT
    messages = list(sync.messages(1.0))
    assert all(len(message.lease_requests) <= lease_sync.MOST_ROWS for message in messages)


def test_a_changed_pool_file_comes_into_force_by_its_changes(texts: tuple[str, str]) -> None:
    made = controller(texts[0])
    before = made.accounts
    changed = configuration(texts[1])

    steps = sum(1 for _ in made.prepare(changed))
    made.configure(changed)

    assert steps == COUNT // accounts_of_a_file.PER_STEP
    assert [account.entitlement.name for account in made.pool_accounts.changed] == [
        f"e{number}" for number in range(CHANGED)
    ]
    assert not made.pool_accounts.removed
    assert all(account is before[name] for name, account in made.accounts.items())


def test_two_files_are_prepared_at_the_same_time(texts: tuple[str, str]) -> None:
    """The sidecar's own file and the published one change together. One must not undo the other's steps."""
    made = controller(texts[0])
    own, published = configuration(texts[1]), configuration(texts[1])
    one, other = made.prepare(own), made.prepare(published)
    for _ in zip(one, other, strict=True):
        pass
    (made_of_own,) = [each for each in made.pool_accounts._prepared if each.file is own.file]

    made.configure(own)

    assert made.accounts is made_of_own.accounts
    assert len(made.pool_accounts.changed) == CHANGED


def test_a_pool_file_is_taken_over_in_parts(texts: tuple[str, str]) -> None:
    made = configuration(texts[0])
    parts = list(reading._parts(made.file, {}))
    assert {len(part.entitlements) for part in parts} == {reading.PER_PART}
    assert len(parts) == COUNT // reading.PER_PART


def test_digests_instead_of_keys_change_no_account(texts: tuple[str, str]) -> None:
    """The published pool file is this sidecar's own one, with digests instead of keys."""
    made = controller(texts[0])
    published = configuration(texts[0].replace("api_keys: [key-", "api_keys: [other-key-"))

    made.configure(published)

    assert not made.pool_accounts.changed
