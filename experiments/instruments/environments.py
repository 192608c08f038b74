"""Installs instruments from PyPI, each in a virtual environment of its own under ``.cache/instruments``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.install_engine import ROOT, TORCH

HOME = ROOT / ".cache" / "instruments"
_INSTALL_S = 600
Version = tuple[int, int]


class Unavailable(Exception):
    """An instrument that cannot be used here. The text gives the reason and the fix."""


@dataclass(frozen=True)
class Package:
    """A tool on PyPI."""

    requirement: str
    """With its version."""
    least_python: Version = (3, 10)
    needs_torch: bool = False
    """It is installed first, in its build for CPUs: the default one brings gigabytes for GPUs."""

    @property
    def name(self) -> str:
        """The name of the distribution."""
        return self.requirement.partition("==")[0]


def provided(package: Package, interpreters: Sequence[str], among: Path = HOME) -> Path:
    """The folder of a package's programs. Installs it if it is missing. Raises ``Unavailable``.

    Its environment is a folder ``among`` others.
    """
    home = among / package.name
    stamp, content = home / ".installed", f"{package.requirement} in {home}"
    if stamp.is_file() and stamp.read_text() == content:
        return home / "bin"  # its programs name its folder, so a folder that was moved does not count
    python = suitable(package, interpreters, version_of)
    _run(f"an environment for {package.name}", python, "-m", "venv", "--clear", str(home))
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    if package.needs_torch:
        # If no index offers the CPU build, the tool's own requirement brings torch.
        with contextlib.suppress(Unavailable):
            _run(f"torch for {package.name}", *pip, f"{TORCH}+cpu")
    _run(package.requirement, *pip, package.requirement)
    stamp.write_text(content)
    return home / "bin"


def suitable(
    package: Package, interpreters: Iterable[str], version_of: Callable[[str], Version | None]
) -> str:
    """The first interpreter that is new enough. Raises ``Unavailable``."""
    for interpreter in interpreters:
        version = version_of(interpreter)
        if version is not None and version >= package.least_python:
            return interpreter
    needed = ".".join(map(str, package.least_python))
    raise Unavailable(f"{package.requirement} needs Python {needed} or newer; name one with --python")


def known_interpreters(named: str | None) -> Iterator[str]:
    """The named interpreter, this one, those beside it, and those on the path."""
    if named is not None:
        yield named
    yield sys.executable
    yield from sorted(map(str, Path(sys.base_prefix).parent.glob("*/bin/python3")))
    yield from ("python3.12", "python3.13")


def version_of(interpreter: str) -> Version | None:
    """Its version, if it runs."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)


def _run(what: str, *command: str) -> None:
    print(f"instruments: installing {what} ...", flush=True)
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} was not installed within {_INSTALL_S} s") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "WARNING" not in line]
        raise Unavailable(f"{what} cannot be installed: {(lines or ['no message'])[-1].strip()}")
