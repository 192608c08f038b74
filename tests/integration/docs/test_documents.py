"""The links, headings, files, options, metrics and make targets in the documents exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from docs import curves, generate, plots, traces
from toolbox.pictures import drawing, read

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "k8s").rglob("*.md"),
    ]
)
CURRENT = [each for each in DOCUMENTS if each.name != "CHANGELOG.md"]
"""Documents about the present state. A change log also names removed parts."""
MOST_LINES = 200
"""The most lines of the README."""


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@cache
def anchors(path: Path) -> frozenset[str]:
    """The headings of a page, as GitHub links to them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads)


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("path", CURRENT, ids=names(CURRENT))
def test_every_named_file_exists(path: Path) -> None:
    folders = (
        "tokenpool|runtime|dashboard|sidecar|coordinator|injector|loadgen|simulation|cli|toolbox|demo|experiments"
        "|bench|tests|docker|k8s|docs"
    )
    for named in re.findall(rf"`((?:{folders})/[\w./-]*)`", path.read_text()):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("path", CURRENT, ids=names(CURRENT))
def test_every_named_metric_is_exposed(path: Path) -> None:
    processes = (generate.sidecar_metrics, generate.coordinator_metrics, generate.injector_metrics)
    exposed = {each.name for metrics in processes for each in metrics()}
    for named in re.findall(r"`(tokenpool_[a-z_]+)[`{]", path.read_text()):
        assert named in exposed, named


@pytest.mark.parametrize("path", CURRENT, ids=names(CURRENT))
def test_every_named_make_target_exists(path: Path) -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for named in re.findall(r"`make ([a-z0-9-]+)", path.read_text()):
        assert named in targets, named


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_every_decision_is_in_the_index_and_has_a_date() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for path in folder.glob("[0-9]*.md"):
        title, dated, *_ = path.read_text().splitlines()
        date = re.match(r"(\d{4}-\d\d-\d\d), commit [0-9a-f]{7,}$", dated)
        assert date is not None, path.name
        assert f"| {date[1]} | [{title.removeprefix('# ')}]({path.name}) |" in index


def test_the_plot_of_the_readme_shows_the_figures_of_its_file() -> None:
    assert (plots.FOLDER / "overload.svg").read_text() == plots.drawing(plots.ways())
    assert (plots.FOLDER / "convergence.svg").read_text() == plots.convergence(plots.points())


@pytest.mark.parametrize("file", curves.files(), ids=lambda file: file.name)
def test_the_curves_of_an_experiment_show_the_figures_of_their_file(file: Path) -> None:
    assert file.with_suffix(".svg").read_text() == drawing(read(file))


@pytest.mark.parametrize("name", traces.TITLES)
def test_the_picture_of_a_trace_shows_the_spans_of_its_file(name: str) -> None:
    assert traces.path(name).read_text() == traces.drawing(name, traces.read()[name])
