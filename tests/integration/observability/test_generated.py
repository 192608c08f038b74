"""The files of compose and Kubernetes are those that their one source makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from monitoring.generate import DASHBOARDS, KUBERNETES, ROOT, RULES, files, main
from monitoring.model import RUNBOOK_URL


@pytest.mark.parametrize("path", files(), ids=str)
def test_a_file_is_the_one_that_its_source_makes(path: Path) -> None:
    assert (ROOT / path).read_text() == files()[path], "run 'make docs'"


def test_no_dashboard_is_left_that_has_no_source() -> None:
    assert {DASHBOARDS / path.name for path in (ROOT / DASHBOARDS).iterdir()} <= set(files())


def test_prometheus_and_its_operator_have_the_same_rules() -> None:
    plain = yaml.safe_load((ROOT / RULES).read_text())
    resource = yaml.safe_load((ROOT / KUBERNETES / "prometheusrule.yaml").read_text())

    assert resource["spec"] == plain


def test_a_config_map_holds_the_dashboard_of_compose() -> None:
    for resource in yaml.safe_load_all((ROOT / KUBERNETES / "dashboards.yaml").read_text()):
        [(name, text)] = resource["data"].items()
        assert resource["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(text) == json.loads(
            (ROOT / DASHBOARDS / name.removeprefix("tokenpool-")).read_text()
        )


def test_a_difference_is_found_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--root", str(tmp_path)]
    assert main([*there, "--check"]) == 1
    assert "rules.yml differs" in capsys.readouterr().err
    assert main(there) == 0
    assert main([*there, "--check"]) == 0


def test_a_team_may_name_its_own_runbook(tmp_path: Path) -> None:
    assert main(["--root", str(tmp_path), "--runbook-url", "https://wiki.example/tokenpool"]) == 0

    text = (tmp_path / RULES).read_text()
    assert "https://wiki.example/tokenpool#engine-down" in text
    assert RUNBOOK_URL not in text
