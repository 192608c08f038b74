"""YAML with lines: typed access to a document's nodes that collects problems instead of stopping.

Knows nothing of pools. Every accessor returns ``None`` (or the default) where it reported a problem.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tokenpool.poolfile.problems import Problem

_MOST_BYTES = 16 << 20
"""Some 50,000 entitlements."""
_MOST_DEPTH = 20
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, where PyYAML was built with it: 2,000 entitlements are read in a fifth of the time."""
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?")
"""Numbers that YAML and Python read alike. YAML has more: octal, sexagesimal, .inf."""


class Problems:
    """Collects what is wrong with a file."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, line: int, message: str, fix: str) -> None:
        """Report something that keeps the file from being in force."""
        self.errors.append(Problem(line, message, fix))

    def warn(self, line: int, message: str, fix: str) -> None:
        """Report something doubtful."""
        self.warnings.append(Problem(line, message, fix))


class Node:
    """One value of the document, and where it stands."""

    __slots__ = ("_node", "_problems", "path")

    def __init__(self, node: yaml.Node, path: str, problems: Problems) -> None:
        self._node = node
        self._problems = problems
        self.path = path
        """What the value is called in messages, such as ``pools[0].name``."""

    @property
    def line(self) -> int:
        """The line in the file, from 1."""
        return int(self._node.start_mark.line) + 1

    def error(self, message: str, fix: str) -> None:
        """Report a problem with this value."""
        self._problems.error(self.line, f"{self.path} {message}", fix)

    def warn(self, message: str, fix: str) -> None:
        """Report a doubt about this value."""
        self._problems.warn(self.line, f"{self.path} {message}", fix)

    @property
    def is_mapping(self) -> bool:
        """Whether the value has fields."""
        return isinstance(self._node, yaml.MappingNode)

    def fields(self, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Node]:
        """The fields of a mapping; unknown, repeated and missing ones are problems."""
        if not isinstance(self._node, yaml.MappingNode):
            self.error(f"is not a mapping but {self._kind()}", f"give it fields: {', '.join(known)}")
            return {}
        found: dict[str, Node] = {}
        for key, value in self._node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            line = int(key.start_mark.line) + 1
            where = f"{self.path}.{name}" if self.path != "file" else name
            if name in found:
                self._problems.error(line, f"{where} is given twice", "keep one of the two")
            elif name not in known:
                self._problems.error(line, f"{where} is not a known field", _suggestion(name, known))
            else:
                found[name] = Node(value, where, self._problems)
        for name in required:
            if name not in found:
                self.error(f"has no {name}", f"add '{name}:'")
        return found

    def items(self) -> Iterator[Node]:
        """The items of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.error(f"is not a list but {self._kind()}", "write it as a list, one '- ' for each item")
            return
        for index, item in enumerate(self._node.value):
            yield Node(item, f"{self.path}[{index}]", self._problems)

    def text(self) -> str | None:
        """A text that is not empty."""
        node = self._node
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str" and node.value.strip():
            return str(node.value)
        self.error(
            f"is not a text but {self._kind()}", "write a text, in quotes where it looks like a number"
        )
        return None

    def word(self, choices: Sequence[str]) -> str | None:
        """One of a few words."""
        text = self.text()
        if text is None or text in choices:
            return text
        self.error(f"is {text!r}, which is not one of {', '.join(choices)}", _suggestion(text, choices))
        return None

    def is_word(self, word: str) -> bool:
        """Whether the value is just this text."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.value == word

    def number(self, unit: str, *, least: float = 0.0, above: bool = False) -> float | None:
        """A finite number, at least (or, ``above``, more than) ``least``."""
        node = self._node
        plain = isinstance(node, yaml.ScalarNode) and node.tag in (
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:float",
        )
        try:
            if plain:
                text = node.value
                value = float(text if _PLAIN_NUMBER.fullmatch(text) else yaml.safe_load(text))
            else:
                value = math.nan
        except (TypeError, ValueError, yaml.YAMLError):
            value = math.nan
        if not math.isfinite(value):
            self.error(
                f"is not a number but {self._kind()}", f"write a plain number of {unit}, without a unit"
            )
            return None
        if value < least or (above and value == least):
            self.error(f"is {value:g}", f"write {'more than' if above else 'at least'} {least:g} {unit}")
            return None
        return value

    def whole(self, unit: str, *, least: int = 0) -> int | None:
        """A whole number."""
        value = self.number(unit, least=least)
        if value is None:
            return None
        if value != int(value):
            self.error(f"is {value:g}", f"write a whole number of {unit}")
            return None
        return int(value)

    def boolean(self) -> bool | None:
        """True or false."""
        node = self._node
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
            return bool(yaml.safe_load(node.value))
        self.error(f"is neither true nor false but {self._kind()}", "write true or false, without quotes")
        return None

    def _kind(self) -> str:
        node = self._node
        if isinstance(node, yaml.MappingNode):
            return "a mapping"
        if isinstance(node, yaml.SequenceNode):
            return "a list"
        return "nothing" if node.tag == "tag:yaml.org,2002:null" else repr(str(node.value)[:40])


def root(text: str, problems: Problems) -> Node | None:
    """The top of the document, or ``None`` where it is no YAML document at all."""
    if len(text) > _MOST_BYTES:
        problems.error(1, f"the file has more than {_MOST_BYTES} characters", "split the pool")
        return None
    try:
        if not _is_flat(text, problems):
            return None
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        what = error.problem or error.context or "it cannot be read"
        if "nesting depth" in what:  # libyaml's own bound was passed before ours
            _nested_too_deeply(problems, error.problem_mark)
            return None
        # Where the text ends too soon, libyaml names the line after it.
        problems.error(
            min(_line(error.problem_mark or error.context_mark), text.count("\n") + 1),
            f"not YAML: {what}",
            "mend the syntax",
        )
        return None
    except yaml.YAMLError as error:
        problems.error(1, f"not YAML: {str(error).splitlines()[0]}", "remove what is no text")
        return None
    if node is None:
        problems.error(1, "the file is empty", "add 'pools:' and 'entitlements:'")
        return None
    return Node(node, "file", problems)


def _is_flat(text: str, problems: Problems) -> bool:
    """Whether nothing stands for something elsewhere, and nothing is nested deeper than a pool file is.

    Looked at before nodes are made: nodes in nodes take stack, and an alias a copy of what it names.
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
