"""Faults: commands and signals at their times. Used only with the option ``--allow-faults``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from loadgen.records import FaultResult
from loadgen.scenario import Fault


async def inflict(fault: Fault, clock: Callable[[], float], results: list[FaultResult]) -> None:
    """Wait for the fault's time, inflict it, and append the result to ``results``."""
    await asyncio.sleep(max(fault.at_s - clock(), 0.0))
    at = clock()
    try:
        result = await _command(fault) if fault.command else _signal(fault)
    except (OSError, ValueError) as error:
        result = f"failed: {error}"
    results.append(FaultResult(at, fault.name, result))


async def _command(fault: Fault) -> str:
    process = await asyncio.create_subprocess_exec(
        *fault.command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        raise
    return "done" if status == 0 else f"failed: exit status {status}"


def _signal(fault: Fault) -> str:
    pid = int(Path(fault.pid_file).read_text(encoding="utf-8"))
    if pid <= 1:
        raise ValueError(f"{fault.pid_file} names process {pid}")
    os.kill(pid, signal.Signals[f"SIG{fault.signal}"])
    return "done"
