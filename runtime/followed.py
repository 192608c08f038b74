"""Files with credentials that may change at run time, such as the files of a Kubernetes Secret.

A process reads them at the start, and again after each change. Content that cannot be used leaves the old
content in force. It is tried again once a second, because the other side may accept it later.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from runtime.filewatch import FileWatch

log = logging.getLogger(__name__)


class FollowedFiles:
    """The files of one set of credentials. ``problem`` says why their content is not in force."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        put_in_force: Callable[[], Awaitable[Sequence[Path]]],
    ) -> None:
        """``name`` is the name in messages and in the metric: ``store`` or ``engine``.

        ``put_in_force`` reads the files, uses them, and returns the files to watch from then on. If they
        cannot be used, it changes nothing and raises ``OSError`` or ``ValueError``.
        """
        self.name = name
        self._put_in_force = put_in_force
        self.watch = FileWatch(tuple(paths), self.reload)
        self.problem: str | None = None
        """The reason why the files on disk are not in force; ``None`` if they are in force."""

    async def reload(self) -> None:
        """Read the files and use them, or log the reason against it."""
        try:
            paths = await self._put_in_force()
        except (OSError, ValueError) as error:
            problem = f"the new credentials of the {self.name} cannot be used: {error}"
            if problem != self.problem:
                log.error("%s; the old ones stay in force", problem)
            self.problem = problem
            self.watch.retry()
            return
        self.problem = None
        self.watch.follow(tuple(paths))
        log.info("the new credentials of the %s are in force", self.name)

    def metrics(self) -> Iterator[Metric]:
        """Whether the content of the files is in force, for Prometheus."""
        yield GaugeMetricFamily(
            f"tokenpool_{self.name}_credentials_current",
            f"Whether the credentials of the {self.name} on disk are those in force.",
            value=float(self.problem is None),
        )
