"""Runs the unit tests of the sidecar, the domain and the runtime on every Python that the package claims.

It finds ``pythonX.Y`` on the PATH or in pyenv for each classifier of pyproject.toml, and makes an
environment for it in ``out/pythons``. A claimed Python that is missing is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TESTS = ("tests/unit/sidecar", "tests/unit/tokenpool", "tests/unit/runtime", "tests/unit/coordinator")
_CLASSIFIER = re.compile(r"Programming Language :: Python :: (\d+\.\d+)")


def claimed(project: Mapping[str, Any]) -> list[str]:
    """The Python versions that the classifiers name, such as ``3.12``."""
    found = (_CLASSIFIER.fullmatch(line) for line in project["project"]["classifiers"])
    return [match[1] for match in found if match is not None]


def interpreter(version: str) -> Path | None:
    """The path of a Python of this version; ``None`` if there is none."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        return Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next(iter(sorted(pyenv.glob(f"{version}.*/bin/python"))), None)


def run(version: str, python: Path) -> bool:
    """Run the tests on one Python. Returns whether they passed."""
    folder = ROOT / "out" / "pythons" / version
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-e", f"{ROOT}[dev]"], check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [own, "-m", "pytest", "-q", "-n", "2", *TESTS], cwd=ROOT, env=environment, check=False
    )
    return done.returncode == 0


def main() -> int:
    """Test each claimed version. Returns the exit status."""
    failed = []
    for version in claimed(tomllib.loads((ROOT / "pyproject.toml").read_text())):
        python = interpreter(version)
        if python is None:
            print(f"Python {version} is claimed, but not installed: install it, or set PYENV_ROOT")
            failed.append(version)
            continue
        print(f"Python {version}: {python}", flush=True)
        if not run(version, python):
            failed.append(version)
    if failed:
        print(f"not tested, or failed: Python {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
