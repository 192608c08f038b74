"""Rows of a recorded workload, and their files: plain text, or gzip if the name ends in ``.gz``."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from loadgen.fields import ScenarioError
from loadgen.scenario import Message, Traced


class Row(NamedTuple):
    """One request of a file."""

    line: int
    """The line of the file, from 1."""
    at_s: float
    """Seconds of the file's own clock; 0 in a format without times."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """An id for each block of prompt tokens. Equal ids mean equal text."""
    messages: tuple[Message, ...] = ()
    """The text of the prompt, if the format has it."""
    answer: str = ""
    """The text of the recorded answer."""
    later: tuple[Traced, ...] = ()
    """The later turns of the conversation, if they are kept together."""


def broken(path: Path, line: int, problem: str, fix: str) -> NoReturn:
    """Raise ``ScenarioError`` for a line of a file."""
    raise ScenarioError(f"{path}:{line}: {problem}; {fix}") from None


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked. Raises ``ScenarioError``."""
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        _unreadable(path, error)


def lines(path: Path) -> Iterator[str]:
    """The lines of a file. A reader may stop early in a large file. Raises ``ScenarioError``."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        _unreadable(path, error)


def _unreadable(path: Path, error: Exception) -> NoReturn:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    fix = (
        "name a file that exists"
        if isinstance(error, FileNotFoundError)
        else "name a text file, or a .gz of one"
    )
    raise ScenarioError(f"{path}: cannot be read ({reason}); {fix}") from None


class Table:
    """A CSV file. Its first line names the columns; upper and lower case are equal."""

    def __init__(self, path: Path, wanted: Mapping[str, str], form: str) -> None:
        """``wanted`` has the name of each column by a short name. Raises ``ScenarioError``."""
        self._path = path
        self._reader = csv.reader(lines(path))
        self._cells = self._rows()
        heads = [head.strip().lower() for head in next(self._cells, [])]
        missing = [name for name in wanted.values() if name.lower() not in heads]
        if missing:
            broken(
                path,
                1,
                f"there is no column {missing[0]!r}",
                f"give a file of {form}: {', '.join(wanted.values())}",
            )
        self._places = [heads.index(name.lower()) for name in wanted.values()]

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """The number of each line, and its cells in the order of the wanted columns."""
        places, most = self._places, max(self._places)
        for cells in self._cells:
            if len(cells) > most:
                yield self._reader.line_num, [cells[place] for place in places]
            elif cells:
                broken(
                    self._path,
                    self._reader.line_num,
                    f"has {len(cells)} columns",
                    "write all columns of the first line",
                )

    def _rows(self) -> Iterator[list[str]]:
        try:
            yield from self._reader
        except csv.Error as error:
            broken(
                self._path, self._reader.line_num, str(error), "give a text file of comma-separated values"
            )

    def whole(self, line: int, name: str, text: str) -> int:
        """A number of tokens, 0 or more."""
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not (number >= 0 and number.is_integer()):
            broken(self._path, line, f"{name} is {text!r}", "write a whole number of tokens, 0 or more")
        return int(number)

    def seconds(self, line: int, name: str, text: str) -> float:
        """A finite number of seconds."""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            broken(self._path, line, f"{name} is {text!r}", "write a number of seconds")
        return number
