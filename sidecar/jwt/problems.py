"""The reasons why a JWT is refused, for metrics, and their messages for callers.

A message says what the caller can change. It quotes nothing of the token, and names no accepted value, so
that it does not help to forge tokens.
"""

from __future__ import annotations

from enum import StrEnum

from sidecar.decisions import Refusal
from tokenpool.outcomes import Reason

RETRY_S = 1.0
"""The wait before a JWT that cannot be verified now is sent again. Keys are read within about that time."""


class JwtProblem(StrEnum):
    """The reason why a JWT is refused."""

    MALFORMED = "malformed"
    ISSUER = "issuer"
    ALGORITHM = "algorithm"
    KEY_ID = "key_id"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    AUDIENCE = "audience"
    CLAIMS = "claims"
    ENTITLEMENT = "entitlement"
    NO_KEYS = "no_keys"
    TOO_MANY = "too_many"


class JwtRefused(Exception):
    """A JWT is refused. ``issuer`` is the name of its issuer, if known."""

    def __init__(self, problem: JwtProblem, message: str, issuer: str = "") -> None:
        self.problem = problem
        self.message = message
        self.issuer = issuer
        super().__init__(message)

    def refusal(self) -> Refusal:
        """The answer to the caller."""
        if self.problem is JwtProblem.EXPIRED:
            return Refusal(Reason.EXPIRED_KEY, self.message)
        if self.problem in (JwtProblem.NO_KEYS, JwtProblem.TOO_MANY):
            return Refusal(Reason.JWT_UNVERIFIED, self.message, retry_after_s=RETRY_S)
        return Refusal(Reason.INVALID_JWT, self.message)
