"""Performs a run, and writes its folder: the raw records, the summary, the goals and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from loadgen import goals, report
from loadgen.goals import Goal, GoalResult
from loadgen.processes.parent import perform
from loadgen.records import GOALS, REPORT, SUMMARY, Run, load, save
from loadgen.run import Order
from loadgen.summary import Summary, summarise


@dataclass(frozen=True, slots=True)
class Performed:
    """A run that ended, or was interrupted."""

    run: Run
    summary: Summary
    goals: list[GoalResult]


def performed(order: Order, processes: int, asked: Sequence[Goal] = ()) -> Performed:
    """Run to the end, or to SIGINT or SIGTERM. Creates the folder. Raises ``ProcessFailed``."""
    order.out.mkdir(parents=True, exist_ok=True)
    uvloop.run(perform(order, processes))
    run = load(order.out)
    summary = summarise(run)
    judged = goals.judge(asked, summary, run.meta.tenants)
    save(order.out / SUMMARY, summary)
    if judged:
        save(order.out / GOALS, judged)
    (order.out / REPORT).write_text(report.html(run, summary, judged), encoding="utf-8")
    return Performed(run, summary, judged)
