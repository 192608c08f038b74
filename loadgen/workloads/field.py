"""The field ``trace:`` of a tenant in a scenario: the format, the file, and the part of it to use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from loadgen.fields import Field, given
from loadgen.scenario import Trace
from loadgen.workloads import azure, burstgpt, mooncake, plain, sharegpt
from loadgen.workloads.rows import Row
from loadgen.workloads.selection import Selection, select

_TIMES = ("start_s", "duration_s", "speed", "rate")
_LENGTHS = ("lengths",)
_COMMON = ("file", "most_input", "most_output", "most_requests")


@dataclass(frozen=True, slots=True)
class _Format:
    """One format of files."""

    read: Callable[[Path, dict[str, Field]], Iterable[Row]]
    fields: tuple[str, ...] = (*_TIMES, *_LENGTHS)
    """Its own fields beside the common ones."""
    block: int = 0
    zero: float | None = None

    @property
    def has_times(self) -> bool:
        return "start_s" in self.fields


def _burstgpt(path: Path, fields: dict[str, Field]) -> Iterable[Row]:
    return burstgpt.read(
        path, given(fields, "model", Field.text, ""), given(fields, "log_type", Field.text, "")
    )


def _sharegpt(path: Path, fields: dict[str, Field]) -> Iterable[Row]:
    turns = given(fields, "turns", lambda f: f.word(tuple(sharegpt.Turns)), sharegpt.Turns.FIRST.value)
    return sharegpt.read(path, sharegpt.Turns(turns))


FORMATS: dict[str, _Format] = {
    "azure": _Format(lambda path, _: azure.read(path)),
    "burstgpt": _Format(_burstgpt, (*_TIMES, *_LENGTHS, "model", "log_type")),
    "mooncake": _Format(lambda path, _: mooncake.read(path), block=mooncake.BLOCK),
    "sharegpt": _Format(_sharegpt, ("turns",)),
    "lines": _Format(lambda path, _: plain.read(path), zero=0.0),
}


def read(field: Field, folder: Path, *, has_arrivals: bool) -> Trace:
    """The trace of a tenant. Paths are relative to ``folder``. Raises ``ScenarioError``."""
    name, body = field.one(tuple(FORMATS))
    form = FORMATS[name]
    fields = body.fields((*_COMMON, *form.fields), required=("file",))
    if not form.has_times and not has_arrivals:
        field.fail("has no times of its own", "add 'arrivals:' to the tenant")
    file = fields["file"].line()
    selection = _selection(fields)
    path = folder / file
    trace = select(form.read(path, fields), selection, path, file, block=form.block, zero=form.zero)
    is_conversations = "turns" in fields and fields["turns"].text() == sharegpt.Turns.CONVERSATION
    return replace(trace, is_conversations=is_conversations)


def _selection(fields: dict[str, Field]) -> Selection:
    if "speed" in fields and "rate" in fields:
        fields["rate"].fail("cannot be combined with speed", "keep one of the two")
    return Selection(
        start_s=given(fields, "start_s", lambda f: f.number("seconds"), 0.0),
        duration_s=given(fields, "duration_s", lambda f: f.number("seconds", above=True), math.inf),
        speed=given(fields, "speed", lambda f: f.number("(a factor)", above=True), 1.0),
        rate=given(fields, "rate", lambda f: f.number("requests per second", above=True), None),
        lengths=given(fields, "lengths", lambda f: f.number("(a factor)", above=True), 1.0),
        most_input=given(fields, "most_input", _most("tokens"), None),
        most_output=given(fields, "most_output", _most("tokens"), None),
        most_requests=given(fields, "most_requests", _most("requests"), None),
    )


def _most(unit: str) -> Callable[[Field], int]:
    return lambda field: field.whole(unit, least=1)
