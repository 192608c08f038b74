"""Keys and signatures, with the library joserfc. No other module uses it, and nothing else imports this one
unless a pool file has issuers.

The library makes keys, checks that key and algorithm fit, checks signatures, and checks the registered
claims at a given time. The header is read by ``claims``, because it chooses the issuer's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, MissingClaimError
from joserfc.jwk import JWKRegistry
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from sidecar.jwt.problems import JwtProblem, JwtRefused
from tokenpool.entitlements import Issuer

_KINDS = ("RSA", "EC", "OKP")
"""The accepted kinds of keys. A symmetric key (``oct``) in a published set is never used."""
_RSA_BYTES = range(256, 1025)
"""The accepted sizes of an RSA key. A signature takes 52 µs with 2,048 bits, and 99 µs with 4,096 bits."""
_FAULTS = (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError)
"""The exceptions of the library and the cryptography below it for keys and signatures that are not valid."""


def key_of(values: Mapping[str, object]) -> Any | None:
    """The public key in one JWK; ``None`` if it is not one for signatures, or not valid."""
    kind, modulus = values.get("kty"), values.get("n")
    if kind not in _KINDS or values.get("use", "sig") != "sig" or "d" in values:
        return None
    operations = values.get("key_ops")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return None
    if kind == "RSA" and (not isinstance(modulus, str) or len(modulus) * 3 // 4 not in _RSA_BYTES):
        return None
    public: Any = {name: value for name, value in values.items() if name in _PARAMETERS}
    try:
        key = JWKRegistry.import_key(public)
        key.public_key  # noqa: B018 - made now, not at the first request
    except _FAULTS:
        return None
    return key


_PARAMETERS = frozenset({"kty", "kid", "use", "alg", "n", "e", "crv", "x", "y"})


def fits(key: Any, algorithm: str) -> bool:
    """Whether signatures of this algorithm can be checked with a key: its kind, curve, ``use``, ``alg``."""
    model = JWSRegistry.algorithms.get(algorithm)
    try:
        if model is not None:
            model.check_key(key)
    except _FAULTS:
        return False
    return model is not None


def is_signed(signed: bytes, signature: bytes, algorithm: str, key: Any) -> bool:
    """Whether a signature is valid. The caller has checked that the algorithm is accepted."""
    model = JWSRegistry.algorithms[algorithm]
    try:
        model.check_key(key)
        return model.verify(signed, signature, key)
    except _FAULTS:
        return False


def check_claims(claims: Mapping[str, object], issuer: Issuer, now: float) -> None:
    """Check the registered claims at a time (seconds since 1970). Raises ``JwtRefused``."""
    registry = JWTClaimsRegistry(
        cast("int", now),  # the library only subtracts and compares: parts of a second are fine
        cast("int", issuer.clock_skew_s),
        iss={"essential": True, "value": issuer.issuer},
        aud={"essential": True, "values": list(issuer.audiences)},
        exp={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except ClaimError as error:
        raise _refused(error, issuer.name) from None


def _refused(error: ClaimError, issuer: str) -> JwtRefused:
    claim = error.claim
    if isinstance(error, MissingClaimError):
        return JwtRefused(JwtProblem.CLAIMS, f"the JWT lacks a required claim: {claim}", issuer)
    if isinstance(error, ExpiredTokenError):
        return JwtRefused(JwtProblem.EXPIRED, "the JWT has expired; get a new one", issuer)
    if claim in ("nbf", "iat"):
        return JwtRefused(
            JwtProblem.NOT_YET_VALID,
            f"the JWT is not valid yet by its claim {claim}; check the clocks of its issuer and this server",
            issuer,
        )
    if claim == "aud":
        return JwtRefused(
            JwtProblem.AUDIENCE, "the JWT is for another audience; get one for this service", issuer
        )
    return JwtRefused(JwtProblem.CLAIMS, f"the claim {claim} of the JWT has a wrong type or value", issuer)
