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

from loadgen.decoding import UNDECODABLE
from loadgen.scenario import Message, Traced
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
    CONVERSATION = "conversation"
    """All questions, one after the other, each with the answers that the engine gives."""


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
    """The requests of a conversation. What the assistant says before the first question is no question."""
    begins = next((place for place, each in enumerate(messages) if each.role != "assistant"), len(messages))
    kept = messages[begins:]
    asked = [
        place
        for place, (question, answer) in enumerate(pairwise(kept))
        if (question.role, answer.role) == ("user", "assistant") and question.content and answer.content
    ]
    if turns is Turns.EACH:
        for place in asked:
            yield _row(line, kept[: place + 1], kept[place + 1])
    elif asked:
        first, *later = asked
        row = _row(line, kept[: first + 1], kept[first + 1])
        is_whole = turns is Turns.CONVERSATION
        yield row._replace(later=tuple(_turn(kept[n], kept[n + 1]) for n in later) if is_whole else ())


def _row(line: int, said: list[Message], answer: Message) -> Row:
    tokens = sum(_tokens(each.content) for each in said)
    return Row(line, 0.0, tokens, _tokens(answer.content), (), tuple(said), answer.content)


def _turn(question: Message, answer: Message) -> Traced:
    tokens = _tokens(question.content), _tokens(answer.content)
    return Traced(0.0, *tokens, messages=(question,), answer=answer.content)


def _tokens(text: str) -> int:
    return max(round(len(text.encode(errors="surrogatepass")) / BYTES_PER_TOKEN), 1)


def _conversations(path: Path) -> Iterator[tuple[int, _Conversation]]:
    whole = content(path).removeprefix(b"\xef\xbb\xbf")
    decode = msgspec.json.Decoder(_Conversation).decode
    for line, raw in _items(path, whole):
        try:
            yield line, decode(raw)
        except UNDECODABLE as error:
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
    except UNDECODABLE as error:
        place = re.search(r"byte (\d+)", str(error))
        before = whole[: int(place[1])] if place else whole
        broken(path, before.count(b"\n") + 1, str(error), "give a JSON array, or JSON lines")
    line, counted, searched = 1, 0, 0
    for item in items:
        begins = whole.index(bytes(item), searched)
        line += whole.count(b"\n", counted, begins)
        counted, searched = begins, begins + len(bytes(item))
        yield line, item
