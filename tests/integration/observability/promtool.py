"""The checker of Prometheus: the system's, or one unpacked from Debian's package without an installation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).parents[3] / ".cache" / "debian"
FETCH_S = 180


def executable() -> str:
    """The path of a ``promtool``. Raises ``LookupError`` with the reason if there is none."""
    found = shutil.which("promtool") or shutil.which("promtool", path=str(CACHE / "usr" / "bin"))
    if found is not None:
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise LookupError(
            "promtool is not installed, and this system is not Debian, which has a package of it"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        _unpack()
    except (subprocess.SubprocessError, OSError, StopIteration) as error:
        raise LookupError(
            f"promtool is not installed, and Debian's package cannot be downloaded: {error}"
        ) from error
    return str(CACHE / "usr" / "bin" / "promtool")


def _unpack() -> None:
    if _run("apt-get", "download", "prometheus") != 0:
        _run("apt-get", "update")
        _run("apt-get", "download", "prometheus", check=True)
    package = next(CACHE.glob("prometheus_*.deb"))
    _run("dpkg", "-x", str(package), str(CACHE), check=True)
    package.unlink()


def _run(*command: str, check: bool = False) -> int:
    done = subprocess.run(command, cwd=CACHE, capture_output=True, timeout=FETCH_S, check=check)
    return done.returncode
