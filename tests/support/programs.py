"""Programs that the ``dev`` extra installs: kubectl, Docker Compose v2, Trivy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """A program beside this Python, or of the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is not installed; the dev extra has it: make check"
    return found
