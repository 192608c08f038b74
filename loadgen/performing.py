"""Performs a run, and writes its folder: the raw records, the summary, the goals and the report.

The summary is also a table, and on demand in the formats of other tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from loadgen import goals, report
from loadgen.exports import formats, table
from loadgen.goals import Goal, GoalResult
from loadgen.processes.parent import perform
from loadgen.records import GOALS, REPORT, SUMMARY, TABLE, Run, load, save
from loadgen.run import Order
from loadgen.summary import Summary, summarise


@dataclass(frozen=True, slots=True)
class Performed:
    """A run that ended, or was interrupted."""

    run: Run
    summary: Summary
    goals: list[GoalResult]


def performed(
    order: Order, processes: int, asked: Sequence[Goal] = (), exported: Sequence[str] = ()
) -> Performed:
    """Run to the end, or to SIGINT or SIGTERM. Creates the folder. Raises ``ProcessFailed``.

    ``exported`` are names of `exports.FORMATS`.
    """
    order.out.mkdir(parents=True, exist_ok=True)
    uvloop.run(perform(order, processes))
    run = load(order.out)
    summary = summarise(run)
    judged = goals.judge(asked, summary, run.meta.tenants)
    save(order.out / SUMMARY, summary)
    (order.out / TABLE).write_text(table.text(summary), encoding="utf-8")
    if exported:
        formats.write(order.out, run, summary, exported)
    if judged:
        save(order.out / GOALS, judged)
    (order.out / REPORT).write_text(report.html(run, summary, judged), encoding="utf-8")
    return Performed(run, summary, judged)
