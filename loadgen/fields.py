"""YAML with lines: typed access to a scenario's values. Knows nothing of scenarios.

The first problem ends the reading with ``ScenarioError``: one line that names file, line, field and fix. The
pool file's reader (`tokenpool.poolfile`) collects problems instead: it is read by machines that must say all.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import yaml

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TEXT = "tag:yaml.org,2002:str"
_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


class ScenarioError(ValueError):
    """A scenario (or a trace, or what was asked of one) that cannot be run; the text is one line."""


class Field:
    """One value of the document, and where it stands."""

    __slots__ = ("_file", "_node", "path")

    def __init__(self, node: yaml.Node, file: str, path: str = "") -> None:
        self._node = node
        self._file = file
        self.path = path
        """What the value is called in messages, such as ``tenants[0].arrivals``; empty for the document."""

    def fail(self, message: str, fix: str) -> NoReturn:
        """Raise ``ScenarioError`` for this value."""
        raise _error(self._file, self._node.start_mark, f"{self.path or 'the scenario'} {message}; {fix}")

    @property
    def is_mapping(self) -> bool:
        """Whether the value has fields."""
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    @property
    def is_number(self) -> bool:
        """Whether the value is a plain number."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.tag in _NUMBERS

    def named(self) -> dict[str, Field]:
        """The fields of a mapping, whatever they are called."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail(f"is not a mapping but {self._kind()}", "write it as 'name: value' lines")
        found: dict[str, Field] = {}
        for key, value in self._node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            where = f"{self.path}.{name}" if self.path else name
            if name in found:
                raise _error(self._file, key.start_mark, f"{where} is given twice; keep one of the two")
            found[name] = Field(value, self._file, where)
        return found

    def fields(self, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Field]:
        """The fields of a mapping, all of them known, and all that are required."""
        found = self.named()
        for name, field in found.items():
            if name not in known:
                field.fail("is not a known field", _suggestion(name, known))
        for name in required:
            if name not in found:
                self.fail(f"has no {name}", f"add '{name}:'")
        return found

    def one(self, known: Sequence[str]) -> tuple[str, Field]:
        """The only field of a mapping, which says of what kind the value is."""
        found = self.fields(known)
        if len(found) != 1:
            self.fail(f"has {len(found)} kinds", f"write exactly one of {', '.join(known)}")
        return next(iter(found.items()))

    def items(self) -> list[Field]:
        """The items of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail(f"is not a list but {self._kind()}", "write it as a list, one '- ' for each item")
        return [Field(n, self._file, f"{self.path}[{i}]") for i, n in enumerate(self._node.value)]

    def text(self) -> str:
        """A text that is not empty."""
        node = self._node
        if not (isinstance(node, yaml.ScalarNode) and node.tag == _TEXT and node.value.strip()):
            self.fail(
                f"is not a text but {self._kind()}", "write a text, in quotes where it looks like a number"
            )
        return str(node.value)

    def word(self, choices: Sequence[str]) -> str:
        """One of a few words."""
        text = self.text()
        if text not in choices:
            self.fail(f"is {text!r}", _suggestion(text, choices))
        return text

    def truth(self) -> bool:
        """True or false."""
        node = self._node
        if not isinstance(node, yaml.ScalarNode) or node.value.lower() not in _BOOLEANS:
            self.fail(f"is not true or false but {self._kind()}", "write true or false")
        return _BOOLEANS[node.value.lower()]

    def number(self, unit: str, *, least: float = 0.0, most: float = math.inf, above: bool = False) -> float:
        """A finite number from ``least`` (or, ``above``, more than it) to ``most``."""
        try:
            value = float(yaml.safe_load(self._node.value)) if self.is_number else math.nan
        except (TypeError, ValueError, yaml.YAMLError):
            value = math.nan
        if not math.isfinite(value):
            self.fail(
                f"is not a number but {self._kind()}", f"write a plain number of {unit}, without a unit"
            )
        if value < least or (above and value == least):
            self.fail(f"is {value:g}", f"write {'more than' if above else 'at least'} {least:g} {unit}")
        if value > most:
            self.fail(f"is {value:g}", f"write at most {most:g} {unit}")
        return value

    def whole(self, unit: str, *, least: int = 0, most: float = math.inf) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self.number(unit, least=least, most=most)
        if value != int(value):
            self.fail(f"is {value:g}", f"write a whole number of {unit}")
        return int(value)

    def _kind(self) -> str:
        if self.is_mapping:
            return "a mapping"
        if self.is_list:
            return "a list"
        return "nothing" if self._node.tag.endswith(":null") else repr(str(self._node.value)[:40])


def given(
    fields: dict[str, Field], name: str, read: Callable[[Field], _Value], default: _Default
) -> _Value | _Default:
    """What ``read`` makes of a field, or the default where the field is absent."""
    return read(fields[name]) if name in fields else default


def document(text: str, file: str) -> Field:
    """The top of a YAML document."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        what = error.problem or error.context or "it cannot be read"
        mark = error.problem_mark or error.context_mark
        raise _error(file, mark, f"not YAML: {what}; mend the syntax") from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise _error(file, None, f"not YAML: {what}; remove what is no text") from None
    except RecursionError:
        raise _error(file, None, "the file is nested too deeply; nest less") from None
    if node is None:
        raise _error(file, None, "the file is empty; add 'name:' and 'tenants:'")
    return Field(node, file)


def _error(file: str, mark: yaml.Mark | None, message: str) -> ScenarioError:
    return ScenarioError(f"{file}:{mark.line + 1 if mark is not None else 1}: {message}")


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
