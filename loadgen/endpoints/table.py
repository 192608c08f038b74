"""The endpoint of each name in a scenario. A new endpoint is a name, a module, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.endpoints.dialect import Dialect
from loadgen.endpoints.messages import MESSAGES
from loadgen.endpoints.openai import CHAT, COMPLETIONS
from loadgen.endpoints.pooling import EMBEDDINGS, RERANK
from loadgen.endpoints.responses import RESPONSES
from loadgen.scenario import Endpoint

DIALECTS: Mapping[Endpoint, Dialect] = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: COMPLETIONS,
    Endpoint.RESPONSES: RESPONSES,
    Endpoint.MESSAGES: MESSAGES,
    Endpoint.EMBEDDINGS: EMBEDDINGS,
    Endpoint.RERANK: RERANK,
}
