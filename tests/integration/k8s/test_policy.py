"""Trivy on the manifests, the chart and the Dockerfiles. k8s/trivyignore.yaml explains what stays."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.k8s.rendering import K8S, ROOT, Json, distinct
from tests.support.programs import program

IGNORED = K8S / "trivyignore.yaml"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """What Trivy says, with the checks that it carries: nothing is fetched."""
    folder = tmp_path_factory.mktemp("policies")
    for number, each in enumerate(distinct()):
        # Objects of the same name, in several renderings, are in folders of their own.
        path = folder / str(number) / f"{each['kind'].lower()}-{each['metadata']['name']}.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(each))
    for path in (ROOT / "docker").glob("*Dockerfile"):
        shutil.copy(path, folder)
    done = subprocess.run(
        [
            *(program("trivy"), "fs", "--scanners", "misconfig"),
            *("--misconfig-scanners", "kubernetes,dockerfile"),
            *("--skip-check-update", "--skip-version-check", "--quiet", "--format", "json"),
            *("--show-suppressed", "--ignorefile", IGNORED, folder),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: Json = json.loads(done.stdout)
    return read


def test_every_finding_is_explained(report: Json) -> None:
    found = [
        f"{result['Target']}: {each['ID']} {each['Message']}"
        for result in report["Results"]
        for each in result.get("Misconfigurations", [])
    ]
    assert found == []


def test_deployments_and_dockerfiles_were_checked(report: Json) -> None:
    passed = {
        Path(result["Target"]).name: result["MisconfSummary"]["Successes"] for result in report["Results"]
    }
    for name in ("deployment-tokenpool-injector.yaml", "pod-tokenpool-test-pool-file.yaml", "Dockerfile"):
        assert passed[name] > 20


def test_every_explanation_is_needed(report: Json) -> None:
    explained = yaml.safe_load(IGNORED.read_text())["misconfigurations"]
    assert all(len(each["statement"].split()) > 5 for each in explained)
    needed = {
        each["Finding"]["ID"]
        for result in report["Results"]
        for each in result.get("ExperimentalModifiedFindings", [])
    }
    assert {each["id"] for each in explained} == needed
