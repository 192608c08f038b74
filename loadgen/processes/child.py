"""One process of a run: reads an order from standard input, and sends its part of the requests.

The end of standard input ends the part early, so no child outlives a parent that was killed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import uvloop

from loadgen import outputs
from loadgen.processes import link
from loadgen.processes.link import Done, Message, Reached, Ready
from loadgen.records import PARTS, Outcome
from loadgen.run import Order, Runner

INTERVAL_S = 0.25


class _Report:
    """Tells the parent the progress of the part."""

    interval_s = INTERVAL_S

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def tell(self, message: Message) -> None:
        """Write a message. Nobody reads it if the parent was killed."""
        try:
            self._out.write(link.line(message))
        except BrokenPipeError:
            self._out = open(os.devnull, "wb", buffering=0)  # noqa: SIM115 - until the end of the process

    def show(self, at_s: float, duration_s: float, in_flight: int, ended: Counter[Outcome]) -> None:
        self.tell(Reached(in_flight, {outcome.value: count for outcome, count in ended.items()}))

    def clear(self) -> None:
        """Nothing is to be cleared."""


async def _perform(order: Order, report: _Report, zero_s: float, orders: BinaryIO) -> None:
    gc.collect()
    gc.freeze()
    runner = Runner(order, report, time.monotonic, zero_s)
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(orders.fileno())
        runner.stop()

    loop.add_reader(orders.fileno(), ended)
    try:
        await runner.run()
    finally:
        loop.remove_reader(orders.fileno())


def main() -> int:
    """Perform one part; returns the exit status."""
    orders = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - until the end of the process
    # Standard output belongs to the messages, so anything else that is printed goes to standard error.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    report = _Report(out)
    try:
        (length,) = link.HEAD.unpack(_exactly(orders, link.HEAD.size))
        order = link.unpacked(_exactly(orders, length))
    except EOFError:  # the parent was killed
        return 1
    report.tell(Ready())
    zero_s = link.started(orders.readline())
    if zero_s is None:
        return 0
    try:
        order.out.mkdir(parents=True, exist_ok=True)
        uvloop.run(_perform(order, report, zero_s, orders))
    except OSError as error:
        report.tell(Done(outputs.problem(error)))
        return 1
    report.tell(Done())
    return 0


def _exactly(source: BinaryIO, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = source.read(size - len(content))
        if not more:
            raise EOFError("the parent process ended")
        content += more
    return content


def folder(out: Path, index: int) -> Path:
    """The folder of a part's files, within the folder of the run."""
    return out / PARTS / str(index)


if __name__ == "__main__":
    sys.exit(main())
