"""JWTs as authentication sees them. This module loads nothing of the library."""

from __future__ import annotations

from typing import Protocol

from sidecar.decisions import Refusal
from sidecar.identity import Credential


class JwtSource(Protocol):
    """Decides about JWTs, without waiting for anything."""

    def find(self, key: bytes) -> Credential | Refusal | None:
        """The credential of a JWT, its refusal, or ``None`` for another kind of key."""
