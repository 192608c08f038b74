"""Identity: the credentials that the keys of a pool file become."""

from __future__ import annotations

import hashlib
import math

from sidecar.decisions import Refusal
from sidecar.identity import Credential, digests, has_ended
from tests.support.sidecar_builders import controller, head
from tokenpool.entitlements import KeyRef
from tokenpool.outcomes import Reason
from tokenpool.poolfile.reading import parse

EXPIRY = 1801414800.0
POOL = """
pools:
  - {name: chat, models: [tiny], replica: {tokens_per_second: 1000, kv_tokens: 1000, concurrency: 8}}
entitlements:
  - name: a
    pool: chat
    tier: elastic
    api_keys:
      - plain-key
      - {file: long-key, id: a-2, expires: 2027-01-31T17:00:00Z, concurrency: 3}
  - {name: b, pool: chat, tier: elastic, api_keys: [b-key]}
administrator_keys: [{file: root-key, id: root, expires: 2027-01-31T17:00:00Z}]
"""


class Tokens:
    """Another source of credentials."""

    def __init__(self, **known: Credential) -> None:
        self.known = known

    def find(self, key: bytes) -> Credential | None:
        return self.known.get(key.decode())


def bearer(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + key.encode())


def value(ref: KeyRef) -> str:
    return ref.value


def test_a_key_has_the_id_expiry_and_limit_of_the_pool_file() -> None:
    made = digests(parse(POOL).file.entitlements, value)

    digest = hashlib.sha256(b"plain-key")
    plain, long = made[digest.digest()], made[hashlib.sha256(b"long-key").digest()]
    assert (plain.entitlement, plain.id, plain.ends_at, plain.concurrency) == (
        "a", digest.hexdigest()[:8], math.inf, 0,
    )  # fmt: skip
    assert (long.entitlement, long.id, long.ends_at, long.concurrency) == ("a", "a-2", EXPIRY, 3)


def test_a_credential_ends_at_its_time() -> None:
    credential = Credential("a", "a-2", EXPIRY)

    assert [has_ended(credential, lambda now=now: now) for now in (EXPIRY - 1, EXPIRY)] == [False, True]
    assert not has_ended(Credential("a"), lambda: math.inf)


def test_authentication_names_the_credential_and_refuses_an_expired_one() -> None:
    made = controller(POOL)
    made.authenticator.wall_clock = lambda: EXPIRY - 1
    asked = head(b"/v1/completions", bearer("long-key"))

    assert not isinstance(made.authorize(asked), Refusal)
    assert asked.credential_id == "a-2"

    made.authenticator.wall_clock = lambda: EXPIRY
    late = head(b"/v1/completions", bearer("long-key"))
    refusal = made.authorize(late)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.account) == (Reason.EXPIRED_KEY, made.accounts["a"])
    assert (late.credential_id, "'a-2' has expired" in refusal.message) == ("a-2", True)


def test_of_two_keys_of_one_entitlement_the_valid_one_counts() -> None:
    made = controller(POOL)
    made.authenticator.wall_clock = lambda: EXPIRY
    both = head(b"/v1/completions", bearer("long-key"), (b"x-api-key", b"plain-key"))

    assert not isinstance(made.authorize(both), Refusal)
    assert both.credential_id == hashlib.sha256(b"plain-key").hexdigest()[:8]


def test_an_expired_administrators_key_is_refused() -> None:
    made, route = controller(POOL), b"/v1/load_lora_adapter"
    made.authenticator.wall_clock = lambda: EXPIRY - 1
    asked = head(route, bearer("root-key"))
    assert not isinstance(made.authorize(asked), Refusal)
    assert asked.credential_id == "root"

    made.authenticator.wall_clock = lambda: EXPIRY
    assert isinstance(made.authorize(head(route, bearer("root-key"))), Refusal)


def test_other_sources_are_asked_after_the_pool_file() -> None:
    made = controller(POOL)
    tokens = {"b-key": Credential("a", "shadowed"), "token": Credential("b", "issuer/me")}
    made.authenticator.sources.append(Tokens(**tokens))
    found = []
    for key in ("b-key", "token"):
        asked = head(b"/v1/completions", bearer(key))
        decided = made.authorize(asked)
        assert not isinstance(decided, Refusal)
        assert decided[1] is not None
        found.append((decided[1].entitlement.name, asked.credential_id))

    assert found == [("b", hashlib.sha256(b"b-key").hexdigest()[:8]), ("b", "issuer/me")]
    unknown = made.authorize(head(b"/v1/completions", bearer("other")))
    assert isinstance(unknown, Refusal)
    assert unknown.reason is Reason.UNKNOWN_KEY


def test_a_source_may_name_an_entitlement_that_does_not_exist() -> None:
    made = controller(POOL)
    made.authenticator.sources.append(Tokens(token=Credential("gone", "issuer/me")))

    refusal = made.authorize(head(b"/v1/completions", bearer("token")))

    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.UNKNOWN_KEY
