"""The leadership of one pool, from the view of one candidate. Pure: the store's answers and times go in.

At most one coordinator leads a pool. The store grants the leadership for some seconds, with an epoch that
rises with each election. A leader ceases to lead when those seconds are over by its own clock, counted from
before it asked, even if the store is silent. The store refuses messages of an older epoch.
"""

from __future__ import annotations

import logging
import math

log = logging.getLogger(__name__)


class Leadership:
    """Whether this coordinator leads, and with which epoch."""

    def __init__(self, pool: str, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._epoch = 0
        self._until = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether the store granted the leadership last time. It may have expired since."""
        return self._epoch > 0

    def epoch(self, now: float) -> int:
        """The epoch; 0 if this coordinator does not lead, or its leadership may have expired."""
        return self._epoch if now < self._until else 0

    def elected(self, epoch: int, asked_at: float) -> bool:
        """Use the store's answer (0: another coordinator leads). Returns whether the epoch changed."""
        before = self._epoch
        if epoch and not before:
            log.info("this coordinator leads", extra={"pool": self._pool, "epoch": epoch})
        elif before and not epoch:
            log.warning("another coordinator leads", extra={"pool": self._pool})
        self._epoch, self._until = epoch, asked_at + self._timeout_s
        return epoch != before

    def expire(self) -> None:
        """The leadership has expired: another coordinator may lead."""
        log.warning("the leadership has expired", extra={"pool": self._pool, "epoch": self._epoch})
        self._epoch = 0

    def fence(self) -> None:
        """The store refused a message: another coordinator leads with a later epoch."""
        log.warning("a leader of a later epoch has written", extra={"pool": self._pool, "epoch": self._epoch})
        self._epoch = 0

    def resign(self) -> None:
        """Stop leading."""
        self._epoch = 0
