"""Performs a run, and writes all files of its folder: the raw records, the summary and the report."""

from __future__ import annotations

from collections.abc import Sequence

import uvloop

from loadgen import report
from loadgen.goals import Goal, judge
from loadgen.processes.parent import perform
from loadgen.records import GOALS, REPORT, SUMMARY, Run, load, save
from loadgen.run import Order
from loadgen.summary import Summary, summarise


def performed(order: Order, processes: int, asked: Sequence[Goal] = ()) -> tuple[Run, Summary]:
    """Run to the end, or to SIGINT or SIGTERM. Creates the folder. Raises ``ProcessFailed``.

    The files show the goals that are ``asked`` for, beside their measurements.
    """
    order.out.mkdir(parents=True, exist_ok=True)
    uvloop.run(perform(order, processes))
    run = load(order.out)
    summary = summarise(run)
    save(order.out / SUMMARY, summary)
    judged = judge(asked, summary, run.meta.tenants)
    if judged:
        save(order.out / GOALS, judged)
    (order.out / REPORT).write_text(report.html(run, summary, judged), encoding="utf-8")
    return run, summary
