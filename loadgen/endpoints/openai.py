"""OpenAI's chat and text completions."""

from __future__ import annotations

from loadgen import sse
from loadgen.endpoints.dialect import Ask, Dialect, Event


def _fields(ask: Ask) -> dict[str, object]:
    fields: dict[str, object] = {"max_tokens": ask.output_tokens}
    if ask.ignore_eos:
        fields["ignore_eos"] = True
    fields |= {"temperature": 0, "stream": ask.stream}
    if ask.stream:
        fields["stream_options"] = {"include_usage": True}
    if ask.priority is not None:
        fields["priority"] = ask.priority
    return fields


def _chat(ask: Ask) -> dict[str, object]:
    return {**_fields(ask), "messages": ask.chat}


def _completion(ask: Ask) -> dict[str, object]:
    first, *further = ask.pieces
    prompt = "".join(map(str, ask.pieces)) if further else first
    return {**_fields(ask), "prompt": prompt}


def _whole(content: bytes) -> Event | None:
    event = sse.decoded(content)
    return event if event is not None and (event.choices or event.error) else None


CHAT = Dialect("/v1/chat/completions", _chat, sse.decoded, _whole)
COMPLETIONS = Dialect("/v1/completions", _completion, sse.decoded, _whole, accepts_ids=True)
