"""The part of a recorded workload that a scenario asks for, at its rate and with its lengths. Pure.

What is cut or left out is counted, and said in sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadgen.fields import ScenarioError
from loadgen.scenario import Trace, Traced
from loadgen.workloads.rows import Row, broken

DISORDER_S = 1.0
"""A row may be this much earlier than an earlier row. So the reading can end soon after the asked part."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The changes that a scenario asks for. Times are seconds of the trace, lengths are tokens."""

    start_s: float = 0.0
    duration_s: float = math.inf
    speed: float = 1.0
    """Divides all gaps."""
    rate: float | None = None
    """Requests per second on average, instead of ``speed``."""
    lengths: float = 1.0
    """Multiplies all lengths, before the maximum."""
    most_input: int | None = None
    most_output: int | None = None
    most_requests: int | None = None


@dataclass(slots=True)
class _Counts:
    """What happened to the rows."""

    empty: int = 0
    long: int = 0
    inputs: int = 0
    input_tokens: int = 0
    all_input_tokens: int = 0
    outputs: int = 0
    output_tokens: int = 0
    all_output_tokens: int = 0
    kept: list[Traced] = field(default_factory=list)


def select(
    rows: Iterable[Row],
    selection: Selection,
    path: Path,
    file: str,
    *,
    block: int = 0,
    zero: float | None = None,
) -> Trace:
    """The asked part. ``block`` is the number of tokens of each block id in the rows.

    Times count from ``zero``, or else from the first row. ``path`` and ``file`` name the trace in errors and
    in reports. Raises ``ScenarioError``.
    """
    counts = _Counts()
    scaled_block = _block(block, selection.lengths, path)
    end, latest = selection.start_s + selection.duration_s, -math.inf
    for row in rows:
        if zero is None:
            zero = row.at_s
        at = row.at_s - zero
        if at < latest - DISORDER_S:
            problem = f"its time is {latest - at:.3f} s before that of an earlier line"
            broken(path, row.line, problem, "sort the file by time")
        latest = max(latest, at)
        if at >= end + DISORDER_S or len(counts.kept) == selection.most_requests:
            break
        if selection.start_s <= at < end:
            _take(row, at - selection.start_s, selection, scaled_block, counts)
    if not counts.kept:
        raise ScenarioError(
            f"{path}: there is no request in the selected part; change start_s, duration_s, most_input "
            "or most_requests"
        )
    speed = _speed(counts.kept, selection, path)
    requests = sorted(
        (replace(each, at_s=each.at_s / speed) for each in counts.kept), key=lambda each: each.at_s
    )
    notes = tuple(f"{file}: {note}." for note in _notes(counts, selection, speed))
    return Trace(
        file,
        tuple(requests),
        block_tokens=scaled_block,
        most_input=selection.most_input,
        most_output=selection.most_output,
        notes=notes,
    )


def _block(block: int, factor: float, path: Path) -> int:
    """The tokens of each scaled block."""
    tokens = block * factor
    if not tokens.is_integer():
        raise ScenarioError(
            f"{path}: lengths is {factor:g}, so a block of {block} tokens would have {tokens:g}; "
            f"write a factor that makes this a whole number, such as {1 / 16}"
        )
    return int(tokens)


def _take(row: Row, at_s: float, selection: Selection, block: int, counts: _Counts) -> None:
    if row.input_tokens < 1 or row.output_tokens < 1:
        counts.empty += 1
        return
    inputs, outputs = row.input_tokens, max(round(row.output_tokens * selection.lengths), 1)
    if not row.messages:
        inputs = max(round(inputs * selection.lengths), 1)
    most_input = selection.most_input or inputs
    if row.messages and inputs > most_input:
        counts.long += 1  # a text cannot be cut without a change of its meaning
        return
    counts.all_input_tokens += inputs
    if inputs > most_input:
        counts.inputs += 1
        counts.input_tokens += inputs - most_input
        inputs = most_input
    outputs = _cut_output(outputs, selection.most_output, counts)
    later = tuple(
        replace(turn, output_tokens=_cut_output(turn.output_tokens, selection.most_output, counts))
        for turn in row.later
    )
    blocks = row.blocks[: -(-inputs // block)] if block else ()
    counts.kept.append(Traced(at_s, inputs, outputs, blocks, row.messages, row.answer, later))


def _cut_output(outputs: int, most: int | None, counts: _Counts) -> int:
    counts.all_output_tokens += outputs
    if most is None or outputs <= most:
        return outputs
    counts.outputs += 1
    counts.output_tokens += outputs - most
    return most


def _speed(kept: list[Traced], selection: Selection, path: Path) -> float:
    if selection.rate is None:
        return selection.speed
    last = max(each.at_s for each in kept)
    span = selection.duration_s if math.isfinite(selection.duration_s) else last
    if not span > 0:
        raise ScenarioError(f"{path}: all requests have the same time, so they have no rate; remove rate")
    return selection.rate * span / len(kept)


def _notes(counts: _Counts, selection: Selection, speed: float) -> Iterable[str]:
    if selection.rate is not None:
        yield f"the gaps are divided by {speed:.4g} for {selection.rate:g} requests per second"
    if counts.inputs:
        yield _cut(
            "inputs", counts.inputs, selection.most_input, counts.input_tokens, counts.all_input_tokens
        )
    if counts.outputs:
        yield _cut(
            "outputs", counts.outputs, selection.most_output, counts.output_tokens, counts.all_output_tokens
        )
    if counts.long:
        yield left_out(counts.long, selection.most_input)
    if counts.empty:
        yield f"{counts.empty} requests without input or output tokens are left out"


def left_out(count: int, most: int | None) -> str:
    """The sentence about texts above the maximum, without its full stop."""
    return f"{count} requests with more than {most} input tokens are left out"


def _cut(what: str, count: int, most: int | None, tokens: int, of: int) -> str:
    return f"{count} {what} are cut to {most} tokens, by {tokens} tokens in all ({tokens / of:.1%} of them)"
