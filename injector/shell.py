"""Reads the simple commands of a shell script, with their places in the text. Pure.

It reads the part of the shell's language that starts an engine: words, quotes, comments, expansions, and
compound commands by their reserved words. A script with anything else is ``None``, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_OPENS = frozenset({"if", "while", "until", "for", "select", "case", "{"})
_CLOSES = {"fi": {"if"}, "done": {"while", "until", "for", "select"}, "esac": {"case"}, "}": {"{"}}
_BETWEEN = frozenset({"then", "do", "else", "elif", "!", "time"})
_REDIRECTION = re.compile(r"&>>|&>|>>|>&|<&|>\||<>|>|<(?!<|\()")
_SEPARATOR = re.compile(r";;&|;;|;&|\|\||&&|\|&|[;&|\n]")
_ARRAY = re.compile(r"[A-Za-z_]\w*\+?=")
_NAME = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?$!-])")
_PLAIN = re.compile(r"[^ \t\n;&|<>()\\'\"$`]+")
_QUOTED = re.compile(r"[^\\\"$`]+")
_META = frozenset(" \t\n;&|<>()")


_MAX_NESTING = 32
"""Expansions inside expansions. The scripts of other projects have three."""


class _Unread(Exception):
    """The script uses something that this reader does not know."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command."""

    value: str
    """The word without its quotes. Expansions stay as they are written."""
    places: tuple[int, ...]
    """The index in the script of each character of the value."""
    start: int
    end: int
    """The part of the script, quotes included."""
    expands: bool
    """Whether the word has an expansion outside single quotes, so that its value is not known."""


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command."""

    words: tuple[Word, ...]
    depth: int
    """The number of compound commands around it; 0 if it always runs."""

    @property
    def values(self) -> tuple[str, ...]:
        """The words without quotes."""
        return tuple(word.value for word in self.words)


def commands(script: str) -> tuple[Command, ...] | None:
    """All simple commands of a script, in order; ``None`` if the script cannot be read."""
    try:
        return tuple(_Reader(script).commands())
    except _Unread:
        return None


class _Reader:
    """One pass over a script."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._around: list[str] = []
        self._words: list[Word] = []
        self._drops_next = False
        self._nesting = 0

    def commands(self) -> Iterator[Command]:
        """The simple commands. Raises ``_Unread``."""
        while self._at < len(self._text):
            if self._skips():
                continue
            if (found := _REDIRECTION.match(self._text, self._at)) is not None:
                self._redirection(found.end())
            elif (separator := _SEPARATOR.match(self._text, self._at)) is not None:
                self._at = separator.end()
                yield from self._ended()
            elif self._text[self._at] in "()":
                yield from self._parenthesis()
            else:
                self._word()
        yield from self._ended()
        if self._around:
            raise _Unread

    def _skips(self) -> bool:
        """Pass a blank, a continued line or a comment."""
        here = self._text[self._at]
        if here in " \t":
            self._at += 1
        elif self._text.startswith("\\\n", self._at):
            self._at += 2
        elif here == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end
        else:
            return False
        return True

    def _ended(self) -> Iterator[Command]:
        if self._drops_next:
            raise _Unread
        if self._words:
            yield Command(tuple(self._words), len(self._around))
        self._words = []

    def _redirection(self, end: int) -> None:
        # A number directly before the operator is a file descriptor.
        if self._words and self._words[-1].end == self._at and self._words[-1].value.isdigit():
            self._words.pop()
        self._at = end
        self._drops_next = True

    def _parenthesis(self) -> Iterator[Command]:
        text, here = self._text, self._at
        if self._drops_next:
            raise _Unread
        if text[here] == ")":
            yield from self._ended()
            if self._around[-1:] == ["("]:
                self._around.pop()
            elif self._around[-1:] != ["case"]:
                raise _Unread
            self._at += 1
        elif text.startswith("((", here) and [word.value for word in self._words] in ([], ["for"]):
            self._at = self._after("))", here + 2)
        elif not self._words:
            self._around.append("(")
            self._at += 1
        elif self._around[-1:] != ["case"]:
            raise _Unread  # a function, or a pattern
        else:
            self._at += 1

    def _word(self) -> None:
        word = self._read_word()
        if word.start == word.end:
            raise _Unread  # a here-document, or a process as a file
        if self._drops_next:
            self._drops_next = False
        elif self._words or not self._is_reserved(word):
            self._words.append(word)

    def _is_reserved(self, word: Word) -> bool:
        """Note a reserved word at the start of a command."""
        name = word.value if len(word.value) == word.end - word.start else ""
        if name in ("function", "coproc"):
            raise _Unread
        if name in _CLOSES:
            if not self._around or self._around.pop() not in _CLOSES[name]:
                raise _Unread
            return True
        if name == "[[":
            self._at = self._after("]]", self._at)
            return True
        if name in _OPENS:
            self._around.append(name)
            return name not in ("for", "select", "case")
        return name in _BETWEEN

    def _after(self, closing: str, start: int) -> int:
        end = self._text.find(closing, start)
        if end < 0:
            raise _Unread
        return end + len(closing)

    def _read_word(self) -> Word:
        """The word at the current place."""
        value: list[str] = []
        places: list[int] = []
        expands = False
        start, text = self._at, self._text

        def take(begin: int, end: int) -> None:
            value.extend(text[begin:end])
            places.extend(range(begin, end))

        while self._at < len(text):
            here = text[self._at]
            if here == "\\":
                if not text.startswith("\\\n", self._at):
                    take(self._at + 1, min(self._at + 2, len(text)))
                self._at += 2
            elif here == "'":
                end = self._after("'", self._at + 1)
                take(self._at + 1, end - 1)
                self._at = end
            elif here == '"':
                expands |= self._quoted(take)
            elif here in "$`":
                begin = self._at
                self._expansion()
                expands |= self._at > begin + 1
                take(begin, self._at)
            elif here == "(" and _ARRAY.fullmatch("".join(value)):
                begin = self._at
                self._balanced("(", ")")
                take(begin, self._at)
                expands = True
            elif here in _META:
                break
            else:
                plain = _PLAIN.match(text, self._at)
                end = plain.end() if plain is not None else self._at + 1
                take(self._at, end)
                self._at = end
        return Word("".join(value), tuple(places), start, min(self._at, len(text)), expands)

    def _quoted(self, take: Callable[[int, int], None]) -> bool:
        """A text in double quotes; whether it has an expansion."""
        text, expands = self._text, False
        self._at += 1
        while self._at < len(text) and text[self._at] != '"':
            here = text[self._at]
            if here == "\\":
                if text.startswith("\\\n", self._at):
                    self._at += 2
                    continue
                escapes = text[self._at + 1 : self._at + 2] in '$`"\\'
                take(self._at + escapes, min(self._at + 2, len(text)))
                self._at += 2
            elif here in "$`":
                begin = self._at
                self._expansion()
                expands |= self._at > begin + 1
                take(begin, self._at)
            else:
                plain = _QUOTED.match(text, self._at)
                end = plain.end() if plain is not None else self._at + 1
                take(self._at, end)
                self._at = end
        if self._at >= len(text):
            raise _Unread
        self._at += 1
        return expands

    def _expansion(self) -> None:
        """Pass an expansion, which begins with a dollar sign or a backquote."""
        text, here = self._text, self._at
        if text[here] == "`":
            self._at = self._after("`", here + 1)
        elif text.startswith("$(", here):
            self._at += 1
            self._balanced("(", ")")
        elif text.startswith("${", here):
            self._at += 1
            self._balanced("{", "}")
        elif text.startswith("$'", here):
            raise _Unread
        else:
            named = _NAME.match(text, here)
            self._at = named.end() if named is not None else here + 1

    def _balanced(self, opening: str, closing: str) -> None:
        """Pass a text in balanced brackets. Brackets in quotes do not count."""
        text, depth = self._text, 0
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise _Unread
        while self._at < len(text):
            here = text[self._at]
            if here == "\\":
                self._at += 1
            elif here == "'":
                self._at = self._after("'", self._at + 1) - 1
            elif here == '"':
                self._quoted(lambda begin, end: None)
                self._at -= 1
            elif here == opening:
                depth += 1
            elif here == closing:
                depth -= 1
            self._at += 1
            if depth == 0:
                self._nesting -= 1
                return
        raise _Unread
