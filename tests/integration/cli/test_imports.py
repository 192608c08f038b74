"""What the command line imports: it is installed without the parts for development, and starts quickly."""

from __future__ import annotations

import subprocess
import sys

TOPS = "import sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"


def imported(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {TOPS}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_no_command_needs_what_an_installation_lacks() -> None:
    for module in ("cli.__main__", "cli.prediction"):
        assert imported(module).isdisjoint({"toolbox", "demo", "experiments", "bench", "tests", "shtab"})


def test_only_simulate_imports_the_simulation() -> None:
    assert imported("cli.__main__").isdisjoint({"simulation", "loadgen", "aiohttp", "uvloop", "asyncio"})
    assert "simulation" in imported("cli.prediction")
