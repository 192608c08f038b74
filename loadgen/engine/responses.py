"""OpenAI's ``/v1/responses``: bodies, responses and events, as vLLM 0.32.0 writes them. Pure.

Responses are not stored, as in vLLM without ``VLLM_ENABLE_RESPONSES_API_STORE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequential
from dataclasses import dataclass
from typing import Any

from loadgen.engine.answers import Answer, Stamp, compact
from loadgen.engine.bodies import Body, Refused, invalid
from loadgen.engine.model import Ending, Model
from loadgen.engine.requests import Request, conversation, prompt_tokens, read_work, served_name
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import chat_text, output_text

_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "metadata": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": "auto",
    "text": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its response repeats, with their defaults."""


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """The work of a request, and what its response repeats."""

    work: Request
    echo: Mapping[str, Any]


def read_responses(body: Body, model: Model) -> ResponsesRequest:
    """A ``/v1/responses`` body."""
    messages = _messages(body)
    name = served_name(body, model)
    if body.flag("background"):
        raise Refused(
            "This vLLM engine does not support `store=True` and therefore does not support the background"
            " mode. To enable these features, set the environment variable"
            " `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server.",
            kind="invalid_request_error",
            param="background",
        )
    previous = body.text("previous_response_id")
    if previous is not None:
        raise Refused(
            f"Response with id '{previous}' not found.",
            status=404,
            kind="invalid_request_error",
            param="response_id",
        )
    bound, prompt = body.whole_or_none("max_output_tokens"), prompt_tokens(chat_text(messages), model)
    # As in vLLM, the route ignores n, min_tokens and stream_options.
    known = body.only("stream", "priority", "ignore_eos")
    work = read_work(known, model, [prompt], bound, name=name, is_chat=True)
    echo = {name: body.get(name) if body.get(name) is not None else _ECHOED[name] for name in _ECHOED}
    return ResponsesRequest(work, echo)


class ResponsesAnswer(Answer):
    """The response: one message of the assistant."""

    def __init__(self, asked: ResponsesRequest, sequences: Sequential[Sequence], stamp: Stamp) -> None:
        super().__init__(asked.work, sequences, stamp)
        self._echo = asked.echo
        self._item = f"msg_{stamp.number:032x}"
        self._number = 0

    def whole(self) -> dict[str, Any]:
        """See ``Answer``."""
        (sequence,) = self.sequences
        is_cut = sequence.ending is Ending.LENGTH
        return self._response("incomplete" if is_cut else "completed", [self._message("completed")])

    def first_events(self) -> list[str]:
        """See ``Answer``."""
        response = self._response("in_progress", [])
        item = {**self._message("in_progress"), "content": []}
        return [
            self._event("response.created", {"response": response}),
            self._event("response.in_progress", {"response": response}),
            self._event("response.output_item.added", {"output_index": 0, "item": item}),
            self._event("response.content_part.added", {**self._where(), "part": _part("", logprobs=[])}),
        ]

    def event(self, index: int, sequence: Sequence, text: str) -> str:
        """See ``Answer``."""
        number, self._number = self._number, self._number + 1
        return (
            'event: response.output_text.delta\ndata: {"content_index":0,'
            f'"delta":"{text}","item_id":"{self._item}","logprobs":[],"output_index":0,'
            f'"sequence_number":{number},"type":"response.output_text.delta"}}\n\n'
        )

    def last_events(self) -> bytes:
        """See ``Answer``. Also an incomplete response ends with ``response.completed``."""
        (sequence,) = self.sequences
        text = output_text(0, sequence.produced)
        done = {"output_index": 0, "item": self._message("completed")}
        made = [
            self._event("response.output_text.done", {**self._where(), "text": text, "logprobs": []}),
            self._event("response.content_part.done", {**self._where(), "part": _part(text)}),
            self._event("response.output_item.done", done),
            self._event("response.completed", {"response": self.whole()}),
        ]
        return "".join(made).encode()

    def failed_events(self, status: int, message: str) -> bytes:
        """See ``Answer``."""
        content = {"code": str(status), "message": message, "param": None}
        return self._event("error", content).encode()

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, content: dict[str, Any]) -> str:
        told = compact({"type": kind, "sequence_number": self._number, **content})
        self._number += 1
        return f"event: {kind}\ndata: {told}\n\n"

    def _message(self, status: str) -> dict[str, Any]:
        (sequence,) = self.sequences
        return {
            "id": self._item,
            "content": [_part(output_text(0, sequence.produced))],
            "role": "assistant",
            "status": status,
            "type": "message",
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        is_ended = status != "in_progress"
        return {
            "id": f"resp_{self.stamp.number:032x}",
            "created_at": self.stamp.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.request.model,
            "object": "response",
            "output": output,
            **self._echo,
            "max_output_tokens": self.request.bounds[0],
            "status": status,
            "usage": self._usage() if is_ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, produced = self.prompt_tokens, self.produced
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": self.cached,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": produced,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + produced,
        }


def _messages(body: Body) -> list[tuple[str, str]]:
    """The instructions and the input as a conversation."""
    told = body.needed("input")
    instructions = body.text("instructions")
    before = [("system", instructions)] if instructions else []
    if isinstance(told, str):
        return [*before, ("user", told)]
    if not isinstance(told, list):
        raise invalid("string_type", "body.input.str", "Input should be a valid string", told)
    return before + conversation([_item(each) for each in told], "body.input")


def _item(item: Any) -> Any:
    """An item of the input as a message; the text of a tool's call or output counts, too."""
    if not isinstance(item, dict) or "role" in item:
        return item
    texts = (item.get(name) for name in ("arguments", "output", "text"))
    return {"role": "tool", "content": [each for each in texts if isinstance(each, str)]}


def _part(text: str, *, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}
