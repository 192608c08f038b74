"""Performs a run, and writes all files of its folder: the raw records, the summary and the report."""

from __future__ import annotations

import uvloop

from loadgen import report
from loadgen.processes.parent import perform
from loadgen.records import REPORT, SUMMARY, Run, load, save
from loadgen.run import Order
from loadgen.summary import Summary, summarise


def performed(order: Order, processes: int) -> tuple[Run, Summary]:
    """Run to the end, or to SIGINT or SIGTERM. Creates the folder. Raises ``ProcessFailed``."""
    order.out.mkdir(parents=True, exist_ok=True)
    uvloop.run(perform(order, processes))
    run = load(order.out)
    summary = summarise(run)
    save(order.out / SUMMARY, summary)
    (order.out / REPORT).write_text(report.html(run, summary), encoding="utf-8")
    return run, summary
