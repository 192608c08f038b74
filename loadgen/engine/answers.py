"""Responses in the format of vLLM 0.32.0: unary, and as server-sent events. Pure.

The text of events needs no escapes, so events are formatted without a JSON serialiser. At a few thousand
tokens per second, formatting is most of the simulator's work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Sequential
from typing import Any

from loadgen.engine.requests import Request
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import output_text

FINGERPRINT = "simulated"
DONE = b"data: [DONE]\n\n"


class Answer:
    """The response to one request, while its sequences run."""

    def __init__(
        self,
        request: Request,
        sequences: Sequential[Sequence],
        *,
        name: str,
        created: int,
        tells_cached: bool,
        id_: int,
    ) -> None:
        self._request = request
        self._sequences = sequences
        """For each prompt ``n`` in a row."""
        self._tells_cached = tells_cached
        self._sent = [0] * len(sequences)
        self._unfinished = len(sequences)
        self._has_begun = False
        prefix, kind = ("chatcmpl", "chat.completion") if request.is_chat else ("cmpl", "text_completion")
        self._envelope = {"id": f"{prefix}-{id_:016x}", "object": kind, "created": created, "model": name}
        chunk = self._envelope | ({"object": "chat.completion.chunk"} if request.is_chat else {})
        self._head = "data: " + json.dumps(chunk, separators=(",", ":"))[:-1] + ',"choices":['

    @property
    def is_complete(self) -> bool:
        """Whether all sequences ended and, in a stream, have their last events."""
        return not self._unfinished

    def whole(self) -> dict[str, Any]:
        """The unary response, after the end of all sequences."""
        choices = [self._choice(index, sequence) for index, sequence in enumerate(self._sequences)]
        return {
            **self._envelope,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._usage() | self._details() | {"completion_tokens_details": None},
        }

    def events(self) -> bytes:
        """Events for the tokens since the last call, one per sequence with new tokens."""
        made = [] if self._has_begun or not self._request.is_chat else self._role_events()
        self._has_begun = True
        for index, sequence in enumerate(self._sequences):
            sent = self._sent[index]
            if sequence.produced > sent:
                self._sent[index] = sequence.produced
                self._unfinished -= sequence.ending is not None
                made.append(self._event(index, sequence, output_text(sent, sequence.produced)))
        return "".join(made).encode()

    def last_events(self) -> bytes:
        """The end of a stream: its usage, if requested, and the last event."""
        if not self._request.tells_usage:
            return DONE
        usage = self._usage()
        if self._tells_cached:
            usage = usage | self._details()
        told = json.dumps(usage, separators=(",", ":"))
        return f'{self._head}],"usage":{told},"system_fingerprint":"{FINGERPRINT}"}}\n\n'.encode() + DONE

    def _choice(self, index: int, sequence: Sequence) -> dict[str, Any]:
        text = output_text(0, sequence.produced)
        content = {"message": _message(text)} if self._request.is_chat else {"text": text}
        return {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": str(sequence.ending),
            "stop_reason": None,
        }

    def _role_events(self) -> list[str]:
        """The role, once for each choice, before all content."""
        start = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return [
            f'{self._head}{{"index":{index},{start}}}]{self._running_usage(sequence, 0)}}}\n\n'
            for index, sequence in enumerate(self._sequences)
        ]

    def _event(self, index: int, sequence: Sequence, text: str) -> str:
        is_last = sequence.ending is not None
        finish = f'"{sequence.ending}"' if is_last else "null"
        if self._request.is_chat:
            stop = ',"stop_reason":null' if is_last else ""
            content, tail = f'"delta":{{"content":"{text}"}}', f'{stop},"token_ids":null'
        else:
            content, tail = f'"text":"{text}"', ',"stop_reason":null,"prompt_token_ids":null,"token_ids":null'
        # Without a usage event, this event ends the stream.
        fingerprint = is_last and not self._request.tells_usage
        more = f',"system_fingerprint":"{FINGERPRINT}"' if fingerprint else ""
        usage = self._running_usage(sequence, sequence.produced)
        return (
            f'{self._head}{{"index":{index},{content},"logprobs":null,"finish_reason":{finish}{tail}}}]'
            f"{usage}{more}}}\n\n"
        )

    def _running_usage(self, sequence: Sequence, produced: int) -> str:
        if not self._request.tells_usage_always:
            return ""
        prompt = len(sequence.prompt)
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + produced}'
            f',"completion_tokens":{produced}}}'
        )

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(tokens) for tokens in self._request.prompts)
        produced = sum(sequence.produced for sequence in self._sequences)
        return {"prompt_tokens": prompt, "total_tokens": prompt + produced, "completion_tokens": produced}

    def _details(self) -> dict[str, Any]:
        if not self._tells_cached:
            return {"prompt_tokens_details": None}
        # A prompt and its cached tokens count once for all sequences of a request.
        cached = sum(sequence.cached for sequence in self._sequences[:: self._request.n])
        return {"prompt_tokens_details": {"cached_tokens": cached}}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None, "function_call": None, "reasoning": None}
