"""The result of a sweep or a capacity search, and its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadgen.rates import report
from loadgen.rates.points import Point
from loadgen.rates.steps import Steps
from loadgen.records import save

Tell = Callable[[str], None]
"""Takes a line about the progress."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the runs showed together."""

    kind: str
    statements: list[str]
    numbers: dict[str, object]
    marks: list[tuple[str, float]]
    """Rates to mark in the plots, with their names."""
    marked: str
    """The meaning of the marks."""
    verdicts: tuple[tuple[str, ...], ...] = ()
    """A table with its head."""


def write(steps: Steps, result: Result) -> None:
    """Write the page, the CSV and the JSON file. Without a completed run there is nothing to write."""
    if not steps.points:
        return
    results = gathered(steps, result)
    out = steps.order.out
    save(out / report.DATA, results)
    (out / report.TABLE).write_text(report.csv_text(results), encoding="utf-8")
    (out / report.REPORT).write_text(report.html(results), encoding="utf-8")


def gathered(steps: Steps, result: Result) -> report.Results:
    """All that the report shows. There is at least one completed run."""
    points = list(steps.points.values())
    runs = [run for made in steps.runs.values() for run in made]
    first = min((run.meta for run in runs), key=lambda meta: meta.started)
    notes = [] if not steps.is_interrupted else ["Interrupted; the last run is not included."]
    notes += [_note(point) for point in points if point.summary.complaints]
    return report.Results(
        kind=result.kind,
        name=first.name,
        statements=result.statements,
        notes=notes,
        result=result.numbers,
        points=points,
        marks=result.marks,
        marked=result.marked,
        folders=[run.folder for run in runs],
        urls=first.urls,
        command=first.command,
        started=first.started,
        machine=first.machine,
        versions=first.versions,
        verdicts=[list(row) for row in result.verdicts],
    )


def _note(point: Point) -> str:
    """The first complaint about a rate. The reports of its runs have all of them."""
    first, *others = point.summary.complaints
    more = f" ({len(others)} more in its report)" if others else ""
    return f"At {point.rate:.4g} requests/s: this run {first}.{more}"


def told(steps: Steps, result: Result) -> str:
    """The result for a terminal."""
    if not steps.points:
        return "No run was completed."
    return f"{report.text(gathered(steps, result))}\nThe report is {steps.order.out / report.REPORT}"
