"""The values of a scenario file. The first problem ends the reading with one line: file, line, field and fix.

``tokenpool.yaml_nodes`` reads the document, as it does for pool files. Readers of pool files report all
problems. Here one problem is enough for the person who starts a run, so no accessor returns ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from tokenpool.yaml_nodes import Node, Problem, Problems, root

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")


MOST = 1e9
"""Larger numbers are treated as typing errors: 1e9 s are 31 years."""
MOST_SEED = (1 << 63) - 1
"""The largest seed that every reader of JSON accepts."""
LONGEST_NAME = 200
LEAST_TOKENS_PER_BYTE = 0.001
"""A token of a thousand bytes. Less is treated as a typing error, because prompts would fill the memory."""


class ScenarioError(ValueError):
    """A scenario, trace or command that cannot be run. The text is one line."""


class _Raised(Problems):
    """Raises ``ScenarioError`` for the first problem."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def error(self, line: int, message: str, fix: str) -> NoReturn:
        raise ScenarioError(Problem(line, message, fix).render(self._file))


class Field:
    """One value of a scenario. Every accessor raises ``ScenarioError`` for a problem."""

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        self._node = node

    def fail(self, message: str, fix: str) -> NoReturn:
        """Raise ``ScenarioError`` for this value."""
        self._node.error(message, fix)
        raise AssertionError("the first problem of a scenario raises")

    @property
    def is_mapping(self) -> bool:
        """Whether the value has fields."""
        return self._node.is_mapping

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return self._node.is_list

    @property
    def is_number(self) -> bool:
        """Whether the value is a plain number."""
        return self._node.is_number

    def named(self) -> dict[str, Field]:
        """The fields of a mapping with any names."""
        return {name: Field(node) for name, node in self._node.named().items()}

    def fields(self, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Field]:
        """The fields of a mapping. Unknown and missing required fields are problems."""
        return {name: Field(node) for name, node in self._node.fields(known, required).items()}

    def one(self, known: Sequence[str]) -> tuple[str, Field]:
        """The only field of a mapping. Its name is the kind of the value."""
        found = self.fields(known)
        if len(found) != 1:
            self.fail(f"has {len(found)} kinds", f"write exactly one of {', '.join(known)}")
        return next(iter(found.items()))

    def items(self) -> list[Field]:
        """The items of a list."""
        return [Field(node) for node in self._node.items()]

    def value(self) -> object:
        """Any value, in the types of JSON."""
        return self._node.value()

    def text(self) -> str:
        """A text that is not empty."""
        return _sure(self._node.text())

    def line(self) -> str:
        """A text that is not empty, in one printable line, such as a path."""
        text = self.text()
        if not text.isprintable():
            self.fail("has characters that cannot be printed", "write letters and digits in one line")
        return text

    def name(self) -> str:
        """A short line, for tables and messages."""
        text = self.line()
        if len(text) > LONGEST_NAME:
            self.fail(f"has {len(text)} characters", f"write at most {LONGEST_NAME}")
        return text

    def word(self, choices: Sequence[str]) -> str:
        """One of a few words."""
        return _sure(self._node.word(choices))

    def truth(self) -> bool:
        """True or false."""
        return _sure(self._node.boolean())

    def number(self, unit: str, *, least: float = 0.0, most: float = MOST, above: bool = False) -> float:
        """A finite number from ``least`` (or, ``above``, more than it) to ``most``."""
        return _sure(self._node.number(unit, least=least, most=most, above=above))

    def whole(self, unit: str, *, least: int = 0, most: float = MOST) -> int:
        """A whole number from ``least`` to ``most``."""
        return _sure(self._node.whole(unit, least=least, most=most))


def _sure(value: _Value | None) -> _Value:
    assert value is not None, "the first problem of a scenario raises"
    return value


def given(
    fields: dict[str, Field], name: str, read: Callable[[Field], _Value], default: _Default
) -> _Value | _Default:
    """The value that ``read`` makes of a field, or the default where the field is absent."""
    return read(fields[name]) if name in fields else default


def document(text: str, file: str) -> Field:
    """The top of a scenario file. Raises ``ScenarioError``."""
    return Field(_sure(root(text, _Raised(file), name="the scenario", fields="'name:' and 'tenants:'")))
