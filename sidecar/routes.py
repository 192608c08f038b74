"""The routes that pass, and what each needs: the one table to read before exposing a path.

Anything that is not here is answered 404 by the sidecar itself; the engine's control routes above all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.dialects import openai


@dataclass(frozen=True, slots=True)
class Route:
    """How one path is treated."""

    method: bytes
    parse: Callable[[bytes], openai.Parsed] | None = None
    """Reads and prices the body; ``None`` where a request spends no tokens."""
    is_public: bool = False
    """Whether it answers callers without a key: probes and load balancers."""

    @property
    def methods(self) -> tuple[bytes, ...]:
        """The methods that are relayed: browsers' preflights, and HEAD where there is GET, included."""
        head = (b"HEAD",) if self.method == b"GET" else ()
        return (self.method, *head, b"OPTIONS")


ROUTES: dict[bytes, Route] = {
    b"/v1/chat/completions": Route(b"POST", openai.parse_chat),
    b"/v1/completions": Route(b"POST", openai.parse_completion),
    b"/v1/models": Route(b"GET"),
    b"/tokenize": Route(b"POST"),
    b"/detokenize": Route(b"POST"),
    b"/health": Route(b"GET", is_public=True),
    b"/version": Route(b"GET", is_public=True),
}
