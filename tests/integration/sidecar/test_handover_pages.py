"""The pages of two sidecars that hand requests over: metrics, ``/debug/state`` and the live page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dashboard.snapshot import ShownHandover, ShownPool
from sidecar.app import Sidecar
from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import ASKER, NONCE_BYTES, Kind, encode_ask, frame, numbered, proof
from tests.fakes.scripted_engine import FakeEngine, Held
from tests.support.harness import admin, ask, request, sidecar_for, until
from tokenpool.leases.messages import Limit
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms
from tokenpool.store.memory import MemoryStore

LIFETIME_S = 0.3
HEADER_BYTES = 5
"""The type and the length of a frame."""
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 1}
    replicas: {min: 2, max: 2}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
"""
"""Each replica has one slot."""


@asynccontextmanager
async def two_replicas(engine: FakeEngine, folder: Path) -> AsyncIterator[tuple[Sidecar, Sidecar, Held]]:
    """Two sidecars that know each other, and hold their answers."""
    store = MemoryStore(LIFETIME_S, time.monotonic)
    await store.publish({"e": PLENTY}, TERMS, 1)
    other = FakeEngine()
    await other.start()
    engine.answer = other.answer = held = Held()
    options: dict[str, Any] = {
        "pool": POOL,
        "store": store,
        "lease_lifetime": LIFETIME_S,
        "queue_timeout_elastic": 5.0,
    }
    for name in ("one", "two"):
        (folder / name).mkdir()
    try:
        async with (
            sidecar_for(engine.port, folder / "one", name="one", **options) as one,
            sidecar_for(other.port, folder / "two", name="two", **options) as two,
        ):
            await until(lambda: all(_is_known(each) for each in (one, two)))
            yield one, two, held
    finally:
        await other.stop()


def _is_known(sidecar: Sidecar) -> bool:
    """Whether a sidecar has joined, and knows another one with room."""
    leases, handover = sidecar.control.leases, sidecar.handover
    assert leases is not None
    assert handover is not None
    has_room = any(peer.sequences >= 1 for peer in handover.peers)
    return leases.mode is Mode.JOINED and bool(handover.links.key) and has_room


async def state(sidecar: Sidecar) -> dict[str, Any]:
    """The page ``/debug/state``."""
    found: dict[str, Any] = json.loads((await admin(sidecar, "/debug/state"))[1])
    return found


async def metrics(sidecar: Sidecar) -> list[str]:
    """The lines of the page ``/metrics``."""
    return (await admin(sidecar, "/metrics"))[1].splitlines()


def live(sidecar: Sidecar) -> ShownPool:
    """The pool on the live page."""
    return sidecar.admin.snapshot().pools[0]


async def test_both_sides_of_a_handover_show_it(engine: FakeEngine, tmp_path: Path) -> None:
    async with two_replicas(engine, tmp_path) as (one, two, held):
        running = [asyncio.ensure_future(ask(one, request(key="e-key"))) for _ in range(2)]
        await until(lambda: two.control.peer_accounts.sequences == 1)
        waiting = asyncio.ensure_future(ask(one, request(key="e-key")))
        await until(lambda: live(two).handover == ShownHandover(1, _results(taken=0), 0, 1, 1))

        asking, asked = (await state(one))["handover"], (await state(two))["handover"]
        assert asking["address"].startswith("127.0.0.1:")
        assert [(peer["name"][:4], peer["address"]) for peer in asking["peers"]] == [
            ("two-", asked["address"])
        ]
        assert (asking["asks"]["taken"], asking["running_elsewhere"], asking["guests"]) == (1, 1, 0)
        assert (asked["guests"], asked["guests_waiting"]["elastic"], asked["received"]) == (1, 1, {})
        assert (await state(one))["waiting"]["elastic"] == {"room": 1, "lease": 0}
        assert (await state(two))["waiting"]["elastic"] == {"room": 0, "lease": 0}
        assert live(one).waiting == (("guaranteed", 0), ("elastic", 1), ("spot", 0))
        assert live(one).handover == ShownHandover(1, _results(taken=1), 1, 0, 0)

        lines = await metrics(one)
        assert 'tokenpool_peers{pool="chat"} 1.0' in lines
        assert 'tokenpool_handovers_running{pool="chat"} 1.0' in lines
        assert 'tokenpool_handovers_total{pool="chat",result="taken"} 1.0' in lines
        assert 'tokenpool_handover_seconds_bucket{le="+Inf",pool="chat"} 1.0' in lines
        assert 'tokenpool_queue_length{pool="chat",tier="elastic",waits_for="room"} 1.0' in lines
        lines = await metrics(two)
        assert 'tokenpool_guests{pool="chat"} 1.0' in lines
        assert 'tokenpool_guests_waiting{pool="chat",tier="elastic"} 1.0' in lines
        assert 'tokenpool_queue_length{pool="chat",tier="elastic",waits_for="room"} 0.0' in lines

        held.go.set()
        assert [(await each).status for each in [*running, waiting]] == [200] * 3
        await until(lambda: live(two).handover is not None and two.control.peer_accounts.sequences == 0)
        received = (await state(two))["handover"]["received"]
        assert set(received) == {"finished"}
        ended = (
            f'tokenpool_handovers_received_total{{ending="finished",pool="chat"}} {received["finished"]}.0'
        )
        assert ended in await metrics(two)


async def test_an_offer_whose_request_goes_elsewhere_is_no_received_request(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with two_replicas(engine, tmp_path) as (one, two, _):
        assert one.handover is not None
        key, port = one.handover.links.key, one.handover.peers[0].address.rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        hello = await reader.readexactly(HEADER_BYTES + 1 + NONCE_BYTES)
        nonce = bytes(NONCE_BYTES)
        writer.write(frame(Kind.PROOF, nonce + proof(key, ASKER, hello[-NONCE_BYTES:], nonce)))
        writer.write(encode_ask(AskFields(7, "spot", True, 1, 100, 0)))
        await until(lambda: two.control.peer_accounts.sequences == 1)
        writer.write(numbered(Kind.CANCEL, 7))
        await until(lambda: two.control.peer_accounts.sequences == 0)
        shown = (await state(two))["handover"]
        assert (shown["unused_offers"], shown["received"]) == (1, {})
        assert 'tokenpool_handover_offers_unused_total{pool="chat"} 1.0' in await metrics(two)
        writer.close()


def _results(taken: int) -> tuple[tuple[str, int], ...]:
    return ("taken", taken), ("refused", 0), ("cancelled", 0), ("failed", 0)


async def test_without_handover_the_pages_show_none(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await state(sidecar))["handover"] is None
        assert live(sidecar).handover is None
        assert live(sidecar).waiting == (("guaranteed", 0), ("elastic", 0), ("spot", 0))
        assert not [line for line in await metrics(sidecar) if "handover" in line]
