"""A parser for a subset of PromQL. It finds the metrics, matchers and grouping labels of an expression."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""\s+ | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*') | (?P<number>\d[\w.]*)
    | (?P<name>[A-Za-z_:][\w:]*) | (?P<sign>=~|!~|!=|==|>=|<=|.)""",
    re.VERBOSE,
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Matcher:
    """One condition on a label."""

    label: str
    operator: str
    value: str

    def alternatives(self) -> list[str]:
        """The listed values of the label."""
        plain = self.value if self.operator in ("=~", "!~") else re.escape(self.value)
        return [one for one in plain.split("|") if re.fullmatch(r"\w+", one)]


@dataclass(frozen=True)
class Selector:
    """One metric with its conditions."""

    metric: str
    matchers: tuple[Matcher, ...] = ()


def tokens(expression: str) -> list[tuple[str, str]]:
    """Kind and text of each token."""
    found = [(match.lastgroup or "", match.group()) for match in _TOKEN.finditer(expression)]
    return [token for token in found if token[0]]


def selectors(expression: str) -> Iterator[Selector]:
    """All metrics of an expression."""
    parts, at = tokens(expression), 0
    while at < len(parts):
        kind, text = parts[at]
        following = parts[at + 1][1] if at + 1 < len(parts) else ""
        if kind == "name" and text in _GROUPING and following == "(":
            at = _closing(parts, at, ")")
        elif kind == "name" and text not in _WORDS | _GROUPING and following not in ("(", "by", "without"):
            end = _closing(parts, at, "}") if following == "{" else at
            yield Selector(text, tuple(_matchers(parts[at + 2 : end])))
            at = end
        at += 1


def grouped_by(expression: str) -> set[str]:
    """All labels by which an expression groups or joins."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)", expression)
    return {label.strip() for labels in lists for label in labels.split(",") if label.strip()}


def _closing(parts: list[tuple[str, str]], at: int, sign: str) -> int:
    return next(n for n in range(at, len(parts)) if parts[n][1] == sign)


def _matchers(parts: list[tuple[str, str]]) -> Iterator[Matcher]:
    rest = [text for _, text in parts if text != ","]
    for label, operator, value in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        yield Matcher(label, operator, value[1:-1])
