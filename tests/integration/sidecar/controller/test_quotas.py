"""Quotas as clients see them: refusals, headers and warnings; alone, and with a lease store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from sidecar.configuration import load
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import POOL, Response, ask, request, sidecar_for, until
from tokenpool.entitlements import Quota, Window
from tokenpool.leases.messages import Limit
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms
from tokenpool.quotas.windows import span, text_of
from tokenpool.store.memory import MemoryStore

LIFETIME_S = 0.3
USED = 15
"""The tokens that the engine of these tests reports, whatever it was sent."""
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))


def pool_with(tokens: int, per: str = "month", more: str = "") -> str:
    """The pool, in which e has a quota."""
    quotas = f"quotas: [{{tokens: {tokens}, per: {per}, timezone: Europe/Berlin}}{more}]"
    return POOL.replace("api_keys: [e-key]", f"api_keys: [e-key], {quotas}")


def prompt(tokens: int, **fields: Any) -> bytes:
    body = {"model": "tiny", "prompt": [5] * tokens, "max_tokens": 5, **fields}
    return request(body=body, key="e-key")


def end_of(per: Window) -> str:
    return text_of(span(Quota(1, per, "Europe/Berlin"), time.time()).end)


def is_refused(answer: Response, reason: str = "insufficient_quota") -> bool:
    assert answer.status in (200, 429), answer
    return answer.status == 429 and answer.headers["x-tokenpool-reason"] == reason


async def test_a_spent_quota_is_refused_as_the_apis_do_and_not_retried(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=pool_with(100)) as sidecar:
        assert (await ask(sidecar, prompt(20))).status == 200
        answer = await ask(sidecar, prompt(99))
        message = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 900}], "max_tokens": 99}
        other = await ask(sidecar, request("/v1/messages", message, key="e-key"))
        free = await ask(sidecar, request(key="g-key"))

    assert is_refused(answer)
    error = answer.error()
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "has spent" in error["message"]
    assert "quota of 100 tokens per month" in error["message"]
    assert f"resets at {end_of(Window.MONTH)}" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    until_reset = span(Quota(1, Window.MONTH, "Europe/Berlin"), time.time()).end - time.time()
    assert abs(int(answer.headers["retry-after"]) - until_reset) < 10
    assert is_refused(other)
    assert json.loads(other.body)["type"] == "error"
    assert other.error()["type"] == "rate_limit_error"
    assert other.headers["x-should-retry"] == "false"
    assert free.status == 200
    assert "x-tokenpool-quota" not in free.headers


async def test_answers_state_the_rest_and_warn(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    pool = pool_with(1000, more=", {tokens: 10k, per: day}")
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        first = await ask(sidecar, prompt(10))
        budget = sidecar.controller.accounts["e"].budgets[0]
        budget.settled = 850.0
        second = await ask(sidecar, prompt(10))
        third = await ask(sidecar, prompt(10))
        await until(lambda: "a quota is spent to 80 %" in caplog.text)
        metrics = "".join(line for line in sidecar.admin._metrics_pieces() if "tokenpool_quota" in line)

    month, day = first.headers["x-tokenpool-quota"].split(", ")
    assert month.startswith('"entitlement/month";q=1000;r=')
    assert month.endswith(f'reset="{end_of(Window.MONTH)}"')
    assert day.startswith('"entitlement/day";q=10000;r=')
    assert "x-tokenpool-quota-warning" not in first.headers
    assert second.status == 200
    assert third.headers["x-tokenpool-quota-warning"] == "80"
    [event] = [record for record in caplog.records if "quota" in record.message]
    assert event.__dict__["event"] == "QuotaWarning"
    assert (event.__dict__["owner"], event.__dict__["tokens"]) == ("e", 1000)
    assert 'tokenpool_quota_warnings_total{percent="80",pool="chat"} 1.0' in metrics
    assert 'tokenpool_quota_tokens{name="e",per="month",pool="chat",scope="entitlement"' in metrics


async def test_an_sdk_does_not_retry_a_spent_quota(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=pool_with(10)) as sidecar:
        url = f"http://127.0.0.1:{sidecar.listens_on[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="e-key", max_retries=5) as client:
            started = time.monotonic()
            with pytest.raises(openai.RateLimitError) as raised:
                await client.completions.create(model="tiny", prompt=[5] * 50, max_tokens=5)
        assert raised.value.code == "insufficient_quota"
        assert time.monotonic() - started < 2.0
        outcomes = sidecar.telemetry.outcomes("e")
    assert outcomes == {"insufficient_quota": 1}
    assert not engine.received


async def test_a_changed_pool_file_changes_the_quota(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=pool_with(100)) as sidecar:
        assert (await ask(sidecar, prompt(20))).status == 200
        assert is_refused(await ask(sidecar, prompt(95)))
        (tmp_path / "pool.yaml").write_text(pool_with(1000))
        sidecar.reload()
        await until(lambda: sidecar.controller.accounts["e"].budgets[0].quota.tokens == 1000)
        assert (await ask(sidecar, prompt(95))).status == 200
        assert sidecar.controller.accounts["e"].budgets[0].settled == 2 * USED
        (tmp_path / "pool.yaml").write_text(POOL)
        sidecar.reload()
        await until(lambda: not sidecar.controller.accounts["e"].budgets)
        assert (await ask(sidecar, prompt(999))).status == 200


async def test_a_key_may_have_a_quota_of_its_own(engine: FakeEngine, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"e-key").hexdigest()
    keys = f"api_keys: [{{sha256: {digest}, id: ci, quotas: [{{tokens: 100, per: hour}}]}}, other-key]"
    pool = POOL.replace("api_keys: [e-key]", keys)
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        answer = await ask(sidecar, prompt(50))
        assert answer.status == 200
        assert answer.headers["x-tokenpool-quota"].startswith('"credential/hour";q=100;')
        refused = await ask(sidecar, prompt(95))
        body = {"model": "tiny", "prompt": [5] * 95, "max_tokens": 5}
        assert (await ask(sidecar, request(body=body, key="other-key"))).status == 200
        sidecar.enforce(load(sidecar.settings))
        assert is_refused(await ask(sidecar, prompt(95)))
    assert is_refused(refused)
    assert "the credential of entitlement 'e' has spent 15" in refused.error()["message"]


async def test_the_quota_of_a_key_counts_in_shadow_mode(engine: FakeEngine, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"e-key").hexdigest()
    keys = f"enforce: false, api_keys: [{{sha256: {digest}, id: ci, quotas: [{{tokens: 100, per: hour}}]}}]"
    pool = POOL.replace("api_keys: [e-key]", keys)
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar:
        answers = [await ask(sidecar, prompt(50)), await ask(sidecar, prompt(95))]

    assert [each.status for each in answers] == [200, 200]
    assert [each.headers["x-tokenpool-shadow"] for each in answers] == [
        "admit",
        "shed; reason=insufficient_quota",
    ]


async def test_sidecars_share_a_quota_through_the_store(engine: FakeEngine, tmp_path: Path) -> None:
    store = MemoryStore(LIFETIME_S, time.time)
    await store.quotas()  # it keeps quotas from now on, so earlier windows must be restored
    await store.publish({"e": PLENTY}, TERMS, 1)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    options: dict[str, Any] = {
        "pool": pool_with(400),
        "store": store,
        "lease_lifetime": LIFETIME_S,
        "handover": "off",
    }
    async with (
        sidecar_for(engine.port, folders[0], **options) as one,
        sidecar_for(engine.port, folders[1], **options) as other,
    ):
        for each in (one, other):
            leases = each.control.leases
            assert leases is not None
            await until(lambda leases=leases: leases.mode is Mode.JOINED)  # type: ignore[misc]
        waiting = asyncio.ensure_future(ask(one, prompt(90)))
        await until(lambda: len(store.quota_rules.states(time.time())) == 1)
        [state] = await store.quotas()
        assert not state.is_restored
        while not await store.restore_quota(state.key, state.start, 100.0):
            assert not waiting.done(), "nobody spends more before the restoration"
            await asyncio.sleep(0.02)
        assert (await waiting).status == 200
        assert (await ask(other, prompt(90))).status == 200
        assert (await ask(one, prompt(80))).status == 200
        assert is_refused(await ask(other, prompt(290)))
        assert is_refused(await ask(one, prompt(290)))
    [state] = await store.quotas()
    assert state.spent == 100 + 3 * USED
    assert state.portions == 0, "stopped sidecars have returned their portions"
