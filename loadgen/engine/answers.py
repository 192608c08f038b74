"""Responses in the format of vLLM 0.32.0: unary, and as server-sent events. Pure.

``Answer`` is the course of every response that has output; the subclasses are its formats. The text of events
needs no escapes, so events are formatted without a JSON serialiser. At a few thousand tokens per second,
formatting is most of the simulator's work.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence as Sequential
from dataclasses import dataclass
from typing import Any

from loadgen.engine.requests import Request
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import output_text

FINGERPRINT = "simulated"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What distinguishes a response, and the settings of its format."""

    created: int
    """Unix time, s."""
    number: int
    tells_cached: bool = False
    """Whether the usage has cached tokens."""
    interval: int = 1
    """Tokens of an event after the first one."""


class Answer(ABC):
    """The response to one request, while its sequences run."""

    def __init__(self, request: Request, sequences: Sequential[Sequence], stamp: Stamp) -> None:
        self.request = request
        self.sequences = sequences
        """For each prompt ``n`` in a row."""
        self.stamp = stamp
        self._sent = [0] * len(sequences)
        self._unfinished = len(sequences)
        self._has_begun = False
        self._interval = stamp.interval

    @property
    def is_complete(self) -> bool:
        """Whether all sequences ended and, in a stream, have their last events."""
        return not self._unfinished

    @property
    def sent(self) -> int:
        """Tokens in events so far."""
        return sum(self._sent)

    @property
    def prompt_tokens(self) -> int:
        """The sum over all prompts."""
        return sum(len(tokens) for tokens in self.request.prompts)

    @property
    def produced(self) -> int:
        """The sum over all sequences."""
        return sum(sequence.produced for sequence in self.sequences)

    @property
    def cached(self) -> int:
        """Cached tokens. A prompt counts once for all sequences of a request."""
        return sum(sequence.cached for sequence in self.sequences[:: self.request.n])

    def events(self) -> bytes:
        """Events for the tokens since the last call, one per sequence with enough new tokens."""
        made = [] if self._has_begun else self.first_events()
        self._has_begun = True
        for index, sequence in enumerate(self.sequences):
            sent, produced = self._sent[index], sequence.produced
            if produced - sent >= self._interval or (
                produced > sent and (not sent or sequence.ending is not None)
            ):
                self._sent[index] = produced
                self._unfinished -= sequence.ending is not None
                made.append(self.event(index, sequence, output_text(sent, produced)))
        return "".join(made).encode()

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The unary response, after the end of all sequences."""

    @abstractmethod
    def first_events(self) -> list[str]:
        """Events before all tokens."""

    @abstractmethod
    def event(self, index: int, sequence: Sequence, text: str) -> str:
        """The event for new tokens."""

    @abstractmethod
    def last_events(self) -> bytes:
        """The end of a stream."""

    @abstractmethod
    def failed_events(self, status: int, message: str) -> bytes:
        """The end of a stream in which the engine fails."""


class OpenAIAnswer(Answer):
    """Chat completions and completions."""

    def __init__(self, request: Request, sequences: Sequential[Sequence], stamp: Stamp) -> None:
        super().__init__(request, sequences, stamp)
        prefix, kind = ("chatcmpl", "chat.completion") if request.is_chat else ("cmpl", "text_completion")
        self._envelope = {
            "id": f"{prefix}-{stamp.number:016x}",
            "object": kind,
            "created": stamp.created,
            "model": request.model,
        }
        chunk = self._envelope | ({"object": "chat.completion.chunk"} if request.is_chat else {})
        self._head = "data: " + compact(chunk)[:-1] + ',"choices":['

    def whole(self) -> dict[str, Any]:
        """See ``Answer``."""
        choices = [self._choice(index, sequence) for index, sequence in enumerate(self.sequences)]
        return {
            **self._envelope,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._usage() | self._details() | {"completion_tokens_details": None},
        }

    def first_events(self) -> list[str]:
        """The role, once for each choice."""
        if not self.request.is_chat:
            return []
        start = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return [
            f'{self._head}{{"index":{index},{start}}}]{self._running_usage(sequence, 0)}}}\n\n'
            for index, sequence in enumerate(self.sequences)
        ]

    def event(self, index: int, sequence: Sequence, text: str) -> str:
        """See ``Answer``."""
        is_last = sequence.ending is not None
        finish = f'"{sequence.ending}"' if is_last else "null"
        if self.request.is_chat:
            stop = ',"stop_reason":null' if is_last else ""
            content, tail = f'"delta":{{"content":"{text}"}}', f'{stop},"token_ids":null'
        else:
            content, tail = f'"text":"{text}"', ',"stop_reason":null,"prompt_token_ids":null,"token_ids":null'
        # Without a usage event, this event ends the stream.
        fingerprint = is_last and not self.request.tells_usage
        more = f',"system_fingerprint":"{FINGERPRINT}"' if fingerprint else ""
        usage = self._running_usage(sequence, sequence.produced)
        return (
            f'{self._head}{{"index":{index},{content},"logprobs":null,"finish_reason":{finish}{tail}}}]'
            f"{usage}{more}}}\n\n"
        )

    def last_events(self) -> bytes:
        """The usage, if requested, and the last event."""
        if not self.request.tells_usage:
            return DONE
        usage = self._usage()
        if self.stamp.tells_cached:
            usage = usage | self._details()
        told = compact(usage)
        return f'{self._head}],"usage":{told},"system_fingerprint":"{FINGERPRINT}"}}\n\n'.encode() + DONE

    def failed_events(self, status: int, message: str) -> bytes:
        """See ``Answer``."""
        return f"data: {compact(error_body(status, message))}\n\n".encode() + DONE

    def _choice(self, index: int, sequence: Sequence) -> dict[str, Any]:
        text = output_text(0, sequence.produced)
        content = {"message": _message(text)} if self.request.is_chat else {"text": text}
        return {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": str(sequence.ending),
            "stop_reason": None,
        }

    def _running_usage(self, sequence: Sequence, produced: int) -> str:
        if not self.request.tells_usage_always:
            return ""
        prompt = len(sequence.prompt)
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + produced}'
            f',"completion_tokens":{produced}}}'
        )

    def _usage(self) -> dict[str, Any]:
        prompt, produced = self.prompt_tokens, self.produced
        return {"prompt_tokens": prompt, "total_tokens": prompt + produced, "completion_tokens": produced}

    def _details(self) -> dict[str, Any]:
        if not self.stamp.tells_cached:
            return {"prompt_tokens_details": None}
        return {"prompt_tokens_details": {"cached_tokens": self.cached}}


def compact(content: object) -> str:
    """JSON without spaces, as vLLM writes it."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def error_body(status: int, message: str) -> dict[str, Any]:
    """vLLM's body for a failure of the engine."""
    kind = "ServiceUnavailableError" if status == 503 else "InternalServerError"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None, "function_call": None, "reasoning": None}
