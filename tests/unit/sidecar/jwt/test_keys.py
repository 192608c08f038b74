"""A published key set: what is used of it, and what is not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.jwt.keys import MOST_KEYS, MOST_SAME_ID, KeySet, KeysUnusable
from tests.support import providers
from tests.support.providers import ec, ed, key_set, published, rsa

GOOD = published(rsa("a"), kid="one")


def read(*keys: Any) -> KeySet:
    made = KeySet()
    made.replace(json.dumps({"keys": keys}).encode())
    return made


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "AAAA", "kid": "one"},
        GOOD | {"use": "enc"},
        GOOD | {"key_ops": ["sign"]},
        GOOD | {"key_ops": "verify"},
        GOOD | {"kid": 7},
        GOOD | {"kid": "k" * 300},
        GOOD | {"n": "AQAB"},
        GOOD | {"n": "A" * 2000},
        GOOD | {"n": 7},
        GOOD | {"e": "!"},
        {name: value for name, value in GOOD.items() if name != "e"},
        dict(rsa("a").as_dict(private=True)),
        GOOD | {"n": GOOD["n"][:171]},  # 1,024 bits
        published(ec()) | {"crv": "P-999"},
        published(ec()) | {"x": "AAAA"},
        published(ed()) | {"x": "AAAA"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": ["RSA"]},
        "text",
        None,
        7,
    ],
    ids=[f"key{number}" for number in range(21)],
)
def test_a_key_that_cannot_check_signatures_is_left_out(key: Any) -> None:
    assert len(read(key, GOOD | {"kid": "good"})) == 1
    with pytest.raises(KeysUnusable, match="none of its 1 keys"):
        read(key)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON document"),
        (b"\xff", "not a JSON document"),
        (b"[" * 100_000, "not a JSON document"),
        (b"[]", "no list"),
        (b'{"keys": {}}', "no list"),
        (b'{"keys": []}', "none of its 0 keys"),
        (json.dumps({"keys": [GOOD] * (MOST_KEYS + 1)}).encode(), "more than 100"),
        (b"<html>login</html>", "not a JSON document"),
    ],
)
def test_a_document_that_is_no_key_set_changes_nothing(content: bytes, reason: str) -> None:
    keys = read(GOOD)
    [before] = keys.candidates("one", "RS256")

    with pytest.raises(KeysUnusable, match=reason):
        keys.replace(content)

    assert keys.candidates("one", "RS256") == [before]
    assert before.is_in_force


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
    | st.dictionaries(
        st.sampled_from(["kty", "n", "e", "crv", "x", "y", "use", "alg", "kid", "d"]),
        st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", GOOD["n"], "sig", 1, None]),
    )
)
def test_no_key_raises_another_error(key: Any) -> None:
    with contextlib.suppress(KeysUnusable):
        read(key)


@pytest.mark.parametrize("name", ["google", "entra", "keycloak", "kubernetes"])
def test_the_signing_keys_of_real_providers_are_found(name: str) -> None:
    provider = getattr(providers, name)()
    keys = KeySet()
    keys.replace(provider.key_set())

    assert len(keys) == sum(key.get("use") == "sig" for key in provider.keys)
    assert len(keys.candidates(provider.header["kid"], "RS256")) == 1
    assert keys.candidates(provider.header["kid"], "ES256") == []


def test_the_algorithm_of_a_key_binds() -> None:
    keys = read(GOOD | {"alg": "RS512"}, published(ec("a", "P-384"), kid="curve"))

    assert len(keys.candidates("one", "RS512")) == 1
    assert keys.candidates("one", "RS256") == []
    assert keys.candidates("one", "HS256") == []
    assert keys.candidates("one", "none") == []
    assert len(keys.candidates("curve", "ES384")) == 1
    assert keys.candidates("curve", "ES256") == []


def test_a_key_that_is_published_again_stays_the_same() -> None:
    keys = read(GOOD)
    [before] = keys.candidates("one", "RS256")

    assert not keys.replace(key_set(dict(reversed(GOOD.items()))))
    assert keys.replace(key_set(published(rsa("b"), kid="two"), GOOD))

    assert keys.candidates("one", "RS256") == [before]
    assert before.is_in_force
    assert keys.replace(key_set(published(rsa("b"), kid="two")))
    assert not before.is_in_force
    assert keys.candidates("one", "RS256") == []


def test_the_keys_of_one_id_are_bounded() -> None:
    curves = [published(ec(str(number)), kid="one") for number in range(MOST_SAME_ID + 2)]

    assert len(read(*curves).candidates("one", "ES256")) == MOST_SAME_ID


def test_retired_keys_are_gone() -> None:
    keys = read(GOOD)
    [before] = keys.candidates("one", "RS256")

    keys.retire()

    assert (len(keys), before.is_in_force) == (0, False)
