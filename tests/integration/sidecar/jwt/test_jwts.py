"""JWTs at a running sidecar: identity, refusals in each dialect, rotation, issuers that are away, reloads."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.jwt.service import JwtService
from tests.fakes.scripted_engine import FakeEngine
from tests.support import providers
from tests.support.harness import (
    CHAT,
    POOL,
    Response,
    admin,
    ask,
    connected,
    read_response,
    request,
    sidecar_for,
    until,
)
from tests.support.key_server import KeyServer, key_server
from tests.support.providers import Key, key_set, published, rsa, signed
from tokenpool.entitlements import PoolFile

KEYS = key_set(published(rsa("a"), kid="one"))
MESSAGES = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def pool(server: KeyServer, *, audience: str = "tokenpool", keys: str = "") -> str:
    """A pool file with an issuer whose keys are at the server."""
    return f"""{POOL}
issuers:
  - name: corp
    issuer: https://login.example.com
    {keys or f"jwks_url: {server.url}/keys"}
    audience: {audience}
    entitlements:
      - {{claim: [kubernetes.io, namespace], value: shop, entitlement: g}}
      - {{claim: groups, value: ml, entitlement: e}}
      - {{claim: tenant}}
"""


def token(key: Key | None = None, kid: str = "one", **claims: Any) -> str:
    """A JWT of the issuer, valid now."""
    now = int(time.time())
    content = {
        "iss": "https://login.example.com",
        "aud": "tokenpool",
        "sub": "alice",
        "iat": now,
        "exp": now + 600,
        "groups": ["ml"],
    }
    return signed(content | claims, key or rsa("a"), {"alg": "RS256", "kid": kid})


async def status(sidecar: Sidecar, key: str) -> int:
    return (await ask(sidecar, request(key=key))).status


async def test_a_jwt_is_charged_to_the_entitlement_of_its_claims(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pod = providers.kubernetes().claims["kubernetes.io"]
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server), log_requests=True) as sidecar,
    ):
        answers = [
            await ask(sidecar, request(key=token())),
            await ask(
                sidecar, request(key=token(**{"kubernetes.io": pod}, sub="system:serviceaccount:shop:a"))
            ),
            await ask(sidecar, request(key=None, headers={"x-api-key": token(groups=[], tenant="s")})),
            await ask(sidecar, request(key="e-key")),
        ]
        outcomes = [sidecar.telemetry.outcomes(name) for name in "ges"]
        _, page = await admin(sidecar, "/metrics")

    assert [each.status for each in answers] == [200] * 4
    assert outcomes == [{"finished": 1}, {"finished": 2}, {"finished": 1}]
    assert not any("authorization" in each.headers for each in engine.received)
    credentials = [each.credential for each in caplog.records if each.getMessage() == "request"]  # type: ignore[attr-defined]
    assert credentials[:3] == ["corp/alice", "corp/system:serviceaccount:shop:a", "corp/alice"]
    for line in (
        'tokenpool_jwt_verified_total{issuer="corp",pool="chat"} 3.0',
        'tokenpool_jwks_keys{issuer="corp",pool="chat"} 1.0',
        'tokenpool_jwks_reads_total{issuer="corp",pool="chat",result="ok"} 1.0',
        'tokenpool_jwt_known{pool="chat"} 3.0',
    ):
        assert line in page
    assert 'tokenpool_jwks_age_seconds{issuer="corp",pool="chat"}' in page


async def test_a_jwt_is_refused_in_the_dialect_of_its_caller(engine: FakeEngine, tmp_path: Path) -> None:
    forged = token(rsa("evil"))
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
    ):
        chat = await ask(sidecar, request("/v1/chat/completions", CHAT, key=forged))
        message = await ask(
            sidecar, request("/v1/messages", MESSAGES, key=None, headers={"x-api-key": forged})
        )
        expired = await ask(sidecar, request(key=token(exp=int(time.time()) - 60)))
        beside = await ask(sidecar, request(key=forged, headers={"x-api-key": "e-key"}))
        plain = await ask(sidecar, request(key="nobody"))
        _, page = await admin(sidecar, "/metrics")

    assert [each.status for each in (chat, message, expired, beside, plain)] == [401, 401, 401, 200, 401]
    assert chat.error() == {
        "message": "the signature of the JWT is not valid",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert message.error() == {
        "type": "authentication_error",
        "message": "the signature of the JWT is not valid",
    }
    assert chat.headers["x-tokenpool-reason"] == "invalid_jwt"
    assert chat.headers["www-authenticate"].startswith("Bearer")
    assert chat.headers["x-should-retry"] == "false"
    assert expired.headers["x-tokenpool-reason"] == "expired_key"
    assert plain.headers["x-tokenpool-reason"] == "unknown_key"
    assert len(engine.received) == 1
    assert 'tokenpool_jwt_refused_total{issuer="corp",pool="chat",reason="signature"} 3.0' in page
    assert 'tokenpool_jwt_refused_total{issuer="corp",pool="chat",reason="expired"} 1.0' in page


async def test_an_invalid_jwt_never_makes_its_caller_anonymous(engine: FakeEngine, tmp_path: Path) -> None:
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=f"{pool(server)}anonymous: s\n") as sidecar,
    ):
        without = await ask(sidecar, request(key=None))
        forged = await ask(sidecar, request(key=token(rsa("evil"))))

    assert (without.status, forged.status) == (200, 401)


async def test_a_jwt_that_expires_on_an_open_connection_is_refused(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with key_server(keys=KEYS) as server:
        text = pool(server).replace("    audience:", "    clock_skew_s: 0\n    audience:")
        async with (
            asyncio.timeout(10.0),
            sidecar_for(engine.port, tmp_path, pool=text) as sidecar,
            connected(sidecar) as (reader, writer),
        ):
            ends_at = time.time() + 0.6
            lasting = token(exp=ends_at)
            served = 0
            while time.time() < ends_at - 0.1:
                writer.write(request(key=lasting))
                assert (await read_response(reader)).status == 200
                served += 1
            while (answer := await _once_more(reader, writer, lasting)).status == 200:
                served += 1

    assert served > 1
    assert answer.headers["x-tokenpool-reason"] == "expired_key"
    assert time.time() >= ends_at
    assert len(engine.received) == served


async def _once_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> Response:
    writer.write(request(key=key))
    return await read_response(reader)


async def test_a_rotated_key_is_read_and_the_old_one_is_refused_on_open_connections(
    engine: FakeEngine, tmp_path: Path
) -> None:
    new = token(rsa("next"), "two")
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        old = token()
        for _ in range(3):
            writer.write(request(key=old))
            assert (await read_response(reader)).status == 200
        server.pages["/keys"] = key_set(published(rsa("next"), kid="two"))
        refused = await ask(sidecar, request(key=new))
        [source] = sidecar.jwts.sources
        source.request_read()
        await until(lambda: source.reads["ok"] == 2)

        assert await status(sidecar, new) == 200
        writer.write(request(key=old))
        withdrawn = await read_response(reader)

    assert (refused.status, withdrawn.status) == (401, 401)
    assert "send it again in 10 s" in refused.error()["message"]
    assert len(server.asked) == 2


async def test_invented_key_ids_do_not_reach_the_issuer_at_once(engine: FakeEngine, tmp_path: Path) -> None:
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
    ):
        statuses = {await status(sidecar, token(kid=f"invented-{number}")) for number in range(20)}

        assert await status(sidecar, token()) == 200

    assert statuses == {401}
    assert len(server.asked) == 1  # the next read is due 10 s after the first


async def test_an_issuer_that_is_away_at_the_start_keeps_nobody_else_out(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with key_server(keys=KEYS) as server:
        server.status = 500
        async with sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar:
            early = await ask(sidecar, request(key=token()))
            by_key = await status(sidecar, "g-key")
            _, ready = await admin(sidecar, "/readyz")
            server.status = 200
            async with asyncio.timeout(5.0):
                while await status(sidecar, token()) != 200:
                    await asyncio.sleep(0.05)
            _, later = await admin(sidecar, "/readyz")

    assert (early.status, early.headers["x-tokenpool-reason"], by_key) == (503, "jwt_unverified", 200)
    assert early.headers["retry-after"] == "1"
    assert "x-should-retry" not in early.headers
    assert "the keys of issuer 'corp' cannot be read" in json.loads(ready)["degraded"][0]
    assert "degraded" not in json.loads(later) or json.loads(later)["degraded"] == []


async def test_an_issuer_that_goes_away_later_changes_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
    ):
        server.status = 500
        [source] = sidecar.jwts.sources
        await source.read()

        assert await status(sidecar, token()) == 200
        assert source.problem is not None


async def test_no_request_waits_for_the_issuer(engine: FakeEngine, tmp_path: Path) -> None:
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
    ):
        server.holds.clear()  # it accepts connections, and answers nothing
        [source] = sidecar.jwts.sources
        reading = asyncio.ensure_future(source.read())
        await until(lambda: len(server.asked) == 2)

        assert await status(sidecar, token()) == 200
        assert await status(sidecar, token(kid="unknown")) == 401
        assert not reading.done()
        server.holds.set()
        await reading


async def test_a_changed_pool_file_changes_issuers_without_a_restart(
    engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "pool.yaml"
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        assert not sidecar.jwts.is_on
        before = await ask(sidecar, request(key=token()))

        file.write_text(pool(server))
        await sidecar.pool_file_watcher.reload()
        await until(lambda: bool(sidecar.jwts.sources[0].keys))
        writer.write(request(key=token()))
        added = await read_response(reader)

        file.write_text(pool(server, audience="another"))
        await sidecar.pool_file_watcher.reload()
        changed = [
            await _once_more(reader, writer, token()),
            await ask(sidecar, request(key=token(aud="another"))),
        ]

        file.write_text(pool(server).replace("value: ml", "value: other"))
        await sidecar.pool_file_watcher.reload()
        unmapped = await ask(sidecar, request(key=token()))

        file.write_text(POOL)
        await sidecar.pool_file_watcher.reload()
        removed = await ask(sidecar, request(key=token()))

    assert (before.status, added.status, unmapped.status, removed.status) == (401, 200, 401, 401)
    assert [each.status for each in changed] == [401, 200]
    assert "another audience" in changed[0].error()["message"]
    assert "no entitlement" in unmapped.error()["message"]
    assert removed.headers["x-tokenpool-reason"] == "unknown_key"
    assert len(server.asked) == 1  # the keys stayed while their place did


async def test_a_jwt_reaches_only_entitlements_of_its_group(engine: FakeEngine, tmp_path: Path) -> None:
    async with key_server(keys=KEYS) as server:
        text = (
            pool(server)
            .replace("    audience:", "    group_claim: [org, id]\n    audience:")
            .replace("tier: elastic,", "tier: elastic, group: team,")
        )
        text += "groups: [{name: acme, pool: chat}, {name: team, pool: chat, parent: acme}]\n"
        async with sidecar_for(engine.port, tmp_path, pool=text) as sidecar:
            statuses = [
                await status(sidecar, token(org={"id": group}))
                for group in ("acme", "team", ["other", "acme"], "other", ["acme2"], None, 7)
            ]
            ungrouped = await ask(sidecar, request(key=token(groups=[], tenant="s", org={"id": "acme"})))

    assert statuses == [200, 200, 200, 401, 401, 401, 401]
    assert "another group" in ungrouped.error()["message"]


async def test_keys_in_a_file_are_followed(engine: FakeEngine, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(KEYS)
    async with (
        key_server() as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server, keys=f"jwks_file: {keys}")) as sidecar,
    ):
        first = await status(sidecar, token())
        keys.write_bytes(key_set(published(rsa("next"), kid="two")))
        async with asyncio.timeout(5.0):
            while await status(sidecar, token(rsa("next"), "two")) != 200:
                await asyncio.sleep(0.05)
        last = await status(sidecar, token())

    assert (first, last, server.asked) == (200, 401, [])


async def test_a_service_without_issuers_knows_no_jwt() -> None:
    service = JwtService(time.monotonic, time.time)
    service.configure(PoolFile((), ()), "chat")
    await service.start()

    assert (service.find(token().encode()), list(service.metrics()), service.problems()) == (None, [], [])
    await service.stop()
