"""The experiments in their short form: overload and the soak on the real engine, scarcity on the simulator.

The full ones, with all baselines, are ``make experiments``. A busy machine moves a ratio of two short phases;
what an engine costs with nobody in front is orders of magnitude.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.__main__ import main


def test_overload_leaves_a_guarantee_alone(tmp_path: Path) -> None:
    main(["overload", "--seeds", "1", "--short", "--only", "tokenpool", "--out", str(tmp_path)])
    folder = tmp_path / "overload"
    (ours,) = json.loads((folder / "results.json").read_text())["results"]
    assert ours["p99_s"] < 5 * ours["alone_p99_s"]
    assert ours["guaranteed_shed"] == 0
    assert ours["preempted"] > 0
    assert ours["spot_served"] > 0
    assert (folder / "compare.html").stat().st_size > 1000


def test_scarcity_is_shared_by_weight(tmp_path: Path) -> None:
    short = ["scarcity", "--engine", "simulator", "--seeds", "1", "--short", "--only", "with debt"]
    main([*short, "--out", str(tmp_path)])
    (ours,) = json.loads((tmp_path / "scarcity" / "results.json").read_text())["results"]
    assert ours["first_jain"] >= 0.9
    assert ours["later_jain"] >= 0.95
    assert ours["deviation"] <= 0.25
    assert ours["tokens_per_s_after"] > 0


def test_nothing_is_lost_in_a_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soak", "--short", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
