"""The short form of the experiments: overload, soak and traces on the real engine, scarcity on the simulator.

``make experiments`` runs the full form with all baselines. On a busy machine the ratio of two short phases
varies, but an engine without a proxy is worse by orders of magnitude.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from experiments import recorded, soak, traces
from experiments.__main__ import main
from loadgen.engine.model import Costs

TRACES = Path(__file__).parents[2] / "support" / "traces"


def test_overload_does_not_break_a_guarantee(tmp_path: Path) -> None:
    main(["overload", "--seeds", "1", "--short", "--only", "tokenpool on vllm fcfs", "--out", str(tmp_path)])
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


def test_a_short_soak_reaches_its_goals(tmp_path: Path) -> None:
    """An abandoned stream is settled by its relayed tokens, which are a large share of a short run."""
    main(["soak", "--short", "--out", str(tmp_path)])
    result = soak.Result(**json.loads((tmp_path / "soak" / "results.json").read_text()))
    assert abs(result.output_ratio - 1) < 0.05
    missed = [goal for goal, is_reached in soak.goals(replace(result, output_ratio=1.0)) if not is_reached]
    assert missed == []


def test_an_excerpt_of_real_traces_is_priced(tmp_path: Path) -> None:
    """The prompts are texts, which vLLM's tokenizer counts. The first ones are priced before any is known."""
    like, sizes = tmp_path / "engine.json", traces.Sizes(1, 8, (0.5, 1.5), 8.0, 0.0)
    like.write_text(json.dumps(asdict(Costs(0.004, 0.0003, 0.0001, 0.004))))
    result, _ = traces.run(recorded.read(TRACES), "vllm", sizes, like, 1, tmp_path)
    for name, tenant in result.tenants.items():
        assert tenant.requests > 5, name
        assert tenant.input_error <= 0.3, name
