"""Judges the engine's health and its metrics page by the outcomes of the polls. No I/O, no clock.

``EngineState`` owns one of each class, and reports every outcome to it.
"""

from __future__ import annotations

MISSES_UNTIL_DOWN = 10
"""Consecutive health checks without any answer, after which the engine counts as down: another replica serves
the tenant better. A busy engine may answer late, so one silent check proves nothing. An answer other than
200, or a refused connection, needs no second check."""
MISSES_UNTIL_STALE = 3
"""Consecutive polls of the metrics page without a usable answer, after which its last numbers are stale."""


class Health:
    """Whether the engine answers its health check with 200."""

    __slots__ = ("_was_ever_well", "error", "is_well", "may_be_replaced", "misses")

    def __init__(self) -> None:
        self.is_well = False
        """Whether the last check succeeded. A few silent checks change nothing."""
        self.error: str | None = None
        """Why the engine was last found to be down."""
        self.misses = 0
        """Consecutive checks without an answer."""
        self.may_be_replaced = False
        """Whether the engine stopped listening after it was well, so that another process may replace it."""
        self._was_ever_well = False

    def answered(self) -> None:
        """A check was answered with 200."""
        self.misses = 0
        self.is_well = self._was_ever_well = True

    def silent(self, error: str) -> None:
        """A check had no answer in time: the engine is busy, or it hangs."""
        self.misses += 1
        if self.misses >= MISSES_UNTIL_DOWN or not self.is_well:
            self._down(error)

    def failed(self, error: str, *, is_refused: bool = False) -> None:
        """A check failed. ``is_refused``: no process accepts connections."""
        if is_refused and self._was_ever_well:
            self.may_be_replaced = True
        self._down(error)

    def identified(self) -> None:
        """The metrics page, or its absence, has shown whether another process runs."""
        self.may_be_replaced = False

    def _down(self, error: str) -> None:
        self.is_well, self.error = False, error


class PageHealth:
    """Whether the engine's metrics page can be used."""

    __slots__ = ("error", "is_usable", "misses")

    def __init__(self) -> None:
        self.is_usable = False
        """Whether its last numbers are used. A few missed polls change nothing."""
        self.error: str | None = None
        """Why the last poll without a usable page failed."""
        self.misses = 0
        """Consecutive polls without a usable page."""

    def read(self) -> None:
        """A poll brought a usable page in time."""
        self.is_usable, self.misses = True, 0

    def missed(self, error: str) -> None:
        """A poll brought no usable page in time."""
        self.misses += 1
        self.error = error
        if self.misses >= MISSES_UNTIL_STALE:
            self.is_usable = False

    def forget(self) -> None:
        """The engine is down. Its page is read again once it is up."""
        self.is_usable, self.error, self.misses = False, None, 0
