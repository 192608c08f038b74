"""Reading a JWT without trusting it: its parts, its claims, and the rules from claims to an entitlement.

Pure. The signature is checked elsewhere. JSON is read strictly: two readers of one token must not see
different claims.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from sidecar.jwt.problems import JwtProblem, JwtRefused
from tokenpool.entitlements import ClaimRule

MOST_BYTES = 16 * 1024
"""The longest JWT that is read. One of Microsoft Entra with 200 groups has about 10 kB."""
LONGEST_SUBJECT = 255
"""The most characters of a caller's id, as in OpenID Connect."""
_TYPES = frozenset({"jwt", "jose", "at+jwt", "application/jwt", "application/at+jwt"})
"""The accepted values of the header ``typ``. Others, such as ``logout+jwt``, are no credentials."""
_LONGEST_KEY_ID = 256


class JwtHeader(NamedTuple):
    """The header of a JWT, before its signature is checked."""

    algorithm: str
    key_id: str | None


class JwtParts(NamedTuple):
    """A JWT in parts, before its signature is checked."""

    header: JwtHeader
    claims: Mapping[str, object]
    signed: bytes
    signature: bytes


def looks_like_jwt(key: bytes) -> bool:
    """Whether a credential is to be read as a JWT: its first part is an encoded JSON object."""
    return key.startswith(b"ey") and b"." in key


def parts_of(token: bytes) -> JwtParts:
    """The parts of a JWT. Raises ``JwtRefused``."""
    if len(token) > MOST_BYTES:
        raise _malformed(f"the JWT has more than {MOST_BYTES} bytes")
    segments = token.split(b".")
    if len(segments) == 5:
        raise _malformed("the JWT is encrypted; send a signed one")
    if len(segments) != 3:
        raise _malformed("the JWT does not have three parts")
    try:
        header, claims = (_object(_decoded(segment)) for segment in segments[:2])
        signature = _decoded(segments[2])
    except (ValueError, RecursionError):
        raise _malformed(
            "the JWT cannot be read: its parts must be base64url, and two of them JSON objects without"
            " repeated names"
        ) from None
    return JwtParts(_header(header), claims, segments[0] + b"." + segments[1], signature)


def _header(header: Mapping[str, object]) -> JwtHeader:
    """The header. The keys and key addresses that it may have are ignored: a caller must not choose a key."""
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str):
        raise _malformed("the header of the JWT has no text alg")
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > _LONGEST_KEY_ID):
        raise _malformed(f"the kid of the JWT is not a text of at most {_LONGEST_KEY_ID} characters")
    if "crit" in header:
        raise _malformed("the JWT needs an extension (crit); send one without")
    if "cty" in header or "enc" in header:
        raise _malformed("the JWT is nested or encrypted; send a plain signed one")
    if kind is not None and (not isinstance(kind, str) or kind.lower() not in _TYPES):
        raise _malformed("the typ of the JWT is not that of an access token")
    return JwtHeader(algorithm, key_id)


def _decoded(segment: bytes) -> bytes:
    """Base64url without padding, in its only form. Raises ``ValueError``."""
    if b"=" in segment or b"+" in segment or b"/" in segment:
        raise ValueError("not base64url")
    # urlsafe_b64decode skips foreign characters, so the length is checked below.
    decoded = urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    if binascii.b2a_base64(decoded, newline=False).rstrip(b"=").translate(_TO_URLSAFE) != segment:
        raise ValueError("not base64url")
    return decoded


_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")


def _object(content: bytes) -> dict[str, object]:
    """A JSON object. Raises ``ValueError``, also for a repeated name at any depth."""
    found = _DECODER.decode(content.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a repeated name")
    return made


def _no_constant(text: str) -> object:
    raise ValueError(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _malformed(message: str) -> JwtRefused:
    return JwtRefused(JwtProblem.MALFORMED, message)


def claim_at(claims: Mapping[str, object], path: Sequence[str]) -> object:
    """The value of a claim; ``None`` without it. Several names are a path through nested objects."""
    found: object = claims
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def entitlement_of(
    claims: Mapping[str, object], rules: Sequence[ClaimRule], known: Container[str]
) -> str | None:
    """The entitlement by the first rule that matches; ``None`` if none does.

    ``known`` are the entitlements of this pool. A rule for another pool is skipped.
    """
    for rule in rules:
        name = _by_rule(claims, rule)
        if name is not None and name in known:
            return name
    return None


def _by_rule(claims: Mapping[str, object], rule: ClaimRule) -> str | None:
    if not rule.claim:
        return rule.entitlement
    found = claim_at(claims, rule.claim)
    if rule.value is not None:
        matches = found == rule.value or (isinstance(found, list) and rule.value in found)
        return rule.entitlement if matches else None
    if isinstance(found, list) and len(found) == 1:
        [found] = found
    return found if isinstance(found, str) else None


def names_one(claims: Mapping[str, object], path: Sequence[str], names: Container[str]) -> bool:
    """Whether a claim is one of these names, or a list that contains one."""
    found = claim_at(claims, path)
    return any(
        isinstance(each, str) and each in names for each in (found if isinstance(found, list) else [found])
    )


def subject_of(claims: Mapping[str, object], path: Sequence[str]) -> str | None:
    """The caller's id; ``None`` without a printable text of at most ``LONGEST_SUBJECT`` characters."""
    found = claim_at(claims, path)
    if not isinstance(found, str) or not 0 < len(found) <= LONGEST_SUBJECT or not found.isprintable():
        return None
    return found
