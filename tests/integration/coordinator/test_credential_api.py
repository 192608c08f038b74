"""The API for credentials over HTTP: tokens, errors, repeated requests, bounds, the table of changes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from coordinator.app import Coordinator
from coordinator.credentials import api
from coordinator.settings import Settings
from runtime.options import Addresses, SettingsError
from toolbox.redis import RedisProcess

TOKEN = "0123456789abcdef-alice"
POOL = """
pools:
  - {name: chat, models: [tiny], replica: {tokens_per_second: 1000, kv_tokens: 1000, concurrency: 4}}
  - {name: code, models: [coder], replica: {tokens_per_second: 1000, kv_tokens: 1000, concurrency: 4}}
entitlements:
  - {name: a, pool: chat, tier: elastic, api_keys: [a-key]}
  - {name: b, pool: code, tier: elastic, api_keys: [b-key]}
"""


class Api:
    """A client of a coordinator in this process."""

    def __init__(self, coordinator: Coordinator, session: aiohttp.ClientSession, redis: RedisProcess) -> None:
        self.coordinator = coordinator
        self.redis = redis
        self.session = session
        self.now = 1_700_000_000.0
        assert coordinator.keeper is not None
        self.keeper = coordinator.keeper
        self.keeper.wall_clock = lambda: self.now

    async def __call__(
        self, method: str, path: str, body: object = None, *, token: str | None = TOKEN
    ) -> tuple[int, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{self.coordinator.listens_on.port}{path}"
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.request(method, url, headers=headers, **sent) as response:  # type: ignore[arg-type]
            assert response.headers["Cache-Control"] == "no-store"
            return response.status, await response.json()


@pytest_asyncio.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "tokens").write_text(f"alice {TOKEN}\n")
    redis = RedisProcess(tmp_path).start()
    redis.wait_ready(10)
    try:
        coordinator = Coordinator(
            Settings(
                config=tmp_path / "pool.yaml",
                store=redis.url,
                listen=Addresses.of("127.0.0.1", 0),
                usage_store=str(tmp_path / "credentials.db"),
                administrator_tokens=tmp_path / "tokens",
            )
        )
        await coordinator.start()
        async with aiohttp.ClientSession() as session:
            yield Api(coordinator, session, redis)
        await coordinator.stop()
    finally:
        redis.kill()


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def test_a_key_is_shown_once_and_never_stored(ask: Api, tmp_path: Path) -> None:
    status, made = await ask("POST", "/v1/credentials", {"entitlement": "a", "concurrency": 2, "note": "ci"})

    assert status == 201
    key = made.pop("key")
    assert key.startswith("tp_")
    assert made["sha256"] == digest(key)
    shown = {name: made[name] for name in ("pool", "entitlement", "state", "concurrency", "note")}
    assert shown == {
        "pool": "chat", "entitlement": "a", "state": "active", "concurrency": 2, "note": "ci",
    }  # fmt: skip
    assert (made["created_by"], made["created_at"]) == ("alice", "2023-11-14T22:13:20.000Z")
    assert await ask("GET", f"/v1/credentials/{made['id']}") == (200, made)
    assert key.encode() not in b"".join(each.read_bytes() for each in tmp_path.glob("credentials.db*"))


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/credentials"),
        ("POST", "/v1/credentials"),
        ("PUT", "/v1/credentials/k"),
        ("DELETE", "/v1/credentials/k"),
        ("POST", "/v1/credentials/k/rotate"),
        ("GET", "/v1/credential-changes"),
    ],
)
async def test_without_a_valid_token_nothing_is_shown_or_changed(
    ask: Api, token: str | None, method: str, path: str
) -> None:
    status, answer = await ask(method, path, {"entitlement": "a"}, token=token)

    assert (status, list(answer)) == (401, ["error"])
    assert await ask.keeper.database.page("", 10) == []


async def test_the_token_can_be_replaced_while_the_coordinator_runs(ask: Api, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("bob fedcba9876543210-bob\n")
    ask.coordinator.request_reload()
    async with asyncio.timeout(5):
        while (await ask("GET", "/v1/credentials"))[0] != 401:
            await asyncio.sleep(0.02)
    status, _ = await ask("GET", "/v1/credentials", token="fedcba9876543210-bob")
    assert status == 200


async def test_a_request_with_a_digest_can_be_repeated(ask: Api) -> None:
    body = {"entitlement": "b", "sha256": digest("mine"), "expires_in_s": 60}
    first = await ask("PUT", "/v1/credentials/mine", body)
    ask.now += 5
    second = await ask("PUT", "/v1/credentials/mine", body)

    assert (first[0], second[0], second[1]) == (201, 200, first[1])
    assert "key" not in first[1]
    assert first[1]["pool"] == "code"
    assert (await ask("PUT", "/v1/credentials/mine", body | {"sha256": digest("other")}))[0] == 409


async def test_a_key_is_rotated_with_an_overlap(ask: Api) -> None:
    quota = {"tokens": "5M", "per": "month", "timezone": "Europe/Berlin"}
    rights = {"entitlement": "a", "concurrency": 3, "expires_in_s": 1000, "quotas": [quota]}
    await ask("PUT", "/v1/credentials/old", rights)
    ask.now += 400
    body = {"id": "new", "sha256": digest("new"), "overlap_s": 100}

    status, made = await ask("POST", "/v1/credentials/old/rotate", body)

    assert status == 201
    assert (made["replaces"], made["concurrency"], made["entitlement"]) == ("old", 3, "a")
    assert made["quotas"] == [quota | {"tokens": 5e6}]
    assert made["expires_at"] == "2023-11-14T22:36:40.000Z"  # 1,000 s from now
    _, old = await ask("GET", "/v1/credentials/old")
    assert (old["state"], old["expires_at"]) == ("active", "2023-11-14T22:21:40.000Z")
    assert await ask("POST", "/v1/credentials/old/rotate", body) == (200, made)
    ask.now += 100
    status, answer = await ask("POST", "/v1/credentials/old/rotate", {})
    assert (status, answer["error"]) == (409, "the credential 'old' is expired; issue a new one")


async def test_a_rotation_without_a_body_makes_a_key(ask: Api) -> None:
    await ask("PUT", "/v1/credentials/old", {"entitlement": "a"})

    status, made = await ask("POST", "/v1/credentials/old/rotate", b"")

    assert (status, made["expires_at"]) == (201, None)
    assert made["sha256"] == digest(made["key"])


async def test_a_credential_is_revoked_once_and_each_change_is_in_the_table(
    ask: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="coordinator.credentials.keeper")
    await ask("PUT", "/v1/credentials/k", {"entitlement": "a"})
    first = await ask("DELETE", "/v1/credentials/k")
    ask.now += 60
    again = await ask("DELETE", "/v1/credentials/k")

    assert (first[0], first[1]["state"], again) == (200, "revoked", first)
    _, answer = await ask("GET", "/v1/credential-changes")
    shown = [(each["credential"], each["administrator"], each["change"]) for each in answer["changes"]]
    assert shown == [("k", "alice", "issued"), ("k", "alice", "revoked")]
    assert answer["after"] is None
    _, page = await ask("GET", "/v1/credential-changes?limit=1")
    _, later = await ask("GET", f"/v1/credential-changes?limit=1&after={page['after']}")
    assert page["changes"] + later["changes"] == answer["changes"]
    logged = [vars(each) for each in caplog.records if each.getMessage() == "a credential was changed"]
    assert [(each["change"], each["administrator"]) for each in logged] == [
        ("issued", "alice"), ("revoked", "alice"),
    ]  # fmt: skip


async def test_credentials_are_listed_by_entitlement_and_state(ask: Api) -> None:
    for number in range(6):
        body = {"entitlement": "ab"[number % 2], "expires_in_s": 10 if number < 2 else 1000}
        await ask("PUT", f"/v1/credentials/k{number}", body)
    await ask("DELETE", "/v1/credentials/k5")
    ask.now += 10

    async def ids(query: str) -> tuple[list[str], str | None]:
        status, answer = await ask("GET", f"/v1/credentials?{query}")
        assert status == 200
        return [each["id"] for each in answer["credentials"]], answer["after"]

    assert await ids("") == (["k0", "k1", "k2", "k3", "k4", "k5"], None)
    assert await ids("limit=2") == (["k0", "k1"], "k1")
    assert await ids("limit=2&after=k1") == (["k2", "k3"], "k3")
    assert await ids("entitlement=b") == (["k1", "k3", "k5"], None)
    assert await ids("pool=code&state=active") == (["k3"], None)
    assert await ids("state=active&limit=2") == (["k2", "k3"], "k3")
    assert await ids("state=expired") == (["k0", "k1"], None)
    assert await ids("state=revoked") == (["k5"], None)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("k", b"{", 400, "the body cannot be used"),
        ("k", b"\xff", 400, "the body cannot be used"),
        ("k", {"entitlement": "a", "x": 1}, 400, "unknown field `x`"),
        ("k", {}, 400, "missing required field `entitlement`"),
        ("k", {"entitlement": 3}, 400, "Expected `str`"),
        ("k", {"entitlement": "z"}, 422, "no entitlement 'z'"),
        ("k", {"entitlement": "a", "concurrency": 0}, 422, "concurrency is 0"),
        ("k", {"entitlement": "a", "quotas": [{"tokens": "5B", "per": "day"}]}, 422, "tokens is '5B'"),
        ("k", {"entitlement": "a", "quotas": [{"tokens": 5}]}, 422, "has no per"),
        ("k", {"entitlement": "a", "sha256": "abc"}, 422, "not a SHA-256 digest"),
        ("k", {"entitlement": "a", "expires_in_s": -1}, 422, "not in the future"),
        ("k", {"entitlement": "a", "expires_in_s": 1e12}, 422, "more than 20 years"),
        ("k", {"entitlement": "a", "expires_at": "2030-01-01"}, 422, "expires_at is '2030-01-01'"),
        ("k", {"entitlement": "a", "expires_at": "soon"}, 422, "expires_at is 'soon'"),
        (
            "k",
            {"entitlement": "a", "expires_at": "2030-01-01T00:00:00Z", "expires_in_s": 1},
            422,
            "both given",
        ),
        ("k", {"entitlement": "a", "id": "l"}, 422, "the body has the id 'l', and the path 'k'"),
        ("a%20b", {"entitlement": "a"}, 422, "an id has 1 to 64"),
        ("k", {"entitlement": "a", "note": "x" * 201}, 422, "note has 201 characters"),
        ("k", {"entitlement": "a", "note": "a\0b"}, 422, "note has a line break or another control"),
        ("k", b" " * (api.MOST_BODY_BYTES + 1), 413, "more than 16384 bytes"),
    ],
)
async def test_a_wrong_request_is_explained(
    ask: Api, path: str, body: object, status: int, words: str
) -> None:
    found, answer = await ask("PUT", f"/v1/credentials/{path}", body)

    assert (found, words in answer["error"]) == (status, True), answer
    assert await ask.keeper.database.page("", 10) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/credentials?limit=0", 400),
        ("/v1/credentials?limit=501", 400),
        ("/v1/credentials?state=x", 400),
        ("/v1/credential-changes?after=x", 400),
        ("/v1/credentials/none", 404),
    ],
)
async def test_a_wrong_question_is_explained(ask: Api, path: str, status: int) -> None:
    assert (await ask("GET", path))[0] == status


async def test_changes_and_wrong_tokens_are_bounded(ask: Api) -> None:
    wrong = [(await ask("GET", "/v1/credentials", token="x"))[0] for _ in range(40)]
    assert set(wrong) == {401, 429}
    right = [(await ask("DELETE", "/v1/credentials/none"))[0] for _ in range(int(api.CHANGES_AT_ONCE) + 200)]
    assert right[0] == 404  # the wrong tokens of others do not matter
    assert 429 in right
    assert (await ask("GET", "/v1/credentials"))[0] == 200


async def test_without_the_lease_store_nothing_is_confirmed(ask: Api) -> None:
    await ask("PUT", "/v1/credentials/k", {"entitlement": "a"})
    ask.redis.kill()

    answers = [
        await ask("PUT", "/v1/credentials/l", {"entitlement": "a"}),
        await ask("DELETE", "/v1/credentials/k"),
        await ask("POST", "/v1/credentials/k/rotate", {}),
    ]

    assert [status for status, _ in answers] == [503] * 3
    assert all("nothing is confirmed; try again" in answer["error"] for _, answer in answers)
    status, shown = await ask("GET", "/v1/credentials/k")
    assert (status, shown["state"]) == (200, "active")


@pytest.mark.parametrize("name", ["tokens", "missing"])
async def test_wrong_files_of_tokens_are_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "tokens").write_text("short")
    settings = Settings(
        config=tmp_path / "pool.yaml", store="redis://127.0.0.1:1", administrator_tokens=tmp_path / name
    )
    with pytest.raises(SettingsError, match="--administrator-tokens: "):
        Coordinator(settings)


async def test_without_the_option_there_is_no_api(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    coordinator = Coordinator(Settings(config=tmp_path / "pool.yaml", store="redis://127.0.0.1:1"))
    assert coordinator.keeper is None
