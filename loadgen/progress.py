"""The progress of a run on standard error: an overwritten line on a terminal, or else a line every 5 s."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Protocol, TextIO

from loadgen.records import REFUSED, Outcome

TERMINAL_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 5.0
_BAR = 20
_SHOWN = {
    "served": {Outcome.SERVED},
    "refused": REFUSED,
    "errors": {Outcome.ERROR},
    "broken": {Outcome.BROKEN},
    "timed out": {Outcome.TIMEOUT},
    "preempted": {Outcome.PREEMPTED},
    "cancelled": {Outcome.CANCELLED},
}


def line(at_s: float, duration_s: float, in_flight: int, ended: Counter[Outcome], *, width: int) -> str:
    """One line, not longer than ``width``."""
    share = min(at_s / duration_s, 1.0)
    full = round(_BAR * share)
    sums = {name: sum(ended[outcome] for outcome in outcomes) for name, outcomes in _SHOWN.items()}
    counts = [f"{count} {name}" for name, count in sums.items() if count or name == "served"]
    state = "waiting for the last responses" if at_s >= duration_s else f"of {duration_s:.0f} s"
    bar = "#" * full + "." * (_BAR - full)
    return f"[{bar}] {at_s:.0f} {state}  {in_flight} in flight, {', '.join(counts)}"[:width]


class Display(Protocol):
    """Shows the progress of a run."""

    @property
    def interval_s(self) -> float:
        """The time between two calls of `show`."""

    def show(self, at_s: float, duration_s: float, in_flight: int, ended: Counter[Outcome]) -> None:
        """Show the progress."""

    def clear(self) -> None:
        """Make room for the next output."""


class Progress:
    """Writes the line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self.interval_s = TERMINAL_INTERVAL_S if self._is_terminal else PLAIN_INTERVAL_S

    def show(self, at_s: float, duration_s: float, in_flight: int, ended: Counter[Outcome]) -> None:
        """Show the progress of the run."""
        width = shutil.get_terminal_size().columns - 1 if self._is_terminal else 200
        text = line(at_s, duration_s, in_flight, ended, width=width)
        self._out.write(f"\r{text}\x1b[K" if self._is_terminal else f"{text}\n")
        self._out.flush()

    def clear(self) -> None:
        """Clear the line for the next output."""
        if self._is_terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()
