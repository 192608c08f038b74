"""What kubectl makes of the kustomizations, and Helm of the chart: objects of the Kubernetes API.

Both programs come from PyPI with the ``dev`` extra, as they are published: kubectl, and Helm as a library.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.support.programs import program

Json = dict[str, Any]

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
CHART = ROOT / "charts" / "tokenpool"
RELEASE = NAMESPACE = "tokenpool"
OVERLAYS = sorted(
    str(path.parent.relative_to(K8S)) for path in (K8S / "overlays").glob("*/kustomization.yaml")
)
VALUES = {
    "chart": None,
    "chart/try-out": CHART / "values-try-out.yaml",
    "chart/full": CHART / "ci" / "full-values.yaml",
    "chart/several-pools": CHART / "ci" / "several-pools-values.yaml",
}
"""The values with which the chart is tested, by the name of the rendering."""
EVERY = ["base", *OVERLAYS, *VALUES]
"""Each rendering that a user can install."""
LOADGEN = "loadgen"
"""The load test of an installed pool, which is a rendering of its own."""


def kustomized(folder: Path) -> list[Json]:
    """All objects of a kustomization."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def documents(text: str) -> list[Json]:
    """The objects of a YAML stream."""
    return [each for each in yaml.safe_load_all(text) if each is not None]


def values_of(rendering: str) -> Json:
    """The values of one of the chart's renderings."""
    path = VALUES[rendering]
    read: Json = {} if path is None else yaml.safe_load(path.read_text())
    return read


def charted(values: Mapping[str, Any], *, namespace: str = NAMESPACE, release: str = RELEASE) -> list[Json]:
    """All objects of the chart, without its tests. Raises ``helm_python.HelmError``."""
    rendered = files(values, namespace=namespace, release=release)
    return [
        each
        for path, text in rendered.items()
        if "/templates/tests/" not in path and path.endswith(".yaml")
        for each in documents(text)
    ]


def files(values: Mapping[str, Any], *, namespace: str = NAMESPACE, release: str = RELEASE) -> dict[str, str]:
    """The rendered files of the chart, with ``NOTES.txt`` and the tests, by their path in the chart."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        made: dict[str, str] = chart.render(dict(values), name=release, namespace=namespace)
    return made


@functools.cache
def objects(rendering: str) -> list[Json]:
    """The objects of one of ``EVERY``. Do not change them."""
    return charted(values_of(rendering)) if rendering in VALUES else kustomized(K8S / rendering)


@functools.cache
def distinct() -> list[Json]:
    """The objects of all renderings, each once. The checks of `helm test` are among them."""
    helm_tests = (files(values_of(each))["tokenpool/templates/tests/test.yaml"] for each in VALUES)
    found = [each for overlay in (*EVERY, LOADGEN) for each in objects(overlay)]
    found += documents((K8S / LOADGEN / "results.yaml").read_text())
    found += [each for text in helm_tests for each in documents(text)]
    return list({json.dumps(each, sort_keys=True): each for each in found}.values())
