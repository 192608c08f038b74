"""One run of one instrument: its figures, the engine's own, and its CPU time."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.instruments.own import Own, between
from experiments.instruments.readers import Figures
from experiments.instruments.server import page
from experiments.instruments.tools import Call, Instrument
from toolbox.processes import Process

START_S = 60.0
"""For the start of an instrument and for its results."""
KEPT_UP = 0.95
"""The share of the asked rate at which an instrument keeps up."""
_SETTLE_S = 0.2


@dataclass(frozen=True)
class Result:
    """A run."""

    instrument: str
    rate: float
    """As asked, requests per second."""
    requests: int
    """As asked."""
    figures: Figures | None
    own: Own | None
    cpu_s: float
    """CPU time of the instrument with its children, its start included."""
    problem: str = ""
    """Why there are no figures, or why they do not count."""

    @property
    def keeps_up(self) -> bool:
        """Whether all requests were served at the asked rate."""
        made = self.figures
        return made is not None and made.failed == 0 and made.rate >= KEPT_UP * self.rate


def run(instrument: Instrument, programs: Path, call: Call, core: int, start_s: float = START_S) -> Result:
    """Run an instrument on a core. ``start_s`` is what it gets beyond three times the load."""
    before, used = page(call.target), _children_s()
    process = Process(
        "output",
        instrument.command(programs, call),
        call.folder,
        core=core,
        environment=instrument.environment,
        is_group=True,
    ).start()
    limit, problem = start_s + 3 * call.workload.seconds, ""
    try:
        status = process.wait(limit)
        if status != 0:
            problem = f"ended with status {status}, see its output in {call.folder.name}"
    except TimeoutError:
        problem = f"did not end within {limit:.0f} s"
    finally:
        process.kill()
    cpu_s = _children_s() - used
    time.sleep(_SETTLE_S)  # requests that were cut leave the engine
    own = between(before, page(call.target))
    figures = None
    if not problem:
        try:
            figures = instrument.read(call.folder)
        except (OSError, LookupError, ValueError, TypeError) as error:
            problem = (
                f"wrote no figures ({type(error).__name__}: {error}), see its output in {call.folder.name}"
            )
    return Result(instrument.name, call.workload.rate, call.workload.requests, figures, own, cpu_s, problem)


def _children_s() -> float:
    """CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
