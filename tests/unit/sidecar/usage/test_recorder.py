"""The recorder: a record for each settled request, and one for each request that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.controller.controller import Controller
from sidecar.decisions import AdmittedRequest
from sidecar.dialects.routes import find
from sidecar.telemetry import Telemetry
from sidecar.usage.open_requests import OpenRequests, abandoned
from sidecar.usage.recorder import MOST_BYTES, MOST_KINDS, MOST_TEXT, UsageRecorder
from tests.support.domain_builders import PLENTY, ROOM
from tests.support.sidecar_builders import controller
from tests.unit.sidecar.usage.test_spool import killed
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage
from tokenpool.usage.record import LOST, UsageRecord, decode

AT = 1_790_000_000.0
ROUTE = find(b"/v1/completions")
USAGE = Usage(7, 3, 2)
BODY = b'{"model": "tiny", "prompt": "hello", "max_tokens": 5}'


class Runner:
    """The exchange of a request, which does nothing."""

    def start(self) -> None:
        """See ``RunningRequest``."""

    def preempt(self) -> None:
        """See ``RunningRequest``."""


class World:
    """A controller with a recorder, and a clock that stands still."""

    def __init__(self, folder: Path | None = None) -> None:
        self.now = 100.0
        self.recorder = UsageRecorder("p", "engine-1", lambda: self.now, lambda: AT)
        if folder is not None:
            self.recorder.open_requests = OpenRequests(folder / "requests.open")
        self.controller: Controller = controller(telemetry=Telemetry(10), clock=lambda: self.now)
        account = self.controller.accounts["g"]
        account.set_limits(PLENTY, PLENTY, 0.0, self.now)
        self.controller.engine.is_up = True
        self.controller.control.engine_changed(ROOM, self.now)
        self.controller.settlement.usage = self.recorder

    def admitted(self, body: bytes = BODY, credential_id: str = "k1") -> AdmittedRequest:
        assert ROUTE is not None
        account = self.controller.accounts["g"]
        outcome = self.controller.admit(ROUTE, account, body)
        assert isinstance(outcome, AdmittedRequest)
        outcome.credential_id = credential_id
        self.controller.begin(outcome, Runner())
        return outcome

    def settle(self, admitted: AdmittedRequest, usage: Usage | None = USAGE) -> None:
        self.controller.settlement.settle(admitted, Ending.FINISHED, usage, 4, spent=True)

    def records(self) -> list[UsageRecord]:
        return [decode(each) for each in self.recorder.take()[0]]

    def left(self) -> list[UsageRecord]:
        """The records that the next process finds, if this one is killed."""
        requests = self.recorder.open_requests
        assert requests is not None
        killed(requests)
        found = abandoned(requests.path)
        assert found is not None
        return [decode(each) for each in found.records()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_settled_request_has_a_record(world: World) -> None:
    admitted = world.admitted()
    ticket = admitted.ticket
    assert ticket is not None
    admitted.first_token_s = 0.5
    world.now += 2.0
    world.settle(admitted)

    assert world.records() == [
        UsageRecord(
            "p-1",
            AT,
            "chat",
            "g",
            "tiny",
            "/v1/completions",
            7,
            3,
            2,
            kv_token_seconds=ticket.kv_held * 2.0,
            sequence_seconds=2.0,
            queue_s=0.0,
            ttft_s=0.5,
            outcome="finished",
            replica="engine-1",
            credential_id="k1",
        )
    ]
    assert world.recorder.recorded == 1


async def test_a_request_without_reported_usage_is_estimated(world: World) -> None:
    world.settle(world.admitted(), None)

    [record] = world.records()
    assert record.is_estimated
    assert record.output_tokens == 4


async def test_a_request_on_which_nothing_was_spent_is_not_estimated(world: World) -> None:
    world.controller.settlement.settle(world.admitted(), Ending.UPSTREAM_ERROR, None, 0, spent=False)

    [record] = world.records()
    assert (record.input_tokens, record.output_tokens, record.is_estimated) == (0, 0, False)
    assert record.outcome == "upstream_error"


async def test_a_record_has_the_group_of_the_entitlement(world: World) -> None:
    account = world.controller.accounts["g"]
    account.entitlement = replace(account.entitlement, group="shop")
    world.settle(world.admitted())

    assert [each.group for each in world.records()] == ["shop"]


async def test_a_free_request_has_no_record(world: World) -> None:
    route = find(b"/v1/models")
    assert route is not None
    admitted = world.controller.admit(route, world.controller.accounts["g"], b"")
    assert isinstance(admitted, AdmittedRequest)
    world.controller.settlement.settle(admitted, Ending.FINISHED, None, None, spent=False)

    assert world.records() == []


async def test_a_longer_reservation_counts_from_its_extension(world: World) -> None:
    admitted = world.admitted(BODY.replace(b"5}", b"500}"))
    ticket = admitted.ticket
    assert ticket is not None
    before = ticket.kv_held
    world.now += 1.0
    world.controller.settlement.relayed(admitted, 400)
    assert ticket.kv_held > before
    world.now += 3.0
    world.settle(admitted)

    [record] = world.records()
    assert record.kv_token_seconds == pytest.approx(before * 1.0 + ticket.kv_held * 3.0)


async def test_a_killed_sidecar_leaves_records_of_running_requests(world: World) -> None:
    cost = world.admitted().ticket
    assert cost is not None

    [record] = world.left()
    assert (record.id, record.outcome, record.is_estimated) == ("p-1", LOST, True)
    assert record.input_tokens == cost.cost.input_tokens
    assert record.output_tokens == cost.cost.output_tokens // 2
    assert record.sequence_seconds == 0.0


async def test_a_killed_sidecar_leaves_records_that_were_not_written(world: World) -> None:
    world.settle(world.admitted())

    [record] = world.left()
    assert (record.id, record.outcome, record.output_tokens) == ("p-1", "finished", 3)
    assert world.records() == [record]


async def test_a_written_record_leaves_the_file(world: World) -> None:
    world.settle(world.admitted())
    running = world.admitted()
    world.recorder.written(world.recorder.take()[1])

    assert [each.id for each in world.left()] == ["p-2"]
    assert running.usage_slot >= 0


async def test_a_request_that_is_decided_again_has_one_record(world: World) -> None:
    world.controller.control.ledger  # noqa: B018
    admitted = world.admitted()
    admitted.parsed = _parsed()
    again = world.controller.admit_again(admitted, has_failed=False)
    assert isinstance(again, AdmittedRequest)
    world.controller.begin(again, Runner())
    world.settle(again)

    assert [each.id for each in world.records()] == ["p-2"]
    assert [each.id for each in world.left()] == ["p-2"]


def _parsed() -> object:
    assert ROUTE is not None
    assert ROUTE.parse is not None
    return ROUTE.parse(BODY)


async def test_without_a_disk_records_are_made_at_the_end(tmp_path: Path) -> None:
    world = World()
    admitted = world.admitted()
    world.settle(admitted)

    assert [each.id for each in world.records()] == ["p-1"]
    assert admitted.usage_slot == -1


async def test_records_can_be_turned_off(world: World) -> None:
    running = world.admitted()
    world.recorder.is_on = False
    later = world.admitted()
    world.settle(later)
    world.settle(running)

    assert [each.id for each in world.records()] == ["p-1"]


async def test_a_long_model_name_is_cut(world: World) -> None:
    world.settle(world.admitted(BODY.replace(b"tiny", b"t" * 10_000).replace(b"t" * 10_000, b"tiny")))
    world.controller.pool = world.controller.pool.__class__("chat", ("*",))
    world.settle(world.admitted(BODY.replace(b"tiny", b"t" * 10_000)))

    assert [len(each.model) for each in world.records()] == [4, MOST_TEXT]


async def test_more_credentials_than_kept_texts_have_records(world: World) -> None:
    names = [f"k{number}" for number in range(MOST_KINDS + 2)] + ["k0"]
    for name in names:
        world.settle(world.admitted(credential_id=name))

    assert [each.credential_id for each in world.records()] == names


@pytest.mark.parametrize("usage", [Usage(1 << 70, 3), Usage(-(1 << 70), 3)])
async def test_a_number_that_no_engine_counts_is_dropped(world: World, usage: Usage) -> None:
    recorder = world.recorder
    admitted = world.admitted()
    assert admitted.ticket is not None
    recorder.settled(admitted, admitted.ticket, Ending.FINISHED, usage, is_estimated=False)

    assert world.records() == []
    assert recorder.dropped == 1


async def test_records_in_memory_have_a_bound(world: World) -> None:
    size = 0
    world.settle(world.admitted())
    [record] = world.recorder.take()[0]
    while size + len(record) + 8 < MOST_BYTES:
        world.settle(world.admitted())
        size += len(record) + 2
        if world.recorder.dropped:
            break
        world.recorder._bytes += 1 << 20  # as if there were many of them
    assert world.recorder.dropped == 1
    assert world.recorder.dropped_tokens == 10
