"""JWTs are accepted or refused for the right reason, whatever is sent, and the work for them is bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions import Refusal
from sidecar.identity import Credential
from sidecar.jwt import verifier as module
from sidecar.jwt.keys import KeySet
from sidecar.jwt.problems import JwtProblem
from sidecar.jwt.verifier import JwtVerifier, KnownIssuer
from tests.support import providers
from tests.support.providers import NOW, b64, ec, ed, key_set, published, rsa, signed, signed_by_secret
from tokenpool.entitlements import ClaimRule, Issuer
from tokenpool.outcomes import Reason

ISSUER = Issuer(
    "corp",
    "https://login.example.com",
    ("tokenpool",),
    (ClaimRule(("groups",), "ml", "gold"), ClaimRule(("tenant",))),
)
OTHER = Issuer("other", "https://other.example.com", ("tokenpool",), (ClaimRule(entitlement="spot"),))
HEADER = {"alg": "RS256", "kid": "one", "typ": "JWT"}
CLAIMS = {
    "iss": "https://login.example.com",
    "aud": "tokenpool",
    "sub": "alice",
    "exp": NOW + 600,
    "iat": NOW - 60,
    "groups": ["ml", "staff"],
}


@dataclass
class Case:
    """A verifier with two issuers, and hand-moved clocks."""

    wall: float = NOW
    now: float = 100.0
    step: float = 0.0
    """CPU seconds of each check."""
    cpu: float = 0.0
    asked: list[str] = field(default_factory=list)
    keys: KeySet = field(default_factory=KeySet)
    other_keys: KeySet = field(default_factory=KeySet)
    issuer: Issuer = ISSUER
    most: int = 1000

    def __post_init__(self) -> None:
        self.keys.replace(key_set(published(rsa("a"), kid="one")))
        self.other_keys.replace(key_set(published(rsa("b"), kid="one")))
        self.verifier = JwtVerifier(
            lambda: self.now, lambda: self.wall, self._cpu_clock, most_known=self.most, most_refused=self.most
        )
        self.configure(self.issuer)

    def configure(self, issuer: Issuer) -> None:
        self.verifier.configure(
            [
                KnownIssuer(issuer, self.keys, lambda: self.asked.append("corp")),
                KnownIssuer(OTHER, self.other_keys, lambda: self.asked.append("other")),
            ],
            dict.fromkeys(("gold", "spot", "search"), frozenset()),
        )

    def _cpu_clock(self) -> float:
        self.cpu += self.step
        self.now += self.step
        return self.cpu

    def find(self, token: str | bytes) -> Credential | Refusal | None:
        return self.verifier.find(token.encode() if isinstance(token, str) else token)

    def accepted(self, token: str) -> Credential:
        found = self.find(token)
        assert isinstance(found, Credential), found
        return found

    def problem(self, token: str | bytes) -> JwtProblem:
        """The reason why a token is refused."""
        before = self.verifier.refused.copy()
        found = self.find(token)
        assert isinstance(found, Refusal), found
        [(_, problem)] = (self.verifier.refused - before).keys()
        return problem


@pytest.fixture
def case() -> Case:
    return Case()


def token(key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A JWT of the first issuer. A claim that is ``None`` is left out."""
    content = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return signed(content, key or rsa("a"), header or HEADER)


def test_a_valid_jwt_identifies_its_caller(case: Case) -> None:
    found = case.accepted(token())

    assert (found.entitlement, found.id) == ("gold", "corp/alice")
    assert found.ends_at == NOW + 600 + ISSUER.clock_skew_s
    assert case.verifier.verified == {"corp": 1}


def test_a_known_jwt_is_not_checked_again(case: Case) -> None:
    first = case.accepted(token())
    case.keys.retire()  # without news of it

    assert case.accepted(token()) is first
    assert case.verifier.verified == {"corp": 1}


@pytest.mark.parametrize("key", [b"sk-plain", b"", b"eyJhbGciOiJub25lIn0", b"a.b.c", b"\xff\xfe.x.y"])
def test_another_kind_of_key_is_left_to_the_key_ring(case: Case, key: bytes) -> None:
    assert case.find(key) is None
    assert not case.verifier.refused


PEM = rsa("a").public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = rsa("a").public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
JWK = json.dumps(published(rsa("a"), kid="one")).encode()
FORGED = {
    "alg none": (f"{b64({'alg': 'none', 'kid': 'one'})}.{b64(CLAIMS)}.", JwtProblem.ALGORITHM),
    "alg None": (f"{b64({'alg': 'None', 'kid': 'one'})}.{b64(CLAIMS)}.", JwtProblem.ALGORITHM),
    "no signature": (token().rpartition(".")[0] + ".", JwtProblem.SIGNATURE),
    "another key": (token(rsa("evil")), JwtProblem.SIGNATURE),
    "the key of another issuer": (token(rsa("b")), JwtProblem.SIGNATURE),
    "key confusion by PEM": (signed_by_secret(CLAIMS, PEM, HEADER | {"alg": "HS256"}), JwtProblem.ALGORITHM),
    "key confusion by DER": (signed_by_secret(CLAIMS, DER, HEADER | {"alg": "HS384"}), JwtProblem.ALGORITHM),
    "key confusion by JWK": (signed_by_secret(CLAIMS, JWK, HEADER | {"alg": "HS512"}), JwtProblem.ALGORITHM),
    "RS512 is not accepted": (token(header=HEADER | {"alg": "RS512"}), JwtProblem.ALGORITHM),
    "the algorithm of another kind of key": (
        signed(CLAIMS, ec(), HEADER | {"alg": "ES256"}),
        JwtProblem.KEY_ID,
    ),
    "kid as a path": (token(header=HEADER | {"kid": "../../../../dev/null"}), JwtProblem.KEY_ID),
    "kid as SQL": (token(header=HEADER | {"kid": "x' UNION SELECT 'k"}), JwtProblem.KEY_ID),
    "kid as a URL": (token(header=HEADER | {"kid": "https://evil.example/k"}), JwtProblem.KEY_ID),
    "kid as a command": (token(header=HEADER | {"kid": "one; id"}), JwtProblem.KEY_ID),
    "kid with a null": (token(header=HEADER | {"kid": "one\x00"}), JwtProblem.KEY_ID),
    "empty kid": (token(header=HEADER | {"kid": ""}), JwtProblem.KEY_ID),
    "kid as a number": (token(header=HEADER | {"kid": 1}), JwtProblem.MALFORMED),
    "kid as a list": (token(header=HEADER | {"kid": ["one"]}), JwtProblem.MALFORMED),
    "long kid": (token(header=HEADER | {"kid": "k" * 300}), JwtProblem.MALFORMED),
    "its own key in jwk": (
        token(rsa("evil"), HEADER | {"jwk": published(rsa("evil"), kid="one")}),
        JwtProblem.SIGNATURE,
    ),
    "its own key in jwk, no kid": (
        token(rsa("evil"), {"alg": "RS256", "jwk": published(rsa("evil"))}),
        JwtProblem.SIGNATURE,
    ),
    "its own keys at jku": (
        token(rsa("evil"), HEADER | {"jku": "https://evil.example"}),
        JwtProblem.SIGNATURE,
    ),
    "its own keys at x5u": (
        token(rsa("evil"), HEADER | {"x5u": "https://evil.example"}),
        JwtProblem.SIGNATURE,
    ),
    "its own certificate": (token(rsa("evil"), HEADER | {"x5c": ["MIIC"]}), JwtProblem.SIGNATURE),
    "crit": (token(header=HEADER | {"crit": ["b64"], "b64": False}), JwtProblem.MALFORMED),
    "crit of an unknown extension": (token(header=HEADER | {"crit": ["x"], "x": 1}), JwtProblem.MALFORMED),
    "nested": (signed(token(), rsa("a"), HEADER | {"cty": "JWT"}, "RS256"), JwtProblem.MALFORMED),
    "nested without cty": (signed(token(), rsa("a"), HEADER), JwtProblem.MALFORMED),
    "encrypted": ("eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d", JwtProblem.MALFORMED),
    "a logout token": (token(header=HEADER | {"typ": "logout+jwt"}), JwtProblem.MALFORMED),
    "a DPoP proof": (token(header=HEADER | {"typ": "dpop+jwt"}), JwtProblem.MALFORMED),
    "typ as a number": (token(header=HEADER | {"typ": 1}), JwtProblem.MALFORMED),
    "no alg": (signed(CLAIMS, rsa("a"), {"kid": "one"}, "RS256"), JwtProblem.MALFORMED),
    "alg as a list": (
        signed(CLAIMS, rsa("a"), {"alg": ["RS256"], "kid": "one"}, "RS256"),
        JwtProblem.MALFORMED,
    ),
    "two parts": ("eyJhbGciOiJSUzI1NiJ9.e30", JwtProblem.MALFORMED),
    "four parts": (token() + ".x", JwtProblem.MALFORMED),
    "empty parts": ("ey..", JwtProblem.MALFORMED),
    "padding": (token().replace(".", "=.", 1), JwtProblem.MALFORMED),
    "foreign characters": (token().replace(".", "!.", 1), JwtProblem.MALFORMED),
    "a line end": (token() + "\n", JwtProblem.MALFORMED),
    "a signature in another form": (token()[:-1] + chr(ord(token()[-1]) + 1), JwtProblem.MALFORMED),
    "a longer signature": (token() + "A", JwtProblem.SIGNATURE),
    "a header that is no JSON": (b64('{"alg": 1') + ".e30.x", JwtProblem.MALFORMED),
    "claims of another type": (signed("[]", rsa("a"), HEADER), JwtProblem.MALFORMED),
    "claims that are no JSON": (signed("{", rsa("a"), HEADER), JwtProblem.MALFORMED),
    "repeated claims": (
        signed(json.dumps(CLAIMS)[:-1] + ', "sub": "root"}', rsa("a"), HEADER),
        JwtProblem.MALFORMED,
    ),
    "repeated claims inside": (
        signed(json.dumps(CLAIMS)[:-1] + ', "a": {"b": 1, "b": 2}}', rsa("a"), HEADER),
        JwtProblem.MALFORMED,
    ),
    "repeated header": (
        signed(CLAIMS, rsa("a"), '{"alg": "RS256", "alg": "none", "kid": "one"}', "RS256"),
        JwtProblem.MALFORMED,
    ),
    "deep claims": (signed('{"a":' * 5000 + "1" + "}" * 5000, rsa("a"), HEADER), JwtProblem.MALFORMED),
    "too long": (token(pad="x" * 20_000), JwtProblem.MALFORMED),
    "NaN": (signed(json.dumps(CLAIMS | {"exp": float("nan")}), rsa("a"), HEADER), JwtProblem.MALFORMED),
    "UTF-16": (
        signed(json.dumps(CLAIMS).encode("utf-16").decode("latin-1"), rsa("a"), HEADER),
        JwtProblem.MALFORMED,
    ),
    "expired": (token(exp=NOW - 31), JwtProblem.EXPIRED),
    "not yet valid": (token(nbf=NOW + 31), JwtProblem.NOT_YET_VALID),
    "from the future": (token(iat=NOW + 31), JwtProblem.NOT_YET_VALID),
    "another audience": (token(aud="somebody-else"), JwtProblem.AUDIENCE),
    "other audiences": (token(aud=["a", "b"]), JwtProblem.AUDIENCE),
    "a longer audience": (token(aud="tokenpool-admin"), JwtProblem.AUDIENCE),
    "an empty audience": (token(aud=[]), JwtProblem.AUDIENCE),
    "an audience as a number": (token(aud=7), JwtProblem.AUDIENCE),
    "an audience inside": (token(aud={"tokenpool": 1}), JwtProblem.AUDIENCE),
    "another issuer": (token(iss="https://evil.example"), JwtProblem.ISSUER),
    "a similar issuer": (token(iss="https://login.example.com/"), JwtProblem.ISSUER),
    "an issuer as a list": (token(iss=["https://login.example.com"]), JwtProblem.ISSUER),
    "no issuer": (token(iss=None), JwtProblem.ISSUER),
    "no audience": (token(aud=None), JwtProblem.CLAIMS),
    "no expiry": (token(exp=None), JwtProblem.CLAIMS),
    "no subject": (token(sub=None), JwtProblem.CLAIMS),
    "an expiry as a text": (token(exp=str(NOW + 600)), JwtProblem.CLAIMS),
    "an expiry as true": (token(exp=True), JwtProblem.CLAIMS),
    "an expiry as a list": (token(exp=[NOW + 600]), JwtProblem.CLAIMS),
    "an empty subject": (token(sub=""), JwtProblem.CLAIMS),
    "a subject as a number": (token(sub=7), JwtProblem.CLAIMS),
    "a subject with a line end": (token(sub="alice\nroot"), JwtProblem.CLAIMS),
    "half a character": (token(sub="\ud800"), JwtProblem.CLAIMS),
    "a long subject": (token(sub="x" * 300), JwtProblem.CLAIMS),
    "no rule matches": (token(groups=["none"]), JwtProblem.ENTITLEMENT),
    "an entitlement of another pool": (token(groups=[], tenant="elsewhere"), JwtProblem.ENTITLEMENT),
    "two entitlements": (token(groups=[], tenant=["gold", "spot"]), JwtProblem.ENTITLEMENT),
    "an entitlement as a number": (token(groups=[], tenant=1), JwtProblem.ENTITLEMENT),
    "a group as a text inside": (token(groups="my-ml-group"), JwtProblem.ENTITLEMENT),
    "a group as an object": (token(groups={"ml": True}), JwtProblem.ENTITLEMENT),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_unfit_jwt_is_refused(case: Case, name: str) -> None:
    forged, expected = FORGED[name]
    found = case.find(forged)

    assert isinstance(found, Refusal)
    [(_, problem)] = case.verifier.refused
    assert problem is expected
    assert found.reason is (Reason.EXPIRED_KEY if expected is JwtProblem.EXPIRED else Reason.INVALID_JWT)
    assert found.reason.status == 401
    assert len(case.verifier) == 0


@pytest.mark.parametrize("name", FORGED)
def test_a_message_quotes_nothing_of_the_jwt_and_names_nothing_that_is_accepted(
    case: Case, name: str
) -> None:
    found = case.find(FORGED[name][0])

    assert isinstance(found, Refusal)
    for secret in ("evil", "example", "tokenpool", "alice", "gold", "corp", "one'", "ml", "RS256", "ES256"):
        assert secret not in found.message.replace("send", "")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa("a"), "RS256"),
        (rsa("a"), "PS256"),
        (rsa("a"), "RS512"),
        (ec("a"), "ES256"),
        (ec("a", "P-384"), "ES384"),
        (ec("a", "P-521"), "ES512"),
        (ed("a"), "EdDSA"),
        (ed("a"), "Ed25519"),
    ],
)
def test_each_algorithm_that_a_pool_file_may_name_is_checked(key: Any, algorithm: str) -> None:
    case = Case(issuer=replace(ISSUER, algorithms=(algorithm,)))
    case.keys.replace(key_set(published(key, kid="one")))
    good = token(key, HEADER | {"alg": algorithm})
    head, signature = good[:-20], good[-20:]
    bad = head + signature.swapcase()

    assert case.accepted(good).entitlement == "gold"
    assert case.problem(bad) in (JwtProblem.SIGNATURE, JwtProblem.MALFORMED)


def test_two_issuers_with_the_same_key_id_have_their_own_keys(case: Case) -> None:
    other = {"iss": "https://other.example.com"}

    assert case.accepted(token(rsa("b"), **other)).id == "other/alice"
    assert case.problem(token(rsa("a"), **other)) is JwtProblem.SIGNATURE
    assert case.accepted(token(rsa("a"))).id == "corp/alice"


def test_a_jwt_without_key_id_needs_a_single_key_that_fits(case: Case) -> None:
    without = token(header={"alg": "RS256"})

    assert case.accepted(without).id == "corp/alice"
    case.keys.replace(key_set(published(rsa("a"), kid="one"), published(ec(), kid="two")))
    assert case.accepted(token(header={"alg": "RS256"}, jti="1")).id == "corp/alice"
    case.keys.replace(key_set(published(rsa("a"), kid="one"), published(rsa("b"), kid="two")))
    assert case.problem(token(header={"alg": "RS256"}, jti="2")) is JwtProblem.KEY_ID


@pytest.mark.parametrize("skew", [0.0, 0.5, 30.0])
def test_the_clock_skew_counts_at_both_ends(skew: float) -> None:
    case = Case(issuer=replace(ISSUER, clock_skew_s=skew))
    lasting = token(exp=NOW, nbf=NOW - 100)

    case.wall = NOW + skew - 0.001
    assert case.accepted(lasting).ends_at == NOW + skew
    case.wall = NOW + skew
    assert case.problem(lasting) is JwtProblem.EXPIRED
    assert case.problem(token(exp=NOW, nbf=NOW - 100, jti="new")) is JwtProblem.EXPIRED

    begins = {"nbf": NOW, "iat": NOW, "exp": NOW + 600}
    case.wall = NOW - skew - 0.001
    assert case.problem(token(**begins)) is JwtProblem.NOT_YET_VALID
    case.wall = NOW - skew
    case.now += module.REFUSED_FOR_S
    assert case.accepted(token(**begins)).entitlement == "gold"


def test_an_expiry_beyond_any_number_is_bounded(case: Case) -> None:
    huge = signed(json.dumps(CLAIMS).replace(str(NOW + 600), "9" * 400), rsa("a"), HEADER)

    assert case.accepted(huge).ends_at < NOW + 400 * 86400


def test_the_first_rule_that_matches_decides() -> None:
    rules = (
        ClaimRule(("realm", "roles"), "premium", "elsewhere"),  # of another pool, so it is skipped
        ClaimRule(("realm", "roles"), "premium", "gold"),
        ClaimRule(("https://claims.example/tenant",)),
        ClaimRule(entitlement="spot"),
    )
    case = Case(issuer=replace(ISSUER, rules=rules))

    def name(**claims: Any) -> str:
        return case.accepted(token(**claims)).entitlement

    assert name(realm={"roles": ["basic", "premium"]}) == "gold"
    assert name(realm={"roles": "premium"}) == "gold"
    assert name(realm={"roles": ["basic"]}) == "spot"
    assert name(realm=["roles"]) == "spot"
    assert name(**{"https://claims.example/tenant": "search"}) == "search"
    assert name(**{"https://claims.example/tenant": ["search"]}) == "search"
    assert name(**{"https://claims.example/tenant": "unknown"}) == "spot"


def test_the_subject_may_be_in_another_claim() -> None:
    case = Case(issuer=replace(ISSUER, subject=("kubernetes.io", "serviceaccount", "name")))

    found = case.accepted(token(sub=None, **{"kubernetes.io": {"serviceaccount": {"name": "shöp"}}}))

    assert found.id == "corp/shöp"


PROVIDERS = {
    "google": (providers.google, ClaimRule(("hd",), "example.com", "gold"), "110000000000000000001"),
    "entra": (
        providers.entra,
        ClaimRule(("groups",), "00000000-aaaa-0000-0000-000000000002", "gold"),
        "12121212-3434-5656-7878-909090909090",
    ),
    "keycloak": (
        providers.keycloak,
        ClaimRule(("realm_access", "roles"), "ml-premium", "gold"),
        "c0ffee00-1111-2222-3333-444444444444",
    ),
    "kubernetes": (
        providers.kubernetes,
        ClaimRule(("kubernetes.io", "namespace"), "shop", "gold"),
        "system:serviceaccount:shop:checkout",
    ),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_documents_of_real_providers_are_read(name: str) -> None:
    make, rule, subject = PROVIDERS[name]
    provider = make()
    audience = provider.claims["aud"]
    audiences = (audience if isinstance(audience, str) else audience[0],)
    issuer = Issuer(name, provider.issuer, audiences, (rule,))
    keys = KeySet()
    keys.replace(provider.key_set())
    verifier = JwtVerifier(lambda: 0.0, lambda: NOW, lambda: 0.0)
    verifier.configure([KnownIssuer(issuer, keys, lambda: None)], {"gold": frozenset()})

    found = verifier.find(provider.token().encode())
    other = verifier.find(provider.token(aud="another").encode())

    assert isinstance(found, Credential)
    assert (found.entitlement, found.id) == ("gold", f"{name}/{subject}")
    assert isinstance(other, Refusal)
    assert other.reason is Reason.INVALID_JWT


# --- keys that change ---


def test_an_unknown_key_id_asks_for_the_keys_and_is_accepted_when_they_come(case: Case) -> None:
    rotated = token(rsa("next"), HEADER | {"kid": "two"})

    assert case.problem(rotated) is JwtProblem.KEY_ID
    assert case.asked == ["corp"]
    case.keys.replace(key_set(published(rsa("a"), kid="one"), published(rsa("next"), kid="two")))
    case.verifier.keys_changed()
    assert case.accepted(rotated).id == "corp/alice"


def test_a_retired_key_ends_its_credentials_and_no_others(case: Case) -> None:
    case.keys.replace(key_set(published(rsa("a"), kid="one"), published(rsa("next"), kid="two")))
    old, new = token(), token(rsa("next"), HEADER | {"kid": "two"})
    before, after = case.accepted(old), case.accepted(new)

    case.keys.replace(key_set(published(rsa("next"), kid="two")))
    case.verifier.keys_changed()

    assert before.ends_at < 0  # also for the cached heads of requests that have it
    assert case.accepted(new) is after
    assert case.problem(old) is JwtProblem.KEY_ID


def test_another_key_under_the_same_id_replaces_the_first(case: Case) -> None:
    case.accepted(token())

    case.keys.replace(key_set(published(rsa("next"), kid="one")))
    case.verifier.keys_changed()

    assert case.problem(token()) is JwtProblem.SIGNATURE
    assert case.accepted(token(rsa("next"))).id == "corp/alice"


def test_without_keys_a_jwt_is_told_to_come_again(case: Case) -> None:
    case.keys.retire()

    found = case.find(token())

    assert isinstance(found, Refusal)
    assert (found.reason, found.retry_after_s) == (Reason.JWT_UNVERIFIED, 1.0)
    assert found.reason.status == 503
    assert case.asked == ["corp"]
    case.keys.replace(key_set(published(rsa("a"), kid="one")))
    assert case.accepted(token()).id == "corp/alice"  # the refusal was not remembered


def test_a_changed_configuration_decides_anew(case: Case) -> None:
    before = case.accepted(token())
    assert case.problem(token(groups=["x"])) is JwtProblem.ENTITLEMENT

    case.configure(replace(ISSUER, rules=(ClaimRule(("groups",), "x", "search"),)))

    assert before.ends_at < 0
    assert case.problem(token()) is JwtProblem.ENTITLEMENT
    assert case.accepted(token(groups=["x"])).entitlement == "search"


# --- bounds ---


def test_a_refusal_is_remembered_for_a_while_only(case: Case) -> None:
    early = token(nbf=NOW + 60)
    assert case.problem(early) is JwtProblem.NOT_YET_VALID

    case.wall = NOW + 60
    assert case.problem(early) is JwtProblem.NOT_YET_VALID
    case.now += module.REFUSED_FOR_S
    assert case.accepted(early).id == "corp/alice"


def test_both_memories_are_bounded() -> None:
    case = Case(most=2)
    first = case.accepted(token(jti="0"))
    case.accepted(token(jti="1"))
    case.accepted(token(jti="0"))  # the other one is now the least recently used
    case.accepted(token(jti="2"))
    for number in range(4):
        case.problem(f"eyJ.{number}.x")

    assert len(case.verifier) == 2
    assert case.accepted(token(jti="0")) is first
    assert case.verifier.verified == {"corp": 3}
    assert len(case.verifier._refused) == 2


def test_a_forgotten_jwt_is_also_forgotten_by_cached_heads() -> None:
    case = Case(most=1)
    first = case.accepted(token(jti="0"))

    case.accepted(token(jti="1"))

    assert first.ends_at < 0
    assert case.accepted(token(jti="0")) is not first


def test_a_flood_of_forged_jwts_has_a_budget_and_known_ones_are_served(case: Case) -> None:
    known = case.accepted(token())
    forged = [token(rsa("evil"), jti=str(number)) for number in range(6)]
    case.step = 0.03  # each check takes 0.03 s of a budget of 0.1 s

    problems = [case.problem(each) for each in forged[:5]]
    in_flood = case.find(token(jti="new"))

    assert problems[:4] == [JwtProblem.SIGNATURE] * 4
    assert isinstance(in_flood, Refusal)
    assert in_flood.reason is Reason.JWT_UNVERIFIED
    assert case.accepted(token()) is known
    case.now += 1.0
    assert case.accepted(token(jti="new")).id == "corp/alice"


def test_in_a_long_time_forged_jwts_take_at_most_a_tenth_of_it(case: Case) -> None:
    began, spent, case.step = case.now, 0.0, 0.001
    for number in range(5000):
        if case.problem(f"eyJhbGciOiJSUzI1NiJ9.e30.{number}") is not JwtProblem.TOO_MANY:
            spent += case.step
        case.now += 0.001

    lasted = case.now - began
    assert lasted > 5.0
    assert spent <= lasted * module.REFUSED_SHARE + module.REFUSED_BURST_S + case.step


def test_accepted_jwts_take_nothing_of_the_budget(case: Case) -> None:
    case.step = 0.05

    for number in range(20):
        case.accepted(token(jti=str(number)))


@given(st.binary(max_size=200))
def test_whatever_follows_the_first_letters_is_refused(junk: bytes) -> None:
    case = SHARED
    case.now += 1.0

    assert isinstance(case.find(b"ey" + junk), Refusal | None)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused(at: int, value: int) -> None:
    case, good = SHARED, bytearray(VALID)
    case.now += 1.0
    at %= len(good)
    if good[at] == value:
        return
    good[at] = value

    assert not isinstance(case.find(bytes(good)), Credential)


SHARED = Case()
VALID = token().encode()
