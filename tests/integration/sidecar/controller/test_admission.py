"""Admission over the wire: identity, sheds and their messages, and attempts to bypass limits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import CHAT, POOL, ask, is_whole, request, sidecar_for, until

ONE_EACH = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: 2000, concurrency: 4}
entitlements:
  - name: small
    pool: chat
    tier: elastic
    ceiling: {tokens_per_second: 50, kv_tokens: 1000, concurrency: 2}
    api_keys: [small-key]
  - {name: other, pool: chat, tier: elastic, api_keys: [other-key]}
"""


class HeldEngine:
    """Answers requests only when told to."""

    def __init__(self, engine: FakeEngine) -> None:
        self.open = asyncio.Event()
        engine.answer = self.answer

    async def answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        await fake.answer_unary(request, writer)


async def test_a_shed_has_the_reason_and_the_time_to_retry(engine: FakeEngine, tmp_path: Path) -> None:
    keeper = HeldEngine(engine)
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key="small-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, request(key="small-key"))
        keeper.open.set()
        assert [r.status for r in await asyncio.gather(*running)] == [200, 200]
        assert is_whole(sidecar)

    error = shed.error()
    assert shed.status == 429
    assert shed.headers["x-tokenpool-reason"] == "concurrency"
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "'small'" in error["message"]
    assert "limit of entitlement 'small' 2, in use 2, cost 1" in error["message"]
    assert int(shed.headers["retry-after"]) >= 1
    assert int(shed.headers["retry-after-ms"]) >= 50
    assert shed.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in shed.headers


async def test_every_answer_of_our_own_has_a_date_and_405_says_what_is_allowed(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        wrong = await ask(sidecar, request("/v1/models", method="POST"))
        unknown = await ask(sidecar, request("/v1/nothing"))
    assert wrong.status == 405
    assert {method.strip() for method in wrong.headers["allow"].split(",")} >= {"GET", "HEAD"}
    for answer in (wrong, unknown):
        assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 60
    assert "allow" not in unknown.headers


async def test_a_parallel_burst_cannot_pass_a_limit_together(engine: FakeEngine, tmp_path: Path) -> None:
    keeper = HeldEngine(engine)
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH) as sidecar:
        burst = [asyncio.ensure_future(ask(sidecar, request(key="small-key"))) for _ in range(50)]
        await until(lambda: sum(task.done() for task in burst) == 48)
        assert len(engine.received) == 2
        keeper.open.set()
        statuses = Counter(r.status for r in await asyncio.gather(*burst))
    assert statuses == {200: 2, 429: 48}


async def test_sequences_count_not_requests(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH) as sidecar:
        for body in (
            {"model": "tiny", "prompt": "a", "max_tokens": 1, "n": 3},
            {"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 1},
            {"model": "tiny", "prompt": [[1], [2], [3]], "max_tokens": 1},
            {"model": "tiny", "prompt": "a", "max_tokens": 1, "best_of": 3},
            {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 1},
        ):
            response = await ask(sidecar, request(body=body, key="small-key"))
            assert response.status == 400
            assert response.headers["x-tokenpool-reason"] == "never_fits"
            assert response.headers["x-should-retry"] == "false"
            assert "can never have more than 2" in response.error()["message"]
    assert not engine.received


async def test_a_request_that_can_never_fit_is_refused_with_the_numbers(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH) as sidecar:
        body = {"model": "tiny", "prompt": "x" * 8000, "max_tokens": 5}
        response = await ask(sidecar, request(body=body, key="small-key"))
    assert response.status == 400
    assert "needs 2016 kv_tokens, but can never have more than 1000" in response.error()["message"]


@pytest.mark.parametrize(
    ("body", "priced"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 90}, 90),
        ({"max_tokens": 90, "max_completion_tokens": 1}, 1),
        ({"max_tokens": 90, "max_completion_tokens": None}, 90),
        ({"max_tokens": 90}, 90),
        ({}, 256),
    ],
)
async def test_the_bound_that_the_engine_obeys_is_priced(
    engine: FakeEngine, tmp_path: Path, body: dict[str, object], priced: int
) -> None:
    keeper = HeldEngine(engine)
    chat = {k: v for k, v in CHAT.items() if k != "max_tokens"} | body
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        waiting = asyncio.ensure_future(ask(sidecar, request("/v1/chat/completions", chat)))
        await until(lambda: bool(engine.received))
        account = sidecar.controller.accounts["g"]
        blocks = -(-(5 + priced) // 16)  # a prompt of two letters and its template are five tokens
        assert account.kv_in_use == blocks * 16
        keeper.open.set()
        await waiting


async def test_a_large_request_passes_a_small_bucket_and_is_paid_off(
    engine: FakeEngine, tmp_path: Path
) -> None:
    large = {"model": "tiny", "prompt": "x" * 2000, "max_tokens": 5}

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary(usage={"prompt_tokens": 500, "completion_tokens": 5}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH) as sidecar:
        answers = [await ask(sidecar, request(body=large, key="small-key")) for _ in range(4)]
    statuses = [a.status for a in answers]
    assert statuses[0] == 200
    assert 429 in statuses
    shed = answers[statuses.index(429)]
    assert shed.headers["x-tokenpool-reason"] == "tokens_per_second"
    # 505 tokens at 50 a second: the refill tells the wait, not a guess.
    assert 1000 < int(shed.headers["retry-after-ms"]) < 30000


async def test_a_caller_cannot_choose_its_entitlement(engine: FakeEngine, tmp_path: Path) -> None:
    claims = {
        "x-tokenpool-entitlement": "g",
        "x-tokenpool-tier": "guaranteed",
        "x-tenant-id": "g",
        "x-gateway-inference-fairness-id": "g",
        "x-llm-d-inference-fairness-id": "g",
    }
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request(key="s-key", headers=claims))
        anonymous = await ask(sidecar, request(key=None, headers=claims))
        assert sidecar.telemetry.outcomes("g") == {}
        assert sidecar.telemetry.outcomes("s") == {"finished": 1}
    assert (response.status, anonymous.status) == (200, 401)
    assert not any(name.startswith("x-tokenpool") for name in engine.received[0].headers)


async def test_a_trusted_gateway_names_the_entitlement(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, identity_header="X-Tenant-Id") as sidecar:
        named = await ask(sidecar, request(key=None, headers={"x-tenant-id": "e"}))
        unknown = await ask(sidecar, request(key="g-key", headers={"x-tenant-id": "nobody"}))
        twice = await ask(sidecar, request(key=None, headers={"x-tenant-id": "e", "X-Tenant-ID": "g"}))
        by_key = await ask(sidecar, request(key="g-key"))
        assert sidecar.telemetry.outcomes("e") == {"finished": 1}
    assert [r.status for r in (named, unknown, twice, by_key)] == [200, 401, 401, 200]
    assert "x-tenant-id" not in engine.received[0].headers


async def test_keys_may_come_as_bearer_or_x_api_key_and_as_digests(
    engine: FakeEngine, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"g-key").hexdigest()
    pool = POOL.replace("[g-key]", f'["sha256:{digest}"]')
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        bearer = await ask(sidecar, request())
        header = await ask(sidecar, request(key=None, headers={"x-api-key": "g-key"}))
        lower = await ask(sidecar, request(key=None, headers={"authorization": "bearer g-key"}))
    assert [r.status for r in (bearer, header, lower)] == [200, 200, 200]


async def test_anonymous_callers_may_have_an_entitlement(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=POOL + "anonymous: s\n") as sidecar:
        nobody = await ask(sidecar, request(key=None))
        wrong = await ask(sidecar, request(key="wrong"))
        assert sidecar.telemetry.outcomes("s") == {"finished": 1}
    assert (nobody.status, wrong.status) == (200, 401)
    assert "www-authenticate" in wrong.headers


async def test_a_retry_storm_of_spot_does_not_move_a_guarantee(engine: FakeEngine, tmp_path: Path) -> None:
    keeper = HeldEngine(engine)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        spots = [asyncio.ensure_future(ask(sidecar, request(key="s-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        for _ in range(300):
            response = await ask(sidecar, request(key="s-key"))
            assert response.status == 429
        guaranteed = [asyncio.ensure_future(ask(sidecar, request())) for _ in range(4)]
        await until(lambda: len(engine.received) == 12)  # the engine is full, and spot makes room
        keeper.open.set()
        assert {r.status for r in await asyncio.gather(*guaranteed)} == {200}
        assert sorted(r.status for r in await asyncio.gather(*spots)) == [200] * 4 + [429] * 4
        assert is_whole(sidecar)


async def test_refused_requests_use_up_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    keeper = HeldEngine(engine)
    async with sidecar_for(engine.port, tmp_path, pool=ONE_EACH, queue_timeout_elastic=0.0) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key="small-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 2)
        account = sidecar.controller.accounts["small"]
        spent = account.meter.spent, account.kv_in_use, account.concurrency_in_use
        for _ in range(20):
            assert (await ask(sidecar, request(key="small-key"))).status == 429
        after = account.meter.spent, account.kv_in_use, account.concurrency_in_use
        keeper.open.set()
        await asyncio.gather(*running)
    assert after[1:] == spent[1:]
    assert after[0] <= spent[0]


async def test_a_stream_that_outgrows_its_estimate_extends_its_reservation(
    engine: FakeEngine, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event() * 600))
        await go_on.wait()
        end = fake.chunk(fake.usage_event(prompt=10, completion=600)) + fake.chunk(fake.DONE)
        writer.write(end + b"0\r\n\r\n")

    engine.answer = answer
    chat = {k: v for k, v in CHAT.items() if k != "max_tokens"} | {"stream": True}
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        waiting = asyncio.ensure_future(ask(sidecar, request("/v1/chat/completions", chat)))
        account = sidecar.controller.accounts["g"]
        await until(lambda: account.kv_in_use >= 600)  # 256 were reserved
        go_on.set()
        assert (await waiting).status == 200
        assert is_whole(sidecar)


async def test_a_stream_that_ends_early_is_settled_from_what_was_relayed(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event() * 7))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    engine.answer = answer
    chat = CHAT | {"stream": True}
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await ask(sidecar, request("/v1/chat/completions", chat))
        await until(lambda: is_whole(sidecar))
        tally = sidecar.telemetry._tallies["g"].series
        assert (tally.input, tally.output) == (5, 7)


async def test_unpriced_routes_need_a_key_but_no_room(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        body = {"model": "tiny", "prompt": "hi"}
        answers = [
            await ask(sidecar, request("/tokenize", body)),
            await ask(sidecar, request("/detokenize", {"tokens": [1]})),
            await ask(sidecar, request("/v1/models", method="GET", headers={"x-test": "1"})),
            await ask(sidecar, request("/version", method="GET", key=None)),
            await ask(sidecar, request("/tokenize", body, key=None)),
        ]
    assert [r.status for r in answers] == [200, 200, 200, 200, 401]
    assert "x-ratelimit-limit-tokens" not in answers[0].headers


async def test_errors_are_json_in_the_openai_dialect(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request("/nope"))
    assert json.loads(response.body) == {
        "error": {
            "message": "POST /nope is not served here",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
        }
    }


IN_ONE_GROUP = (
    POOL.replace("name: e,", "name: e, group: org,").replace("name: s,", "name: s, group: org,")
    + "groups: [{name: org, pool: chat, ceiling: {concurrency: 2}}]\n"
)


async def test_members_of_a_group_are_refused_at_its_ceiling(engine: FakeEngine, tmp_path: Path) -> None:
    keeper = HeldEngine(engine)
    async with sidecar_for(engine.port, tmp_path, pool=IN_ONE_GROUP) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("e-key", "s-key")]
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, request(key="s-key"))
        other = asyncio.ensure_future(ask(sidecar, request(key="g-key")))
        await until(lambda: len(engine.received) == 3)
        keeper.open.set()
        assert [r.status for r in await asyncio.gather(*running, other)] == [200] * 3
        assert is_whole(sidecar)

    assert (shed.status, shed.headers["x-tokenpool-reason"]) == (429, "concurrency")
    assert "limit of group 'org' 2, in use 2, cost 1" in shed.error()["message"]
