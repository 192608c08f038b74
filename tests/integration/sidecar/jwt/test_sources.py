"""Keys are read from a URL, a discovery document or a file, and a failure leaves the last ones in force."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sidecar.jwt.schedule import KEPT_FOR_S
from sidecar.jwt.sources import MOST_DOCUMENT_BYTES, KeySource
from tests.support import providers
from tests.support.harness import until
from tests.support.key_server import KeyServer, key_server
from tests.support.providers import key_set, published, rsa
from tokenpool.entitlements import Issuer

KEYS = key_set(published(rsa("a"), kid="one"))


class Case:
    """A source with a clock that the test moves."""

    def __init__(self, **fields: Any) -> None:
        self.now = 0.0
        self.changes = 0
        issuer = Issuer("corp", fields.pop("issuer", "https://a.example"), ("x",), (), **fields)
        self.source = KeySource(issuer, lambda: self.now, 0.0, self._changed)

    def _changed(self) -> None:
        self.changes += 1


async def test_keys_are_read_from_a_url() -> None:
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        await case.source.read()

    assert len(case.source.keys) == 1
    assert (case.source.problem, case.source.reads, case.changes) == (None, {"ok": 1, "failed": 0}, 1)
    assert case.source.first_read.is_set()
    assert server.asked == [("/keys", None)]
    case.now = 7.0
    assert case.source.age_s == 7.0


async def test_the_discovery_document_leads_to_the_keys() -> None:
    async with key_server(keys=KEYS) as server:
        document = providers.keycloak().discovery | {"issuer": server.url, "jwks_uri": f"{server.url}/keys"}
        server.pages["/.well-known/openid-configuration"] = json.dumps(document).encode()
        case = Case(issuer=server.url)
        await case.source.read()

    assert (len(case.source.keys), case.source.problem) == (1, None)
    assert [path for path, _ in server.asked] == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"issuer": "https://evil.example"}, "is the document of another issuer"),
        ({"issuer": None}, "is the document of another issuer"),
        ({"jwks_uri": "http://evil.example/keys"}, "names no jwks_uri with https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "names no jwks_uri with https://"),
        ({"jwks_uri": 7}, "names no jwks_uri with https://"),
    ],
)
async def test_an_unfit_discovery_document_is_refused(change: dict[str, Any], reason: str) -> None:
    async with key_server() as server:
        document = {"issuer": server.url, "jwks_uri": f"{server.url}/keys"} | change
        server.pages["/.well-known/openid-configuration"] = json.dumps(document).encode()
        case = Case(issuer=server.url)
        await case.source.read()

    assert case.source.problem is not None
    assert reason in case.source.problem
    assert len(server.asked) == 1


async def test_a_discovery_document_may_be_missing_or_no_json() -> None:
    async with key_server() as server:
        case = Case(issuer=server.url)
        await case.source.read()
        assert "openid-configuration answers 404" in str(case.source.problem)
        server.pages["/.well-known/openid-configuration"] = b"[]"
        await case.source.read()
        assert "is not a JSON object" in str(case.source.problem)
        server.pages["/.well-known/openid-configuration"] = b"<html>"
        await case.source.read()
        assert "is not a JSON object" in str(case.source.problem)


async def test_the_token_of_the_sidecar_is_sent_and_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys", token_file=str(file))
        await case.source.read()
        assert f"{file}: No such file" in str(case.source.problem)
        for text in ("first\n", "second"):
            file.write_text(text)
            await case.source.read()

    assert server.asked == [("/keys", "Bearer first"), ("/keys", "Bearer second")]


async def test_authorities_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    case = Case(jwks_url="https://127.0.0.1:1/keys", ca_file=str(tmp_path / "ca.crt"))

    await case.source.read()

    assert "ca_file" in str(case.source.problem)


def answers_500(server: KeyServer) -> None:
    server.status = 500


def redirects(server: KeyServer) -> None:
    server.status, server.headers = 302, {"location": "/keys2"}
    server.pages["/keys2"] = KEYS


def is_too_long(server: KeyServer) -> None:
    server.pages["/keys"] = b" " * MOST_DOCUMENT_BYTES + KEYS


def is_no_key_set(server: KeyServer) -> None:
    server.pages["/keys"] = b"<html>maintenance</html>"


def has_no_keys(server: KeyServer) -> None:
    server.pages["/keys"] = b'{"keys": []}'


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (answers_500, "answers 500"),
        (redirects, "answers 302"),
        (is_too_long, f"has more than {MOST_DOCUMENT_BYTES} bytes"),
        (is_no_key_set, "it is not a JSON document"),
        (has_no_keys, "none of its 0 keys"),
    ],
)
async def test_a_failure_leaves_the_last_keys_in_force(
    fault: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        await case.source.read()
        fault(server)
        for _ in range(3):
            await case.source.read()

    assert len(case.source.keys) == 1
    assert case.source.problem is not None
    assert reason in case.source.problem
    assert case.source.reads == {"ok": 1, "failed": 3}
    [logged] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "the last ones stay in force" in logged.getMessage()


async def test_a_server_that_is_away_is_reported_and_its_return_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    case = Case(jwks_url="http://127.0.0.1:1/keys")
    await case.source.read()
    assert (len(case.source.keys), case.changes) == (0, 0)
    assert "its JWTs are refused" in caplog.text

    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        server.status = 503
        await case.source.read()
        server.status = 200
        await case.source.read()

    assert case.source.problem is None
    assert "the keys of issuer corp are in force" in caplog.text


async def test_keys_lapse_after_a_day_without_the_issuer() -> None:
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        await case.source.read()
        server.status = 500
        case.now = KEPT_FOR_S
        await case.source.read()
        assert len(case.source.keys) == 1
        case.now = KEPT_FOR_S + 1.0
        await case.source.read()

    assert (len(case.source.keys), case.changes) == (0, 2)


async def test_the_same_keys_are_no_change() -> None:
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        for _ in range(3):
            await case.source.read()

    assert (case.changes, case.source.reads["ok"]) == (1, 3)


async def test_a_file_is_read_and_followed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    case = Case(jwks_file=str(file))
    await case.source.read()
    assert f"{file}: No such file" in str(case.source.problem)

    file.write_bytes(KEYS)
    await case.source.read()
    assert len(case.source.keys) == 1
    file.write_bytes(b" " * MOST_DOCUMENT_BYTES + KEYS)
    await case.source.read()
    assert "has more than" in str(case.source.problem)
    case.source.ask()  # a file is followed, so nobody needs to ask
    assert len(case.source.keys) == 1


async def test_an_unknown_key_id_leads_to_a_read_in_the_background() -> None:
    async with key_server(keys=KEYS) as server:
        case = Case(jwks_url=f"{server.url}/keys")
        task = asyncio.ensure_future(case.source.run())
        await until(lambda: case.source.reads["ok"] == 1)
        case.now = 100.0
        case.source.ask()
        await until(lambda: case.source.reads["ok"] == 2)
        case.source.request_read()
        await until(lambda: case.source.reads["ok"] == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert len(server.asked) == 3


async def test_a_file_is_read_when_the_operator_wants_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(KEYS)
    case = Case(jwks_file=str(file))
    task = asyncio.ensure_future(case.source.run())
    await until(lambda: case.source.reads["ok"] == 1)
    case.source.request_read()
    await until(lambda: case.source.reads["ok"] == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
