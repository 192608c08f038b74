"""A short form of the comparison of load generators, and instruments that fail.

``python -m experiments instruments`` measures whether the goals are reached.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from experiments.instruments import command, running, server
from experiments.instruments.environments import Package, Unavailable, provided
from experiments.instruments.tools import INSTRUMENTS, Call, Instrument
from experiments.instruments.workload import Workload

LOAD = Workload(rate=40.0, requests=20, input_tokens=16, output_tokens=8)
FAULTS = {
    "stops": ("raise SystemExit(3)", "ended with status 3"),
    "silent": ("", "wrote no figures .FileNotFoundError: .*result.json.*see its output in silent"),
    "slow": ("import time; time.sleep(60)", "did not end within 3 s"),
}


def _command(words: list[str], programs: Path, call: Call) -> list[str]:
    return words


def test_loadgen_sends_what_the_engine_counts(tmp_path: Path) -> None:
    options = ["--only", "loadgen", "--rates", "20", "--seconds", "1", "--output-tokens", "16"]
    # Whether the goals are reached depends on the machine.
    assert command.main([*options, "--out", str(tmp_path)]) in (0, 1)
    (row,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert row["figures"]["served"] == row["own"]["requests"] == row["requests"] == 60
    assert (row["own"]["input_tokens"], row["own"]["output_tokens"]) == (64, 16)
    assert row["cpu_s"] > 0
    assert row["figures"]["ttft_mean_s"] > row["own"]["ttft_mean_s"] > 0
    assert "| 20 | loadgen |" in (tmp_path / "results.md").read_text()


def test_an_instrument_that_fails_says_why(tmp_path: Path) -> None:
    theirs, ours = server.cores()
    with server.serving("simulator", theirs, tmp_path) as target:
        files = server.made_files("simulator", target, tmp_path, (16, 8), 20, 1)
        for name, (code, problem) in FAULTS.items():
            folder = tmp_path / name
            folder.mkdir()
            words = [sys.executable, "-c", code]
            made = Instrument(name, None, partial(_command, words), INSTRUMENTS[1].read)
            call = Call(LOAD, target, files, folder, 1)
            result = running.run(made, Path(), call, ours, start_s=1.5)
            assert result.figures is result.own is None
            assert not result.keeps_up
            assert re.search(problem, result.problem), result.problem


def test_a_package_is_installed_once_and_a_failure_says_why(tmp_path: Path) -> None:
    broken = Package("broken==not a version")
    with pytest.raises(Unavailable, match=r"broken==not a version cannot be installed: .*not a version"):
        provided(broken, [sys.executable], tmp_path)
    home = tmp_path / "broken"
    (home / ".installed").write_text(f"{broken.requirement} in {home}")
    assert provided(broken, [], tmp_path) == home / "bin"
    other = tmp_path / "other"
    other.mkdir()
    home.rename(other / "broken")
    with pytest.raises(Unavailable):
        provided(broken, [], other)
