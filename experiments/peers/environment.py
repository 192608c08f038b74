"""The peers' programs: one virtual environment under ``.cache/peers``, with pinned versions."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from demo.install_engine import ROOT

HOME = ROOT / ".cache" / "peers"
FILES = Path(__file__).parent / "files"
REQUIREMENTS = FILES / "requirements.txt"
_INSTALL_S = 900
INSTALL = "python -m experiments peers --install"


class NotInstalled(Exception):
    """A peer that cannot be used here. The text gives the reason and the fix."""


def program(name: str, home: Path) -> str:
    """The path of a peer's program in an environment. Raises ``NotInstalled``."""
    path = home / "bin" / name
    if not path.is_file():
        raise NotInstalled(f"{name} is not installed; run {INSTALL}")
    return str(path)


def pinned(text: str) -> Mapping[str, str]:
    """Versions by name, in small letters, from a requirements file."""
    found = {}
    for line in text.splitlines():
        name, separator, version = line.partition("#")[0].strip().partition("==")
        if separator:
            found[name.lower()] = version
    return found


def install(python: str, home: Path, requirements: Path = REQUIREMENTS) -> None:
    """Make the environment with an interpreter of Python 3.11. Raises ``NotInstalled``."""
    _run("an environment for the peers", python, "-m", "venv", str(home))
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run("the peers", *pip, "install", "--requirement", str(requirements))


def _run(what: str, *command: str) -> None:
    print(f"peers: installing {what} ...", flush=True)
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_S)
    except OSError as error:
        raise NotInstalled(f"{what} cannot be installed: {error.strerror}: {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{what} cannot be installed: it took over {_INSTALL_S} s") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "WARNING" not in line]
        raise NotInstalled(f"{what} cannot be installed: {(lines or ['no message'])[-1].strip()}")
