"""YAML with line numbers: typed access to the values of a document. Pool files and load scenarios use it.

An accessor reports problems to a ``Problems`` object, and then returns ``None``. This module's object
collects them, so that a reader can report all of them. The load generator's object raises an error at the
first problem.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_MOST_BYTES = 16 << 20
"""The size of a file with about 50,000 entitlements."""
_MOST_DEPTH = 20
_LONGEST_TIME = 40
"""The most characters of a point in time."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, if PyYAML was built with it. It reads 2,000 entitlements in a fifth of the time."""
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?")
"""Numbers that YAML and Python read in the same way. YAML has more: octal, sexagesimal, .inf."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One error or one warning."""

    line: int
    """The line in the file, from 1."""
    message: str
    """The problem, with the name of the value."""
    fix: str
    """The next step for the author of the file."""
    file: str = ""
    """The name of the file, if there are several."""

    def render(self, name: str) -> str:
        """The text ``pool.yaml:12: PROBLEM; FIX``, with ``name`` if the problem has no file of its own."""
        return f"{self.file or name}:{self.line}: {self.message}; {self.fix}"


class Problems:
    """Collects the problems of a file."""

    before = 0
    """The number of lines in the files before this one. Lines are counted through all files."""

    def __init__(self, before: int = 0) -> None:
        self.before = before
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, line: int, message: str, fix: str) -> None:
        """Report a problem that makes the file invalid. ``line`` is in this file."""
        self.errors.append(Problem(self.before + line, message, fix))

    def warn(self, line: int, message: str, fix: str) -> None:
        """Report a probable mistake in a valid file. ``line`` is in this file."""
        self.warnings.append(Problem(self.before + line, message, fix))


class Node:
    """One value of the document, with its path and line."""

    __slots__ = ("_node", "_prefix", "_problems", "path")

    def __init__(self, node: yaml.Node, path: str, problems: Problems, *, is_root: bool = False) -> None:
        self._node = node
        self._problems = problems
        self.path = path
        """The value's name in messages, such as ``pools[0].name``."""
        self._prefix = "" if is_root else f"{path}."

    @property
    def line(self) -> int:
        """The line, from 1, counted through all files."""
        return self._problems.before + self._own_line

    @property
    def _own_line(self) -> int:
        return int(self._node.start_mark.line) + 1

    def error(self, message: str, fix: str) -> None:
        """Report an error of this value."""
        self._problems.error(self._own_line, f"{self.path} {message}", fix)

    def warn(self, message: str, fix: str) -> None:
        """Report a warning about this value."""
        self._problems.warn(self._own_line, f"{self.path} {message}", fix)

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

    def fields(self, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Node]:
        """The fields of a mapping. Unknown, repeated and missing fields are errors."""
        found = self._fields(known, f"give it fields: {', '.join(known)}")
        for name in required if self.is_mapping else ():
            if name not in found:
                self.error(f"has no {name}", f"add '{name}:'")
        return found

    def named(self) -> dict[str, Node]:
        """The fields of a mapping with any names. Repeated fields are errors."""
        return self._fields(None, "write it as 'name: value' lines")

    def _fields(self, known: Sequence[str] | None, fix: str) -> dict[str, Node]:
        if not isinstance(self._node, yaml.MappingNode):
            self.error(f"is not a mapping but {self._kind()}", fix)
            return {}
        found: dict[str, Node] = {}
        for key, value in self._node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            line = int(key.start_mark.line) + 1
            where = self._prefix + name
            if name in found:
                self._problems.error(line, f"{where} is given twice", "keep one of the two")
            elif known is not None and name not in known:
                self._problems.error(line, f"{where} is not a known field", _suggestion(name, known))
            else:
                found[name] = Node(value, where, self._problems)
        return found

    def items(self) -> Iterator[Node]:
        """The items of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.error(f"is not a list but {self._kind()}", "write it as a list, one '- ' for each item")
            return
        for index, item in enumerate(self._node.value):
            yield Node(item, f"{self.path}[{index}]", self._problems)

    def text(self) -> str | None:
        """The value as a text that is not empty."""
        node = self._node
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str" and node.value.strip():
            return str(node.value)
        self.error(
            f"is not a text but {self._kind()}", "write a text, in quotes where it looks like a number"
        )
        return None

    def word(self, choices: Sequence[str]) -> str | None:
        """The value as one of ``choices``."""
        text = self.text()
        if text is None or text in choices:
            return text
        self.error(f"is {text[:40]!r}, which is not one of {', '.join(choices)}", _suggestion(text, choices))
        return None

    def is_word(self, word: str) -> bool:
        """Whether the value is exactly this text."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.value == word

    def number(
        self, unit: str, *, least: float = 0.0, most: float = math.inf, above: bool = False
    ) -> float | None:
        """The value as a finite number from ``least`` to ``most``; with ``above``, more than ``least``."""
        value = self._number()
        if value is None:
            self.error(
                f"is not a number but {self._kind()}", f"write a plain number of {unit}, without a unit"
            )
            return None
        if value < least or (above and value == least):
            self.error(f"is {value:g}", f"write {'more than' if above else 'at least'} {least:g} {unit}")
            return None
        if value > most:
            self.error(f"is {value:g}", f"write at most {most:g} {unit}")
            return None
        return value

    def _number(self) -> float | None:
        """The value as a finite number; ``None`` if it is none."""
        if not self.is_number:
            return None
        text = self._node.value
        try:
            value = float(text if _PLAIN_NUMBER.fullmatch(text) else yaml.safe_load(text))
        except (TypeError, ValueError, yaml.YAMLError):
            return None
        return value if math.isfinite(value) else None

    def whole(self, unit: str, *, least: int = 0, most: float = math.inf) -> int | None:
        """The value as a whole number from ``least`` to ``most``."""
        value = self.number(unit, least=least, most=most)
        if value is None:
            return None
        if value != int(value):
            self.error(f"is {value:g}", f"write a whole number of {unit}")
            return None
        return int(value)

    def boolean(self) -> bool | None:
        """The value as true or false."""
        node = self._node
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
            return bool(yaml.safe_load(node.value))
        self.error(f"is neither true nor false but {self._kind()}", "write true or false, without quotes")
        return None

    def value(self) -> object:
        """The value in the types of JSON. A date, or a number that is not finite, is an error."""
        node = self._node
        if isinstance(node, yaml.MappingNode):
            return {name: each.value() for name, each in self.named().items()}
        if isinstance(node, yaml.SequenceNode):
            return [each.value() for each in self.items()]
        if self.is_number:
            number = self.number("(any unit)", least=-math.inf)
            # A float would round a large whole number.
            return yaml.safe_load(node.value) if node.tag == "tag:yaml.org,2002:int" else number
        if node.tag == "tag:yaml.org,2002:bool":
            return self.boolean()
        if node.tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:str"):
            return None if node.tag.endswith("null") else str(node.value)
        self.error(f"is not a value of JSON but {self._kind()}", "write it in quotes")
        return None

    def time(self) -> float | None:
        """The value as a point in time with its zone, in seconds of Unix time."""
        node = self._node
        fix = "write a date, a time and a zone, such as 2027-01-31T18:00:00Z"
        if not isinstance(node, yaml.ScalarNode) or len(node.value) > _LONGEST_TIME:
            self.error(f"is not a point in time but {self._kind()}", fix)
            return None
        try:
            value: Any = yaml.safe_load(node.value)
            if value.tzinfo is None:
                self.error("has no zone", fix)
                return None
            return float(value.timestamp())
        except (AttributeError, ValueError, OverflowError, yaml.YAMLError):
            self.error(f"is not a point in time but {self._kind()}", fix)
            return None

    def _kind(self) -> str:
        node = self._node
        if isinstance(node, yaml.MappingNode):
            return "a mapping"
        if isinstance(node, yaml.SequenceNode):
            return "a list"
        return "nothing" if node.tag == "tag:yaml.org,2002:null" else repr(str(node.value)[:40])


def of_values(values: object, problems: Problems, *, name: str) -> Node:
    """A node for values that are not from a YAML text, such as decoded JSON. It has no line (0).

    ``name`` is the value's name in messages; fields are named below it.
    """
    return Node(_node_of(values), name, problems)


_NOWHERE = yaml.Mark("", 0, -1, 0, None, 0)
"""The mark of a value that is not from a text: the node's line is 0."""


def _node_of(value: object) -> yaml.Node:
    if isinstance(value, Mapping):
        pairs = [(_node_of(str(key)), _node_of(each)) for key, each in value.items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, _NOWHERE)
    if isinstance(value, list | tuple):
        return yaml.SequenceNode("tag:yaml.org,2002:seq", [_node_of(each) for each in value], _NOWHERE)
    if value is None:
        kind, text = "null", "null"
    elif isinstance(value, bool):
        kind, text = "bool", "true" if value else "false"
    elif isinstance(value, int | float):
        kind, text = "float" if isinstance(value, float) else "int", repr(value)
    else:
        kind, text = "str", str(value)
    return yaml.ScalarNode(f"tag:yaml.org,2002:{kind}", text, _NOWHERE)


def root(text: str, problems: Problems, *, name: str = "file", fields: str) -> Node | None:
    """The top of a document; ``None`` if the text is no YAML document.

    ``name`` is the document's name in messages. ``fields`` are the required fields, for the message about an
    empty document.
    """
    if len(text) > _MOST_BYTES:
        problems.error(1, f"the file has more than {_MOST_BYTES} characters", "split the file")
        return None
    try:
        if not _is_flat(text, problems):
            return None
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        what = error.problem or error.context or "it cannot be read"
        if "nesting depth" in what:  # libyaml's own bound is lower here
            _nested_too_deeply(problems, error.problem_mark)
            return None
        # If the text ends too early, libyaml names the line after its end.
        problems.error(
            min(_line(error.problem_mark or error.context_mark), text.count("\n") + 1),
            f"not YAML: {what}",
            "correct the syntax",
        )
        return None
    except yaml.YAMLError as error:
        problems.error(1, f"not YAML: {str(error).splitlines()[0]}", "remove all bytes that are not text")
        return None
    if node is None:
        problems.error(1, "the file is empty", f"add {fields}")
        return None
    return Node(node, name, problems, is_root=True)


def _is_flat(text: str, problems: Problems) -> bool:
    """Whether the document has no aliases and no more than ``_MOST_DEPTH`` levels.

    This is checked before nodes are made. Nested nodes need stack, and an alias is read again at each use.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                _nested_too_deeply(problems, event.start_mark)
                return False
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            problems.error(_line(event.start_mark), "aliases (*name) are not read", "write the value out")
            return False
    return True


def _nested_too_deeply(problems: Problems, mark: object) -> None:
    problems.error(_line(mark), "the file is nested too deeply", f"use no more than {_MOST_DEPTH} levels")


def _line(mark: object) -> int:
    return int(getattr(mark, "line", 0)) + 1


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
