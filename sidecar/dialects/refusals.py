"""Detects whether an engine's refusal concerns the priority of the request, for any kind of server.

A false positive costs one more attempt. The engine counts as one that refuses priorities only if it serves
the same request without one. So an error message that quotes a prompt cannot turn priorities off.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

REFUSALS = frozenset({400, 422})
"""Statuses with which servers refuse a field or its value."""
FIELD = "priority"
_NAMES_PRIORITY = re.compile(r"\bpriority\b", re.IGNORECASE).search
_decode = msgspec.json.Decoder().decode


def concerns_priority(answer: bytes, *, is_event: bool = False) -> bool:
    """Whether an error names the field ``priority``: in its parameter, its location or its message.

    ``is_event``: the answer is the beginning of an event stream, of which the first event counts.
    """
    if is_event:
        first = next((line for line in answer.splitlines() if line.startswith(b"data:")), b"")
        answer = first.removeprefix(b"data:")
    try:
        content = _decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return not is_event and _mentions(answer.decode("utf-8", "replace"))
    if not isinstance(content, dict):
        return not is_event and isinstance(content, str) and _mentions(content)
    if is_event and "error" not in content and content.get("object") != "error":
        return False
    return any(_names_it(part) for part in _errors(content))


def _errors(content: dict[str, Any]) -> list[Any]:
    """The errors in an answer: OpenAI's and Anthropic's ``error``, FastAPI's ``detail``, or the top level."""
    detail = content.get("detail")
    details = detail if isinstance(detail, list) else [detail]
    return [content, content.get("error"), *details]


def _names_it(error: object) -> bool:
    if isinstance(error, str):
        return _mentions(error)
    if not isinstance(error, dict):
        return False
    place = error.get("loc")
    if error.get("param") == FIELD or (isinstance(place, list) and FIELD in place):
        return True
    return any(_mentions(error.get(key)) for key in ("message", "msg"))


def _mentions(text: object) -> bool:
    return isinstance(text, str) and _NAMES_PRIORITY(text) is not None
