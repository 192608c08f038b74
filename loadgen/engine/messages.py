"""Anthropic's ``/v1/messages``: bodies, responses and events, as vLLM 0.32.0 translates them. Pure."""

from __future__ import annotations

from typing import Any

from loadgen.engine.answers import Answer, compact
from loadgen.engine.bodies import Body, Refused, Tokens, invalid
from loadgen.engine.model import Ending, Model
from loadgen.engine.requests import Request, content_text, conversation, prompt_tokens, read_work, served_name
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import chat_text, output_text


def read_messages(body: Body, model: Model) -> Request:
    """A ``/v1/messages`` body."""
    name = _name(body, model)
    bound = body.whole_or_none("max_tokens")
    if bound is None:
        raise invalid("missing", "body.max_tokens", "Field required", {})
    if bound <= 0:
        message = "Value error, max_tokens must be positive"
        raise invalid("value_error", "body.max_tokens", message, bound)
    # As in vLLM, the route ignores n, priority, ignore_eos and the like.
    known, prompt = body.only("stream"), _prompt(body, model)
    return read_work(known, model, [prompt], bound, name=name, is_chat=True, tells_usage=known.flag("stream"))


def read_count_tokens(body: Body, model: Model) -> int:
    """The number of prompt tokens of a ``/v1/messages/count_tokens`` body."""
    _name(body, model)
    return len(_prompt(body, model))


def translated(refused: Refused) -> Refused:
    """A refusal in Anthropic's format. vLLM leaves those of fields with a wrong type as they are."""
    error = refused.body["error"]
    if error["type"] != "Bad Request":
        refused.body = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    return refused


class MessagesAnswer(Answer):
    """The response: a message with one block of text."""

    def whole(self) -> dict[str, Any]:
        """See ``Answer``."""
        (sequence,) = self.sequences
        stop = {"stop_reason": _stop_reason(sequence)}
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": output_text(0, sequence.produced)}],
            "model": self.request.model,
            **stop,
            "usage": self._usage(sequence.produced, told=self.stamp.tells_cached),
        }

    def first_events(self) -> list[str]:
        """See ``Answer``."""
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.request.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(0, told=False),
        }
        block = {"type": "text", "text": ""}
        return [
            _event("message_start", {"message": message}),
            _event("content_block_start", {"content_block": block, "index": 0}),
        ]

    def event(self, index: int, sequence: Sequence, text: str) -> str:
        """See ``Answer``."""
        return (
            'event: content_block_delta\ndata: {"type":"content_block_delta",'
            f'"delta":{{"type":"text_delta","text":"{text}"}},"index":0}}\n\n'
        )

    def last_events(self) -> bytes:
        """See ``Answer``."""
        (sequence,) = self.sequences
        delta = {"stop_reason": _stop_reason(sequence), "stop_sequence": None}
        usage = self._usage(sequence.produced, told=self.stamp.tells_cached)
        made = [
            _event("content_block_stop", {"index": 0}),
            _event("message_delta", {"delta": delta, "usage": usage}),
            _event("message_stop", {}),
        ]
        return "".join(made).encode()

    def failed_events(self, status: int, message: str) -> bytes:
        """See ``Answer``."""
        return _event("error", {"error": {"type": "internal_error", "message": message}}).encode()

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.stamp.number:016x}"

    def _usage(self, produced: int, *, told: bool) -> dict[str, int]:
        if not told:
            return {"input_tokens": self.prompt_tokens, "output_tokens": produced}
        cached = self.cached
        return {
            "input_tokens": self.prompt_tokens - cached,
            "output_tokens": produced,
            "cache_read_input_tokens": cached,
        }


def _name(body: Body, model: Model) -> str:
    if not body.text("model"):
        raise invalid("missing", "body.model", "Field required", {})
    return served_name(body, model)


def _prompt(body: Body, model: Model) -> Tokens:
    system = content_text(body.get("system"), "body.system")
    messages = conversation(body.needed("messages"))
    return prompt_tokens(chat_text(([("system", system)] if system else []) + messages), model)


def _stop_reason(sequence: Sequence) -> str:
    return "max_tokens" if sequence.ending is Ending.LENGTH else "end_turn"


def _event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {compact({'type': kind, **content})}\n\n"
