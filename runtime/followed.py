"""Files with credentials that may change at run time, such as the files of a Kubernetes Secret.

A process reads them at the start, and again after each change. Content that cannot be used leaves the old
content in force. It is tried again once a second, because the other side may accept it later.
"""

from __future__ import annotations

import asyncio
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
        """``name`` is the name in messages and in the metric: ``store``, ``engine`` or ``administrators``.

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


class Credentials:
    """All followed files of one process."""

    def __init__(self) -> None:
        self.files: list[FollowedFiles] = []

    def problems(self) -> list[str]:
        """The reasons why files on disk are not in force."""
        return [each.problem for each in self.files if each.problem is not None]

    def request_reload(self) -> None:
        """Read all files again, changed or not."""
        for each in self.files:
            each.watch.request_reload()

    async def run(self) -> None:
        """Follow all files until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self.files:
                group.create_task(each.watch.run())

    def metrics(self) -> Iterator[Metric]:
        """Whether the content of the files is in force, for Prometheus."""
        current = GaugeMetricFamily(
            "tokenpool_credentials_current",
            "Whether the credentials of the lease store, the engine or the administrators on disk are those"
            " in force.",
            labels=("of",),
        )
        for each in self.files:
            current.add_metric((each.name,), float(each.problem is None))
        yield current
