"""Shadow mode and model scopes over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.app import Sidecar
from tests.fakes.scripted_engine import FakeEngine, Held, Received, unary
from tests.support.harness import (
    CHAT,
    STREAM,
    Response,
    admin,
    ask,
    connected,
    is_whole,
    read_response,
    request,
    sidecar_for,
    until,
)
from tests.support.sidecar_builders import configuration
from tokenpool.leases.messages import Answer, Limit, Message
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

POOL = """
pools:
  - name: chat
    models: [base, adapter, other]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 4}
    enforce: false
entitlements:
  - {name: small, pool: chat, tier: elastic, ceiling: {concurrency: 1}, api_keys: [small-key]}
  - {name: batch, pool: chat, tier: spot, api_keys: [batch-key]}
anonymous: batch
"""
SCOPED = """
pools:
  - name: chat
    models: [base, adapter, other]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 8}
entitlements:
  - {name: plain, pool: chat, tier: elastic, models: [base], api_keys: [team-key]}
  - {name: tuned, pool: chat, tier: elastic, models: [adapter], api_keys: [team-key]}
"""
BODY = {"model": "base", "prompt": "hello", "max_tokens": 5}
LIFETIME_S = 0.3
MOST = 40


class Distant(MemoryStore):
    """A lease store that answers late, or not at all, as the test says."""

    def __init__(self) -> None:
        super().__init__(LIFETIME_S, time.monotonic)
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_down = False

    async def exchange(self, message: Message) -> Answer:
        await self.answers.wait()
        if self.is_down:
            raise StoreDown("the store is stopped")
        return await super().exchange(message)


@contextlib.asynccontextmanager
async def sharing(engine: FakeEngine, folder: Path, store: Distant) -> AsyncIterator[Sidecar]:
    """A sidecar with a lease store in which limits of one sequence bind."""
    limit = Limit(1000.0, 1e6, 1, depth=1000.0)
    terms = IdleTerms((0.0, 0.0, 0.0), (1e6, 1e6, 4.0), others_want=True)
    await store.publish({"small": limit, "batch": limit}, terms, 1)
    async with sidecar_for(engine.port, folder, pool=POOL, store=store, lease_lifetime=LIFETIME_S) as sidecar:
        leases = sidecar.control.leases
        assert leases is not None
        await until(lambda: leases.mode is Mode.JOINED)
        yield sidecar


async def overload(sidecar: Sidecar, engine: FakeEngine) -> list[Response]:
    """Many requests at once, at an engine that answers none of them before all have arrived."""
    engine.answer = held = Held()
    keys = ["small-key", "batch-key", "unknown-key"]
    sent = [
        asyncio.ensure_future(ask(sidecar, request(body=BODY, key=keys[number % 3])))
        for number in range(MOST)
    ]
    await until(lambda: len(engine.received) == MOST)
    held.go.set()
    return list(await asyncio.gather(*sent))


def verdicts(responses: list[Response]) -> Counter[str]:
    """The decisions that the responses state, without their reasons."""
    return Counter(each.headers["x-tokenpool-shadow"].partition(";")[0] for each in responses)


async def test_no_request_of_a_lone_sidecar_is_refused_or_delayed(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=POOL) as sidecar:
        responses = await overload(sidecar, engine)
        state = json.loads((await admin(sidecar, "/debug/state"))[1])["entitlements"]
        metrics = (await admin(sidecar, "/metrics"))[1]
        assert is_whole(sidecar)

    assert {each.status for each in responses} == {200}
    found = verdicts(responses)
    assert found["shed"] + found["queue"] > MOST / 2
    assert found["admit"] >= 1
    assert found["refuse"] == 13  # of callers with an unknown key
    assert {each.headers["x-tokenpool-shadow"] for each in responses} >= {
        "admit",
        "refuse; reason=unknown_key",
    }
    assert state["small"]["enforce"] is False
    shown = state["small"]["shadow"]["decisions"]
    assert sum(sum(reasons.values()) for reasons in shown.values()) == 14
    assert state["small"]["shadow"]["surplus"]["concurrency"] == 0
    assert (
        'tokenpool_shadow_decisions_total{entitlement="batch",pool="chat",decision="refuse"'
        ',reason="unknown_key"} 13.0' in metrics
    )
    assert 'outcome="finished",tier="elastic"} 14.0' in metrics
    assert 'tokenpool_shadow_surplus{dimension="concurrency",entitlement="small",pool="chat"} 0.0' in metrics


@pytest.mark.parametrize("distance", ["near", "far", "away", "gone"])
async def test_no_request_is_refused_or_delayed_at_any_distance_of_the_lease_store(
    engine: FakeEngine, tmp_path: Path, distance: str
) -> None:
    """Far: the store answers after all requests were sent. Away: it fails. Gone: the leases have expired."""
    store = Distant()
    async with sharing(engine, tmp_path, store) as sidecar:
        leases = sidecar.control.leases
        assert leases is not None
        if distance == "far":
            store.answers.clear()
        store.is_down = distance in ("away", "gone")
        if distance == "gone":
            await until(lambda: leases.mode is Mode.CUT_OFF)
        responses = await overload(sidecar, engine)
        store.answers.set()
        assert is_whole(sidecar)
        assert not leases.queue.is_any_waiting_for_lease

    assert {each.status for each in responses} == {200}
    found = verdicts(responses)
    assert sum(found.values()) == MOST
    assert found["shed"] + found["queue"] > 0


async def test_a_request_that_waits_when_enforcement_ends_is_not_refused(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    enforced = POOL.replace("    enforce: false\n", "")
    async with sidecar_for(engine.port, tmp_path, pool=enforced) as sidecar:
        sent = [asyncio.ensure_future(ask(sidecar, request(body=BODY, key="small-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 1 and len(sidecar.control.queue) == 1)
        sidecar.controller.configure(configuration(POOL))
        await until(lambda: len(engine.received) == 2)
        held.go.set()
        responses = await asyncio.gather(*sent)
        assert is_whole(sidecar)

    assert [each.status for each in responses] == [200, 200]
    shown = {each.headers.get("x-tokenpool-shadow") for each in responses}
    assert shown == {None, "shed; reason=concurrency"}


async def test_the_access_log_has_the_decision(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sidecar.access")
    async with sidecar_for(engine.port, tmp_path, pool=POOL, log_requests=True) as sidecar:
        assert (await ask(sidecar, request(body=BODY, key="small-key"))).status == 200
        assert (await ask(sidecar, request(body=BODY, key="unknown-key"))).status == 200

    lines = [record for record in caplog.records if record.name == "sidecar.access"]
    assert [(vars(each)["shadow"], vars(each)["shadow_reason"]) for each in lines] == [
        ("admit", None),
        ("refuse", "unknown_key"),
    ]


async def test_what_the_sidecar_cannot_read_reaches_the_engine_as_sent(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=POOL) as sidecar:
        for body in (b"{", b'{"model": "base", "prompt_embeds": "x"}', b'{"max_tokens": "5"}'):
            response = await ask(sidecar, request(body=body, key="small-key"))
            assert response.status == 200
            assert response.headers["x-tokenpool-shadow"] == "refuse; reason=malformed"
            assert engine.received[-1].body == body
        unknown = await ask(sidecar, request(body=BODY | {"model": "missing"}, key="small-key"))
        assert unknown.headers["x-tokenpool-shadow"] == "refuse; reason=unknown_model"
        streamed = await ask(
            sidecar, request("/v1/chat/completions", STREAM | {"model": "base"}, key="small-key")
        )
        assert streamed.headers["x-tokenpool-shadow"] == "admit"


async def test_an_enforced_response_has_no_such_header(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
        state = json.loads((await admin(sidecar, "/debug/state"))[1])["entitlements"]
        metrics = (await admin(sidecar, "/metrics"))[1]

    assert "x-tokenpool-shadow" not in response.headers
    assert (state["g"]["enforce"], state["g"]["shadow"]) == (True, None)
    assert "tokenpool_shadow_decisions_total{" not in metrics


# --- model scopes ---


async def test_one_key_has_an_entitlement_for_each_model_on_one_connection(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=SCOPED) as sidecar:
        async with connected(sidecar) as (reader, writer):
            for model in ("base", "adapter", "adapter", "base"):
                writer.write(request(body=BODY | {"model": model}, key="team-key"))
                assert (await read_response(reader)).status == 200
        outcomes = {name: sidecar.telemetry.outcomes(name) for name in ("plain", "tuned")}

    flows = [each.headers["x-gateway-inference-fairness-id"] for each in engine.received]
    assert flows == ["plain", "tuned", "tuned", "plain"]
    assert outcomes == {"plain": {"finished": 2}, "tuned": {"finished": 2}}


async def test_a_model_outside_the_scope_is_not_found_in_the_callers_dialect(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=SCOPED) as sidecar:
        openai = await ask(sidecar, request(body=BODY | {"model": "other"}, key="team-key"))
        anthropic = await ask(sidecar, request("/v1/messages", CHAT | {"model": "other"}, key="team-key"))

    assert (openai.status, anthropic.status) == (404, 404)
    assert openai.error()["code"] == "model_not_found"
    assert openai.error()["param"] == "model"
    assert "This API key may use: adapter, base" in openai.error()["message"]
    assert anthropic.error()["type"] == "not_found_error"
    assert "This API key may use: adapter, base" in anthropic.error()["message"]
    assert openai.headers["x-tokenpool-reason"] == "model_not_permitted"
    assert openai.headers["x-should-retry"] == "false"
    assert not engine.received


MODELS = {
    "object": "list",
    "data": [{"id": name, "object": "model"} for name in ("base", "other", "adapter")],
}


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_the_list_of_models_has_the_models_of_the_scope(
    engine: FakeEngine, tmp_path: Path, *, is_chunked: bool
) -> None:
    whole = unary(MODELS)
    if is_chunked:
        head, _, content = whole.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
        halves = content[:30], content[30:]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
        whole = b"\r\n".join([*lines, b"transfer-encoding: chunked"]) + b"\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        is_head = received.line.startswith(b"HEAD")
        writer.write(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if is_head else whole)

    engine.answer = answer
    wanted = {"key": "team-key", "headers": {"x-test": "not a poll"}}
    async with (
        sidecar_for(engine.port, tmp_path, pool=SCOPED) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(request("/v1/models", method="GET", **wanted))  # type: ignore[arg-type]
            listed = await read_response(reader)
            assert [each["id"] for each in json.loads(listed.body)["data"]] == ["base", "adapter"]
        writer.write(request("/v1/models", method="HEAD", **wanted))  # type: ignore[arg-type]
        without = await read_response(reader, has_body=False)
    assert without.status == 200
    assert "content-length" not in without.headers
