"""JSON bodies of requests, their values, and refusals in vLLM's words. Pure.

Types are converted as leniently as in vLLM (``"3"`` is 3, ``"yes"`` is true). All routes use this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Tokens = tuple[int, ...]
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escaped half of a surrogate pair."""
_TRUE, _FALSE = ("true", "1", "yes", "y", "on", "t"), ("false", "0", "no", "n", "off", "f")


class Refused(Exception):
    """The engine does not serve a request."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": status}
        }


class Body:
    """The fields of a JSON object."""

    def __init__(self, content: Mapping[str, Any], where: str = "body") -> None:
        self._content = content
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def only(self, *names: str) -> Body:
        """The body without all other fields, which the route ignores."""
        return Body({name: self._content[name] for name in names if name in self._content}, self._where)

    def get(self, name: str) -> Any:
        """The unconverted value; ``None`` for a missing field."""
        return self._content.get(name)

    def needed(self, name: str) -> Any:
        """The unconverted value. Raises ``Refused`` if the field is missing."""
        if name not in self._content:
            raise invalid("missing", f"{self._where}.{name}", "Field required", self._content)
        return self._content[name]

    def text(self, name: str) -> str | None:
        """A text; ``None`` for a missing field."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid("string_type", f"{self._where}.{name}", "Input should be a valid string", value)
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
            raise invalid(
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
            raise no_object(f"{self._where}.{name}", value)
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
        raise invalid("json_invalid", "body.0", "JSON decode error", {}) from None
    if not isinstance(content, dict):
        raise no_object("body", content)
    if _HALF.search(raw) and not _is_unicode(content):
        message = "Input should be a valid string, unable to parse raw data as a unicode string"
        raise invalid("string_unicode", "body", message, content)
    return Body(content)


def _is_unicode(content: object) -> bool:
    """Whether all texts can be encoded: JSON may contain halves of surrogate pairs."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def text(value: Any, where: str) -> str:
    """A text. ``where`` names the field. Raises ``Refused``."""
    if not isinstance(value, str):
        raise invalid("string_type", where, "Input should be a valid string", value)
    return value


def ids(value: Any, where: str) -> Tokens:
    """Token ids. ``where`` names the field. Raises ``Refused``."""
    if not isinstance(value, list):
        raise invalid("list_type", where, "Input should be a valid list", value)
    tokens = tuple(_whole(each, f"{where}.{index}") for index, each in enumerate(value))
    for index, token in enumerate(tokens):
        if token < 0:
            message = "Input should be greater than or equal to 0"
            raise invalid("greater_than_equal", f"{where}.{index}", message, token)
    return tokens


def _whole(value: Any, where: str) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        message = "Input should be a valid integer, got a number with a fractional part"
        raise invalid("int_from_float", where, message, value)
    if not isinstance(value, str):
        raise invalid("int_type", where, "Input should be a valid integer", value)
    try:
        return int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise invalid("int_parsing", where, message, value) from None


def no_object(where: str, value: Any) -> Refused:
    """vLLM's refusal of a value that must be an object."""
    message = "Input should be a valid dictionary or object to extract fields from"
    return invalid("model_attributes_type", where, message, value)


def invalid(kind: str, where: str, message: str, value: Any) -> Refused:
    """vLLM's refusal of a field with a wrong type."""
    shown = (
        f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, dict | list) else str(value)
    )
    told = {"type": kind, "loc": where, "msg": message, "input": shown}
    return Refused(f"1 validation error:\n  {told}", kind="Bad Request", param=where)


def bad_value(message: str, param: str, value: object = None) -> Refused:
    """vLLM's refusal of a field with an invalid value."""
    told = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
    return Refused(f"{message} ({told})", param=param)
