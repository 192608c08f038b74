"""JWTs cost a request little, and a sidecar without issuers nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.controller.authentication import Authenticator
from sidecar.decisions import Refusal
from sidecar.dialects.routes import ROUTES
from tests.fakes.scripted_engine import FakeEngine
from tests.integration.sidecar.jwt.test_jwts import KEYS, pool, token
from tests.support.harness import sidecar_for
from tests.support.key_server import key_server
from tests.support.sidecar_builders import head
from tokenpool.accounting.account import Account
from toolbox.percentiles import percentile

PROGRAM = """
import sys
{first}
from pathlib import Path
from runtime.options import Origin
from sidecar.app import Sidecar
from sidecar.configuration import ConfigurationInvalid
from sidecar.settings import Settings
try:
    Sidecar(Settings(config=Path(sys.argv[1]), upstream=Origin("127.0.0.1", 1)))
except ConfigurationInvalid as error:
    print(error)
print([name for name in ("joserfc", "cryptography", "sidecar.jwt.verifier") if sys.modules.get(name)])
"""
MISSING = "sys.modules['joserfc'] = None"
"""Import it as if it were not installed."""
PLAIN = (
    "pools: [{name: chat, models: [m]}]\nentitlements: [{name: e, pool: chat, tier: spot, api_keys: [k]}]\n"
)
ISSUERS = (
    "issuers: [{name: corp, issuer: 'https://a.example', audience: x, entitlements: [{entitlement: e}]}]\n"
)


@pytest.mark.parametrize(
    ("text", "first", "expected"),
    [
        (PLAIN, "", ["[]"]),
        (PLAIN, MISSING, ["[]"]),
        (PLAIN + ISSUERS, "", ["['joserfc', 'cryptography', 'sidecar.jwt.verifier']"]),
        (
            PLAIN + ISSUERS,
            MISSING,
            [
                "issuer 'corp': JWTs need joserfc, which is not installed: pip install 'tokenpool[jwt]', or"
                " remove issuers",
                "[]",
            ],
        ),
    ],
)
def test_the_library_is_needed_with_issuers_only(
    tmp_path: Path, text: str, first: str, expected: list[str]
) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(text)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first), str(file)],
        capture_output=True,
        check=True,
        text=True,
    )

    assert done.stdout.splitlines() == expected


@pytest.mark.exclusive
async def test_a_known_jwt_adds_at_most_20_microseconds(engine: FakeEngine, tmp_path: Path) -> None:
    async with (
        key_server(keys=KEYS) as server,
        sidecar_for(engine.port, tmp_path, pool=pool(server)) as sidecar,
    ):
        authenticator = sidecar.controller.authenticator
        known = [token(jti=str(number)).encode() for number in range(100)]
        for each in known:
            assert isinstance(_account(authenticator, each), Account)

        by_jwt = _times_us(lambda number: _account(authenticator, known[number % 100]))
        by_key = _times_us(lambda number: _account(authenticator, b"g-key"))

    added_us = percentile(by_jwt, 0.95) - percentile(by_key, 0.95)
    assert added_us <= 20.0


def _account(authenticator: Authenticator, key: bytes) -> Account | Refusal | None:
    path = b"/v1/completions"
    return authenticator.account(head(path, (b"authorization", b"Bearer " + key)), ROUTES[path])


def _times_us(work: Callable[[int], object]) -> list[float]:
    times = []
    for number in range(10_000):
        began_at = time.perf_counter_ns()
        work(number)
        times.append((time.perf_counter_ns() - began_at) / 1000)
    return times
