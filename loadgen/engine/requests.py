"""The parser of request bodies: returns the work of a request, or raises a refusal in vLLM's words. Pure.

Types are converted as leniently as in vLLM (``"3"`` is 3, ``"yes"`` is true). This is one file because all
routes share the fields of bodies and the refusals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.engine.counters import REQUESTS
from loadgen.engine.model import Model, Policy
from loadgen.engine.tokens import chat_text, count_of, encode, utf8

COMPLETIONS_DEFAULT_TOKENS = 16
MOST_SEQUENCES = 16384
_TRUE, _FALSE = ("true", "1", "yes", "y", "on", "t"), ("false", "0", "no", "n", "off", "f")

Tokens = tuple[int, ...]


class Refused(Exception):
    """The engine does not serve a request."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True)
class Request:
    """The content of a completion request."""

    is_chat: bool
    prompts: tuple[Tokens, ...]
    bounds: tuple[int, ...]
    """The most output tokens, for each prompt."""
    n: int
    """Sequences for each prompt."""
    min_tokens: int
    ignores_end: bool
    priority: int
    streams: bool
    tells_usage: bool
    """Whether the stream ends with its usage."""
    tells_usage_always: bool
    """... and every event contains it."""


class Body:
    """The fields of a JSON object."""

    def __init__(self, content: Mapping[str, Any], where: str = "body") -> None:
        self._content = content
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def get(self, name: str) -> Any:
        """The unconverted value; ``None`` for a missing field."""
        return self._content.get(name)

    def needed(self, name: str) -> Any:
        """The unconverted value. Raises ``Refused`` if the field is missing."""
        if name not in self._content:
            raise _invalid("missing", f"{self._where}.{name}", "Field required", self._content)
        return self._content[name]

    def text(self, name: str) -> str | None:
        """A text; ``None`` for a missing field."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise _invalid("string_type", f"{self._where}.{name}", "Input should be a valid string", value)
        return value

    def whole(self, name: str, default: int) -> int:
        """A whole number, which must not be null."""
        return _whole(self._content[name], f"{self._where}.{name}") if name in self._content else default

    def whole_or_none(self, name: str) -> int | None:
        """A whole number; ``None`` for a missing field."""
        return None if self.get(name) is None else self.whole(name, 0)

    def flag(self, name: str) -> bool:
        """A truth value; false for a missing field."""
        value = self.get(name)
        if isinstance(value, bool) or value is None:
            return bool(value)
        word = str(value).lower()
        if word not in (*_TRUE, *_FALSE):
            raise _invalid(
                "bool_parsing",
                f"{self._where}.{name}",
                "Input should be a valid boolean, unable to interpret input",
                value,
            )
        return word in _TRUE

    def inner(self, name: str) -> Body | None:
        """A nested object; ``None`` for a missing field."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _no_object(f"{self._where}.{name}", value)
        return Body(value, f"{self._where}.{name}")


def read_body(content_type: str, raw: bytes) -> Body:
    """The fields of a request's body."""
    if content_type != "application/json":
        raise Refused(
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            kind="Bad Request",
        )
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise _invalid("json_invalid", "body.0", "JSON decode error", {}) from None
    if not isinstance(content, dict):
        raise _no_object("body", content)
    return Body(content)


def read_chat(body: Body, model: Model) -> Request:
    """A ``/v1/chat/completions`` body."""
    messages = _messages(body.needed("messages"))
    _check_model(body, model)
    bound = body.whole_or_none("max_completion_tokens")
    if bound is None:
        bound = body.whole_or_none("max_tokens")
    return _request(body, model, [_chat_tokens(messages, model)], bound, is_chat=True)


def read_completion(body: Body, model: Model) -> Request:
    """A ``/v1/completions`` body."""
    bound = body.whole_or_none("max_tokens")
    prompts = _prompts(body.get("prompt"))
    _check_model(body, model)
    if bound is None:
        bound = COMPLETIONS_DEFAULT_TOKENS
    return _request(body, model, [_prompt_tokens(prompt, model) for prompt in prompts], bound, is_chat=False)


def read_tokenize(body: Body, model: Model) -> Tokens:
    """The tokens of a ``/tokenize`` body: of a prompt or a conversation."""
    if "messages" in body:
        messages = _messages(body.get("messages"))
        _check_model(body, model)
        return encode(chat_text(messages), model.tokens_per_byte, model.vocabulary)
    body.needed("prompt")
    _check_model(body, model)
    return encode(body.text("prompt") or "", model.tokens_per_byte, model.vocabulary)


def read_detokenize(body: Body, model: Model) -> Tokens:
    """The tokens of a ``/detokenize`` body."""
    tokens = _ids(body.needed("tokens"), "body.tokens")
    _check_model(body, model)
    return _in_vocabulary(tokens, model)


def busy(limit: str) -> Refused:
    """The refusal for a full queue. ``limit`` is the name of the limit."""
    what = (
        "is currently busy and cannot accept new requests"
        if limit == REQUESTS
        else "has reached its prefill token backlog limit"
    )
    return Refused(
        f"The engine {what}. Please try again later or on a different instance.",
        status=503,
        kind="Service Unavailable",
    )


def _request(
    body: Body, model: Model, prompts: Iterable[Tokens], bound: int | None, *, is_chat: bool
) -> Request:
    prompts = tuple(prompts)
    n, min_tokens, priority = body.whole("n", 1), body.whole("min_tokens", 0), body.whole("priority", 0)
    streams, options = body.flag("stream"), body.inner("stream_options")
    ignores_end = body.flag("ignore_eos")
    if options is not None and not streams:
        raise _bad_value("Stream options can only be defined when `stream=True`.", "stream_options")
    bounds = tuple(_bound(bound, len(prompt), model) for prompt in prompts)
    _check_counts(n, min_tokens, min(bounds))
    if priority and model.policy is not Policy.PRIORITY and model.refuses_priority:
        raise Refused(f"Got priority {priority} but Priority scheduling is not enabled.")
    tells_usage = options is not None and options.flag("include_usage")
    return Request(
        is_chat=is_chat,
        prompts=prompts,
        bounds=bounds,
        n=n,
        min_tokens=min_tokens,
        ignores_end=ignores_end,
        priority=priority,
        streams=streams,
        tells_usage=tells_usage,
        tells_usage_always=tells_usage and options is not None and options.flag("continuous_usage_stats"),
    )


def _bound(asked: int | None, prompt: int, model: Model) -> int:
    """The most output tokens: the requested number, limited by the window."""
    if asked is not None and asked > model.window:
        raise _bad_value(
            f"max_tokens={asked} cannot be greater than max_model_len={model.window}."
            " Please request fewer output tokens.",
            "max_tokens",
            asked,
        )
    room = model.window - prompt
    bound = room if asked is None else min(asked, room)
    if bound < 1:
        raise _bad_value(f"max_tokens must be at least 1, got {bound}.", "max_tokens", bound)
    return bound


def _check_counts(n: int, min_tokens: int, bound: int) -> None:
    if n < 1:
        raise Refused(f"n must be at least 1, got {n}.")
    if n > MOST_SEQUENCES:
        raise Refused(f"n must be at most {MOST_SEQUENCES}, got {n}.")
    if min_tokens < 0:
        raise Refused(f"min_tokens must be greater than or equal to 0, got {min_tokens}.")
    if min_tokens > bound:
        raise Refused(f"min_tokens must be less than or equal to max_tokens={bound}, got {min_tokens}.")


def _check_model(body: Body, model: Model) -> None:
    name = body.text("model")
    if name is not None and name != model.name:
        raise Refused(
            f"The model `{name}` does not exist. Valid aliases: {model.name}.",
            status=404,
            kind="NotFoundError",
            param="model",
        )


def _messages(value: Any) -> list[tuple[str, str]]:
    """Roles and texts of a conversation."""
    if not isinstance(value, list):
        raise _invalid("list_type", "body.messages", "Input should be a valid list", value)
    if not value:
        raise Refused("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return [_message(each, f"body.messages.{index}") for index, each in enumerate(value)]


def _message(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise _no_object(where, value)
    body = Body(value, where)
    body.needed("role")
    content = body.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(part for part in parts if isinstance(part, str))
    elif content is not None and not isinstance(content, str):
        raise _invalid("string_type", f"{where}.content", "Input should be a valid string", content)
    return body.text("role") or "", content or ""


def _chat_tokens(messages: Iterable[tuple[str, str]], model: Model) -> Tokens:
    return _prompt_tokens(chat_text(messages), model)


def _prompts(value: Any) -> list[str | Tokens]:
    """A prompt, or a list of prompts; each a text or token ids."""
    if value is None or value == "":
        raise _bad_value("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _invalid("list_type", "body.prompt", "Input should be a valid list", value)
    if not value:
        raise Refused("You must pass at least one prompt")
    first = value[0]
    if isinstance(first, str):
        return [_text(each, f"body.prompt.{index}") for index, each in enumerate(value)]
    if isinstance(first, list):
        return [_ids(each, f"body.prompt.{index}") for index, each in enumerate(value)]
    return [_ids(value, "body.prompt")]


def _prompt_tokens(prompt: str | Tokens, model: Model) -> Tokens:
    if not prompt:
        raise Refused("The decoder prompt cannot be empty")
    if not isinstance(prompt, str):
        _check_length(len(prompt), model)
        return _in_vocabulary(prompt, model)
    # A text that is far too long is refused before tokenising.
    _check_length(count_of(len(utf8(prompt)), model.tokens_per_byte), model)
    return encode(prompt, model.tokens_per_byte, model.vocabulary)


def _check_length(tokens: int, model: Model) -> None:
    if tokens > model.window:
        raise _bad_value(
            f"This model's maximum context length is {model.window} tokens. However, your prompt contains"
            f" {tokens} input tokens, which exceeds this limit even without any output tokens."
            " Please reduce the length of the input prompt.",
            "input_tokens",
            tokens,
        )


def _in_vocabulary(tokens: Tokens, model: Model) -> Tokens:
    for token in tokens:
        if token >= model.vocabulary:
            raise Refused(f"Token id {token} is out of vocabulary")
    return tokens


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _invalid("string_type", where, "Input should be a valid string", value)
    return value


def _ids(value: Any, where: str) -> Tokens:
    if not isinstance(value, list):
        raise _invalid("list_type", where, "Input should be a valid list", value)
    tokens = tuple(_whole(each, f"{where}.{index}") for index, each in enumerate(value))
    for index, token in enumerate(tokens):
        if token < 0:
            message = "Input should be greater than or equal to 0"
            raise _invalid("greater_than_equal", f"{where}.{index}", message, token)
    return tokens


def _whole(value: Any, where: str) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        message = "Input should be a valid integer, got a number with a fractional part"
        raise _invalid("int_from_float", where, message, value)
    if not isinstance(value, str):
        raise _invalid("int_type", where, "Input should be a valid integer", value)
    try:
        return int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise _invalid("int_parsing", where, message, value) from None


def _no_object(where: str, value: Any) -> Refused:
    message = "Input should be a valid dictionary or object to extract fields from"
    return _invalid("model_attributes_type", where, message, value)


def _invalid(kind: str, where: str, message: str, value: Any) -> Refused:
    """vLLM's refusal of a field with a wrong type."""
    shown = (
        f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, dict | list) else str(value)
    )
    told = {"type": kind, "loc": where, "msg": message, "input": shown}
    return Refused(f"1 validation error:\n  {told}", kind="Bad Request", param=where)


def _bad_value(message: str, param: str, value: object = None) -> Refused:
    """vLLM's refusal of a field with an invalid value."""
    told = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
    return Refused(f"{message} ({told})", param=param)
