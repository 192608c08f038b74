"""The parsers of completions, chats and tokenizer requests: the work of a request, or a refusal. Pure.

``read_work`` and the helpers after it are common to all routes that generate text.
"""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loadgen.engine.bodies import Body, Refused, Tokens, bad_value, ids, invalid, no_object, text
from loadgen.engine.counters import REQUESTS
from loadgen.engine.model import Model, Policy
from loadgen.engine.tokens import chat_text, count_of, encode, utf8

COMPLETIONS_DEFAULT_TOKENS = 16
MOST_SEQUENCES = 16384


@dataclass(frozen=True, slots=True)
class Request:
    """The work of a request, and the form of its response."""

    model: str
    """The requested name: the model's or an adapter's."""
    is_chat: bool
    prompts: tuple[Tokens, ...]
    bounds: tuple[int, ...]
    """The most output tokens, for each prompt; 0 for a pooled one, which has no output."""
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


def read_chat(body: Body, model: Model) -> Request:
    """A ``/v1/chat/completions`` body."""
    messages = conversation(body.needed("messages"))
    name = served_name(body, model)
    bound = body.whole_or_none("max_completion_tokens")
    if bound is None:
        bound = body.whole_or_none("max_tokens")
    prompt = prompt_tokens(chat_text(messages), model, truncation(body, model))
    return read_work(body, model, [prompt], bound, name=name, is_chat=True)


def read_completion(body: Body, model: Model) -> Request:
    """A ``/v1/completions`` body."""
    bound = body.whole_or_none("max_tokens")
    prompts = _prompts(body, model)
    name, most = served_name(body, model), truncation(body, model)
    if bound is None:
        bound = COMPLETIONS_DEFAULT_TOKENS
    made = [prompt_tokens(prompt, model, most) for prompt in prompts]
    return read_work(body, model, made, bound, name=name, is_chat=False)


def read_tokenize(body: Body, model: Model) -> Tokens:
    """The tokens of a ``/tokenize`` body: of a prompt or a conversation."""
    if "messages" in body:
        messages = conversation(body.get("messages"))
        served_name(body, model)
        return encode(chat_text(messages), model.tokens_per_byte, model.vocabulary)
    body.needed("prompt")
    served_name(body, model)
    return encode(body.text("prompt") or "", model.tokens_per_byte, model.vocabulary)


def read_detokenize(body: Body, model: Model) -> Tokens:
    """The tokens of a ``/detokenize`` body."""
    tokens = ids(body.needed("tokens"), "body.tokens")
    served_name(body, model)
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


def read_work(
    body: Body,
    model: Model,
    prompts: Iterable[Tokens],
    bound: int | None,
    *,
    name: str,
    is_chat: bool,
    tells_usage: bool = False,
) -> Request:
    """The fields that all routes share. ``tells_usage``: whether a stream always has its usage."""
    prompts = tuple(prompts)
    n, min_tokens, priority = body.whole("n", 1), body.whole("min_tokens", 0), body.whole("priority", 0)
    streams, options = body.flag("stream"), body.inner("stream_options")
    ignores_end = body.flag("ignore_eos")
    if options is not None and not streams:
        raise bad_value("Stream options can only be defined when `stream=True`.", "stream_options")
    bounds = tuple(_bound(bound, len(prompt), model) for prompt in prompts)
    _check_counts(n, min_tokens, min(bounds))
    if priority and model.policy is not Policy.PRIORITY and model.refuses_priority:
        raise Refused(f"Got priority {priority} but Priority scheduling is not enabled.")
    tells = tells_usage or (options is not None and options.flag("include_usage"))
    return Request(
        model=name,
        is_chat=is_chat,
        prompts=prompts,
        bounds=bounds,
        n=n,
        min_tokens=min_tokens,
        ignores_end=ignores_end,
        priority=priority,
        streams=streams,
        tells_usage=tells,
        tells_usage_always=tells and options is not None and options.flag("continuous_usage_stats"),
    )


def _bound(asked: int | None, prompt: int, model: Model) -> int:
    """The most output tokens: the requested number, limited by the window."""
    if asked is not None and asked > model.window:
        raise bad_value(
            f"max_tokens={asked} cannot be greater than max_model_len={model.window}."
            " Please request fewer output tokens.",
            "max_tokens",
            asked,
        )
    room = model.window - prompt
    bound = room if asked is None else min(asked, room)
    if bound < 1:
        raise bad_value(f"max_tokens must be at least 1, got {bound}.", "max_tokens", bound)
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


def served_name(body: Body, model: Model) -> str:
    """The requested model or adapter. Raises ``Refused`` if it is not served."""
    name = body.text("model")
    if name is None:
        return model.name
    if name != model.name and name not in model.adapters:
        raise Refused(
            f"The model `{name}` does not exist. Valid aliases: {model.name}.",
            status=404,
            kind="NotFoundError",
            param="model",
        )
    return name


def truncation(body: Body, model: Model) -> int | None:
    """The most tokens of a prompt (``truncate_prompt_tokens``); -1 stands for the window."""
    most = body.whole_or_none("truncate_prompt_tokens")
    if most is None:
        return None
    if most < -1:
        raise Refused(f"truncate_prompt_tokens must be greater than or equal to -1, got {most}.")
    if most > model.window:
        raise bad_value(
            f"truncate_prompt_tokens value ({most}) is greater than max_model_len ({model.window})."
            " Please request a smaller truncation size.",
            "truncate_prompt_tokens",
            most,
        )
    return model.window if most == -1 else most


def conversation(value: Any, where: str = "body.messages") -> list[tuple[str, str]]:
    """Roles and texts of a conversation."""
    if not isinstance(value, list):
        raise invalid("list_type", where, "Input should be a valid list", value)
    if not value:
        raise Refused("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return [_message(each, f"{where}.{index}") for index, each in enumerate(value)]


def content_text(content: Any, where: str) -> str:
    """The text of a message: a text, or a list of parts, each an object with a text or a text itself."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid("string_type", where, "Input should be a valid string", content)
    parts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(part for part in parts if isinstance(part, str))


def _message(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise no_object(where, value)
    body = Body(value, where)
    body.needed("role")
    return body.text("role") or "", content_text(body.get("content"), f"{where}.content")


def _prompts(body: Body, model: Model) -> list[str | Tokens]:
    """The prompts of a completion."""
    value, embeds = body.get("prompt"), body.get("prompt_embeds")
    if value is not None and value != "":
        return texts_or_ids(value, "body.prompt")
    if embeds is None:
        raise bad_value("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if not model.takes_embeds:
        raise Refused("You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
    given = embeds if isinstance(embeds, list) else [embeds]
    return [_embedded(text(each, "body.prompt_embeds"), model) for each in given]


def _embedded(packed: str, model: Model) -> Tokens:
    """The tokens of a prompt as a saved PyTorch tensor in base64: one for each row of 32-bit numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed, validate=True))) as archive:
            data = b"".join(archive.read(name) for name in archive.namelist() if "/data/" in name)
    except (ValueError, zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
        raise bad_value(f"Failed to load prompt_embeds: {error}", "prompt_embeds") from None
    row = 4 * model.embedding_size
    if not data or len(data) % row:
        raise bad_value(
            f"prompt_embeds must have rows of {model.embedding_size} 32-bit numbers.", "prompt_embeds"
        )
    return tuple(
        zlib.crc32(data[start : start + row]) % model.vocabulary for start in range(0, len(data), row)
    )


def texts_or_ids(value: Any, where: str) -> list[str | Tokens]:
    """An input, or a list of inputs; each a text or token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise invalid("list_type", where, "Input should be a valid list", value)
    if not value:
        raise Refused("You must pass at least one prompt")
    first = value[0]
    if isinstance(first, str):
        return [text(each, f"{where}.{index}") for index, each in enumerate(value)]
    if isinstance(first, list):
        return [ids(each, f"{where}.{index}") for index, each in enumerate(value)]
    return [ids(value, where)]


def prompt_tokens(prompt: str | Tokens, model: Model, most: int | None = None) -> Tokens:
    """The tokens of a prompt; of a longer one the last ``most``. Raises ``Refused`` above the window."""
    if most == 0 or not prompt:
        raise Refused("The decoder prompt cannot be empty")
    if isinstance(prompt, str):
        if most is not None:
            return encode(prompt, model.tokens_per_byte, model.vocabulary)[-most:]
        # A text that is far too long is refused before tokenising.
        _check_length(count_of(len(utf8(prompt)), model.tokens_per_byte), model)
        return encode(prompt, model.tokens_per_byte, model.vocabulary)
    kept = prompt if most is None else prompt[-most:]
    _check_length(len(kept), model)
    return _in_vocabulary(kept, model)


def _check_length(tokens: int, model: Model) -> None:
    if tokens > model.window:
        raise bad_value(
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
