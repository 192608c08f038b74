"""The page about shadow mode: its pool file is the example, and its commands run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from toolbox.processes import module

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/shadow-mode.md").read_text()
EXAMPLE = (ROOT / "docs/examples/shadow.yaml").read_text()
COMMANDS = re.findall(r"^\$ tokenpool-sidecar (.+)$", PAGE, re.MULTILINE)


def test_the_pool_file_on_the_page_is_the_example() -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == EXAMPLE.partition("\n")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_on_the_page_runs(command: str) -> None:
    ran = subprocess.run(
        [*module("sidecar"), *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "not enforced: decisions are only counted and shown" in ran.stdout
    assert "callers without a key: entitlement unknown" in ran.stdout
    assert "are refused" not in ran.stdout


def test_the_page_has_a_command() -> None:
    assert COMMANDS
