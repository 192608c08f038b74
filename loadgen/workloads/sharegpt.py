"""Conversations in the form of ShareGPT, or of OpenAI's ``messages``. They have texts, but no times.

The file is a JSON array or JSON lines. A conversation is ``{"conversations": [{"from": "human", "value":
"..."}]}`` or ``{"messages": [{"role": "user", "content": "..."}]}``. Other fields are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import msgspec

from loadgen.scenario import Message
from loadgen.workloads.rows import Row, broken, content

BYTES_PER_TOKEN = 4
"""For lengths before a tokenizer counts them."""
_FIX = 'write {"conversations": [{"from": "human", "value": "..."}, ...]} or {"messages": [...]}'
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    "system": "system",
}


class Turns(StrEnum):
    """The requests that are made of a conversation."""

    FIRST = "first"
    """The first question only."""
    EACH = "each"
    """Each question, with the recorded conversation before it."""


class _Text(msgspec.Struct):
    type: str = "text"
    text: str = ""


class _Message(msgspec.Struct):
    speaker: str = msgspec.field(name="from", default="")
    value: str = ""
    role: str = ""
    content: str | list[_Text] | None = None


class _Conversation(msgspec.Struct):
    conversations: list[_Message] | None = None
    messages: list[_Message] | None = None


def read(path: Path, turns: Turns = Turns.FIRST) -> Iterator[Row]:
    """The requests, in the file's order. A line is where a conversation begins. Raises ``ScenarioError``."""
    for line, conversation in _conversations(path):
        said = conversation.conversations if conversation.conversations is not None else conversation.messages
        if said is None:
            broken(path, line, "the conversation has neither 'conversations' nor 'messages'", _FIX)
        yield from _requests([_message(path, line, each) for each in said], line, turns)


def _message(path: Path, line: int, given: _Message) -> Message:
    name = given.speaker or given.role
    role = _ROLES.get(name.lower())
    if role is None:
        broken(path, line, f"a message is from {name!r}", f"write one of {', '.join(_ROLES)}")
    text = given.value or given.content or ""
    return Message(role, text if isinstance(text, str) else "".join(part.text for part in text))


def _requests(messages: list[Message], line: int, turns: Turns) -> Iterator[Row]:
    """A request for each question that has an answer. What the assistant says before is no question."""
    begins = next((place for place, each in enumerate(messages) if each.role != "assistant"), len(messages))
    kept = messages[begins:]
    for place, (question, answer) in enumerate(pairwise(kept)):
        if (question.role, answer.role) != ("user", "assistant") or not (question.content and answer.content):
            continue
        before = tuple(kept[: place + 1])
        tokens = sum(_tokens(each.content) for each in before)
        yield Row(line, 0.0, tokens, _tokens(answer.content), (), before, answer.content)
        if turns is Turns.FIRST:
            return


def _tokens(text: str) -> int:
    return max(round(len(text.encode(errors="surrogatepass")) / BYTES_PER_TOKEN), 1)


def _conversations(path: Path) -> Iterator[tuple[int, _Conversation]]:
    whole = content(path).removeprefix(b"\xef\xbb\xbf")
    decode = msgspec.json.Decoder(_Conversation).decode
    for line, raw in _items(path, whole):
        try:
            yield line, decode(raw)
        except msgspec.DecodeError as error:  # the base of ValidationError, too
            broken(path, line, str(error), _FIX)


def _items(path: Path, whole: bytes) -> Iterator[tuple[int, bytes | msgspec.Raw]]:
    """The JSON of each conversation, and the line where it begins."""
    if not whole.lstrip().startswith(b"["):
        for number, text in enumerate(whole.splitlines(), 1):
            if text.strip():
                yield number, text
        return
    try:
        items = msgspec.json.decode(whole, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        place = re.search(r"byte (\d+)", str(error))
        before = whole[: int(place[1])] if place else whole
        broken(path, before.count(b"\n") + 1, str(error), "give a JSON array, or JSON lines")
    line, counted, searched = 1, 0, 0
    for item in items:
        begins = whole.index(bytes(item), searched)
        line += whole.count(b"\n", counted, begins)
        counted, searched = begins, begins + len(bytes(item))
        yield line, item
