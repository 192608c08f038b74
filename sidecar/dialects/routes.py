"""The routes that are relayed, and the rules of each: the one table to read before exposing a path.

The sidecar answers any other path with 404, in particular the engine's control routes. Of these, only the
routes that load LoRA adapters are relayed, for administrators. A new route is a line here and, if it spends
tokens, a function in its dialect that reads its body.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.dialects import anthropic as messages
from sidecar.dialects import cohere, openai, pooling, responses
from sidecar.dialects.anthropic import ANTHROPIC
from sidecar.dialects.bodies import Parsed
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.openai import OPENAI
from sidecar.dialects.responses import RESPONSES
from sidecar.dialects.usage_readers import BodyReader, OtherBodyReader, ResponseReader


class Access(enum.Enum):
    """The callers that a route serves. The values are words for the reference page."""

    TENANT = "a tenant's"
    ANYONE = "none"
    """Probes and load balancers."""
    DISCOVERY = "a tenant's; none with `--expose-engine-metrics`"
    """Routers that look for models. A key that is sent must still be a tenant's."""
    EXPOSED = "none; only with `--expose-engine-metrics`"
    """Routers and scrapers. Without the option the path does not exist."""
    ADMINISTRATOR = "an administrator's"
    """Without such keys in the pool file the path does not exist."""


@dataclass(frozen=True, slots=True)
class Route:
    """The rules of one path."""

    method: bytes
    parse: Callable[[bytes], Parsed] | None = None
    """Reads and prices the body; ``None`` if a request spends no tokens."""
    access: Access = Access.TENANT
    dialect: Dialect = OPENAI
    reader: Callable[[], BodyReader] = BodyReader
    """Finds the usage in an answer that is not streamed."""
    names_stored: bool = False
    """Whether the path names a stored response, which belongs to one entitlement."""
    lists_models: bool = False
    """Whether the answer lists models. Its caller sees those that it may use."""

    @property
    def methods(self) -> tuple[bytes, ...]:
        """The methods that are relayed, with OPTIONS for preflights, and with HEAD for a GET route."""
        head = (b"HEAD",) if self.method == b"GET" else ()
        return (self.method, *head, b"OPTIONS")


_EMBEDDINGS = Route(b"POST", pooling.parse_input)
_SCORES = Route(b"POST", pooling.parse_scores)
_RERANKING = Route(b"POST", pooling.parse_reranking)

ROUTES: dict[bytes, Route] = {
    b"/v1/chat/completions": Route(b"POST", openai.parse_chat),
    b"/v1/chat/completions/batch": Route(b"POST", openai.parse_chat_batch),
    b"/v1/completions": Route(b"POST", openai.parse_completion),
    b"/v1/responses": Route(b"POST", responses.parse, dialect=RESPONSES, reader=ResponseReader),
    b"/v1/messages": Route(b"POST", messages.parse, dialect=ANTHROPIC, reader=OtherBodyReader),
    b"/v1/messages/count_tokens": Route(b"POST", dialect=ANTHROPIC),
    b"/v1/embeddings": _EMBEDDINGS,
    b"/v2/embed": Route(b"POST", cohere.parse, reader=OtherBodyReader),
    b"/pooling": _EMBEDDINGS,
    b"/classify": _EMBEDDINGS,
    b"/score": _SCORES,
    b"/v1/score": _SCORES,
    b"/rerank": _RERANKING,
    b"/v1/rerank": _RERANKING,
    b"/v2/rerank": _RERANKING,
    b"/v1/models": Route(b"GET", access=Access.DISCOVERY, lists_models=True),
    b"/tokenize": Route(b"POST"),
    b"/detokenize": Route(b"POST"),
    b"/health": Route(b"GET", access=Access.ANYONE),
    b"/version": Route(b"GET", access=Access.ANYONE),
    b"/metrics": Route(b"GET", access=Access.EXPOSED),
    b"/v1/load_lora_adapter": Route(b"POST", access=Access.ADMINISTRATOR),
    b"/v1/unload_lora_adapter": Route(b"POST", access=Access.ADMINISTRATOR),
}
_STORED = re.compile(rb"/v1/responses/([A-Za-z0-9_-]{1,128})(/cancel)?")
_RETRIEVE = Route(b"GET", dialect=RESPONSES, names_stored=True)
_CANCEL = Route(b"POST", dialect=RESPONSES, names_stored=True)


def find(path: bytes) -> Route | None:
    """The route of a path. The path is compared as sent, without decoding, so it is not ambiguous."""
    route = ROUTES.get(path)
    if route is None and (stored := _STORED.fullmatch(path)) is not None:
        return _CANCEL if stored[2] else _RETRIEVE
    return route


def stored_id(path: bytes) -> str | None:
    """The stored response that a path names."""
    stored = _STORED.fullmatch(path)
    return stored[1].decode() if stored is not None else None
