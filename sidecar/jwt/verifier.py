"""The verifier: from the bytes of a JWT to a credential, or to the refusal with its reason.

It is synchronous, and never reads keys: it asks for that, and answers from what it has. A decision is
remembered by the digest of the token. A known JWT costs a hash and a look-up until it expires.

A new JWT costs a signature check on the event loop. So refused JWTs have a budget of time. When it is spent,
new JWTs get 503 with ``Retry-After``. Known JWTs are served as before.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping

from sidecar.decisions import Refusal
from sidecar.identity import Credential
from sidecar.jwt import signatures
from sidecar.jwt.claims import entitlement_of, looks_like_jwt, names_one, parts_of, subject_of
from sidecar.jwt.keys import KeySet, SigningKey
from sidecar.jwt.problems import JwtProblem, JwtRefused
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.entitlements import Issuer

MOST_KNOWN = 10_000
"""The most accepted JWTs that are remembered: about 4 MB."""
MOST_REFUSED = 1_000
"""The most refused JWTs that are remembered."""
REFUSED_FOR_S = 5.0
"""Seconds for which a refusal is remembered. A new key or another clock may change it."""
REFUSED_SHARE = 0.1
"""The CPU seconds per second that refused JWTs may take."""
REFUSED_BURST_S = 0.1
"""The CPU seconds that they may take at once after a pause: about 1,000 signature checks."""
_LONGEST_S = 366 * 86400.0
"""A JWT is remembered for a year at most. Some never expire in a life time."""


_TOO_MANY = JwtRefused(JwtProblem.TOO_MANY, "too many invalid JWTs arrive now; send the request again")


class KnownIssuer:
    """An issuer with its keys. ``ask`` requests that the keys are read again, at most now and then."""

    __slots__ = ("ask", "issuer", "keys")

    def __init__(self, issuer: Issuer, keys: KeySet, ask: Callable[[], None]) -> None:
        self.issuer = issuer
        self.keys = keys
        self.ask = ask


class _Accepted:
    __slots__ = ("credential", "key")

    def __init__(self, credential: Credential, key: SigningKey) -> None:
        self.credential = credential
        self.key = key


class _Refused:
    __slots__ = ("issuer", "problem", "refusal", "until")

    def __init__(self, refused: JwtRefused, until: float) -> None:
        self.issuer = refused.issuer
        self.problem = refused.problem
        self.refusal = refused.refusal()
        self.until = until
        """The end of its memory, by the monotonic clock."""


class JwtVerifier:
    """Decides about JWTs.

    ``clock`` is monotonic. ``wall_clock`` has seconds since 1970. ``cpu_clock`` has the CPU seconds of this
    thread, because on a busy machine a check takes longer by other clocks.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        cpu_clock: Callable[[], float],
        *,
        most_known: int = MOST_KNOWN,
        most_refused: int = MOST_REFUSED,
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._most_known = most_known
        self._most_refused = most_refused
        self._wall_clock = wall_clock
        self._issuers: dict[str, KnownIssuer] = {}
        self._entitlements: Mapping[str, frozenset[str]] = {}
        """The names of the groups above each entitlement of the pool."""
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        """By the digest of the token, the least recently used first."""
        self._refused: OrderedDict[bytes, _Refused] = OrderedDict()
        """By the digest of the token, the oldest first."""
        self._budget = TokenBucket(clock())
        """The CPU seconds that refused JWTs may take."""
        self._budget.resize(REFUSED_SHARE, REFUSED_BURST_S, clock())
        self.verified: Counter[str] = Counter()
        """JWTs whose signature and claims were checked and accepted, by issuer."""
        self.refused: Counter[tuple[str, JwtProblem]] = Counter()
        """Refused requests by issuer and reason. The issuer is empty if the JWT's own is unknown."""

    def __len__(self) -> int:
        return len(self._accepted)

    def configure(self, issuers: Iterable[KnownIssuer], entitlements: Mapping[str, frozenset[str]]) -> None:
        """Use these issuers, and the entitlements of the pool with the names of the groups above each.

        All decisions are made anew.
        """
        self._issuers = {each.issuer.issuer: each for each in issuers}
        self._entitlements = entitlements
        self._end_all(self._accepted)
        self._refused.clear()

    def keys_changed(self) -> None:
        """An issuer's keys have changed: end the credentials of retired keys, and forget refusals."""
        self._end_all([digest for digest, each in self._accepted.items() if not each.key.is_in_force])
        self._refused.clear()

    def _end_all(self, accepted: Iterable[bytes]) -> None:
        """End credentials, also those that cached heads of requests have."""
        for digest in list(accepted):
            self._accepted.pop(digest).credential.ends_at = -math.inf

    def find(self, key: bytes) -> Credential | Refusal | None:
        """The credential of a JWT, its refusal, or ``None`` for another kind of key."""
        if not looks_like_jwt(key):
            return None
        digest = hashlib.sha256(key).digest()
        accepted = self._accepted.get(digest)
        if accepted is not None:
            credential = accepted.credential
            if credential.ends_at > self._wall_clock():
                self._accepted.move_to_end(digest)
                return credential
            del self._accepted[digest]
        decided = self._decide(key, digest)
        if isinstance(decided, _Refused):
            self.refused[decided.issuer, decided.problem] += 1
            return decided.refusal
        return decided

    def _decide(self, token: bytes, digest: bytes) -> Credential | _Refused:
        """Decide about a JWT that is not accepted yet."""
        now = self._clock()
        remembered = self._refused.get(digest)
        if remembered is not None:
            if remembered.until > now:
                return remembered
            del self._refused[digest]
        if self._budget.refill(now) <= 0.0:
            return _Refused(_TOO_MANY, now)
        began_at = self._cpu_clock()
        try:
            accepted = self._verified(token)
        except JwtRefused as error:
            self._budget.add(began_at - self._cpu_clock())
            refused = _Refused(error, now + REFUSED_FOR_S)
            if error.problem is not JwtProblem.NO_KEYS:
                self._refused[digest] = refused
                if len(self._refused) > self._most_refused:
                    self._refused.popitem(last=False)
            return refused
        self._accepted[digest] = accepted
        if len(self._accepted) > self._most_known:
            self._end_all([next(iter(self._accepted))])
        return accepted.credential

    def _verified(self, token: bytes) -> _Accepted:
        """Check a JWT as a whole. Raises ``JwtRefused``."""
        header, claims, signed, signature = parts_of(token)
        name = claims.get("iss")
        known = self._issuers.get(name) if isinstance(name, str) else None
        if known is None:
            raise JwtRefused(JwtProblem.ISSUER, "the issuer of the JWT is not accepted here")
        issuer = known.issuer
        if header.algorithm not in issuer.algorithms:
            raise JwtRefused(
                JwtProblem.ALGORITHM, "the algorithm of the JWT is not accepted for its issuer", issuer.name
            )
        key = self._signer(known, header.key_id, header.algorithm, signed, signature)
        now = self._wall_clock()
        signatures.check_claims(claims, issuer, now)
        subject = subject_of(claims, issuer.subject)
        if subject is None:
            raise JwtRefused(
                JwtProblem.CLAIMS, f"the JWT has no usable claim {'.'.join(issuer.subject)}", issuer.name
            )
        entitlement = entitlement_of(claims, issuer.rules, self._entitlements)
        if entitlement is None:
            raise JwtRefused(
                JwtProblem.ENTITLEMENT,
                "the JWT is valid, but leads to no entitlement of this pool",
                issuer.name,
            )
        if issuer.group and not names_one(claims, issuer.group, self._entitlements[entitlement]):
            raise JwtRefused(
                JwtProblem.ENTITLEMENT,
                "the JWT is valid, but for another group than that of its entitlement",
                issuer.name,
            )
        self.verified[issuer.name] += 1
        ends_at = min(_number(claims.get("exp")) + issuer.clock_skew_s, now + _LONGEST_S)
        return _Accepted(Credential(entitlement, f"{issuer.name}/{subject}", ends_at), key)

    def _signer(
        self, known: KnownIssuer, key_id: str | None, algorithm: str, signed: bytes, signature: bytes
    ) -> SigningKey:
        """The key that made a signature. Raises ``JwtRefused``."""
        name, keys = known.issuer.name, known.keys
        if not keys:
            known.ask()
            raise JwtRefused(
                JwtProblem.NO_KEYS, "the keys of the JWT's issuer are not known yet; send it again", name
            )
        candidates = keys.candidates(key_id, algorithm)
        if not candidates:
            known.ask()
            raise JwtRefused(
                JwtProblem.KEY_ID,
                "no key of the JWT's issuer has its key id and fits its algorithm; if the issuer has just"
                " changed its keys, send it again in 10 s",
                name,
            )
        for key in candidates:
            if signatures.is_signed(signed, signature, algorithm, key.key):
                return key
        raise JwtRefused(JwtProblem.SIGNATURE, "the signature of the JWT is not valid", name)


def _number(value: object) -> float:
    """A number of the claims, which may be an integer beyond any float."""
    assert isinstance(value, int | float)
    return float(min(value, 1e15))
