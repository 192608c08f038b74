"""The pages in docs/reference/ are generated from the code, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import generate
from tokenpool.poolfile.described import FIELDS
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse

UNKNOWN = "zzzzzzzzzzzz"
"""A field name that resembles no other."""


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_page_is_generated_from_the_code(name: str) -> None:
    written = (generate.FOLDER / name).read_text()

    assert written == generate.PAGES[name](), f"docs/reference/{name} differs from the code: run 'make docs'"


def test_every_page_of_the_folder_is_generated() -> None:
    assert {path.name for path in generate.FOLDER.iterdir()} == set(generate.PAGES)


def test_the_check_names_a_page_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)

    assert generate.main(["--check"]) == 1
    assert "docs/reference/errors.md differs from the code; run 'make docs'" in capsys.readouterr().err

    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


MAPPINGS = {
    "": f"{UNKNOWN}: 1",
    "pools[].": f"pools: [{{{UNKNOWN}: 1}}]",
    "pools[].replica.": f"pools: [{{replica: {{{UNKNOWN}: 1}}}}]",
    "pools[].replicas.": f"pools: [{{replicas: {{{UNKNOWN}: 1}}}}]",
    "pools[].pricing.": f"pools: [{{pricing: {{{UNKNOWN}: 1}}}}]",
    "entitlements[].": f"entitlements: [{{{UNKNOWN}: 1}}]",
    "entitlements[].guarantee.": f"entitlements: [{{guarantee: {{{UNKNOWN}: 1}}}}]",
    "entitlements[].ceiling.": f"entitlements: [{{ceiling: {{{UNKNOWN}: 1}}}}]",
    "entitlements[].slo.": f"entitlements: [{{slo: {{{UNKNOWN}: 1}}}}]",
    "entitlements[].quotas[].": f"entitlements: [{{quotas: [{{{UNKNOWN}: 1}}]}}]",
    "groups[].": f"groups: [{{{UNKNOWN}: 1}}]",
    "groups[].quotas[].": f"groups: [{{quotas: [{{{UNKNOWN}: 1}}]}}]",
    "groups[].guarantee.": f"groups: [{{guarantee: {{{UNKNOWN}: 1}}}}]",
    "groups[].ceiling.": f"groups: [{{ceiling: {{{UNKNOWN}: 1}}}}]",
    "entitlements[].api_keys[].quotas[].": (
        f"entitlements: [{{api_keys: [{{env: A, quotas: [{{{UNKNOWN}: 1}}]}}]}}]"
    ),
    "entitlements[].api_keys[].": f"entitlements: [{{api_keys: [{{{UNKNOWN}: 1}}]}}]",
}
"""A pool file with an unknown field, for the path of each mapping."""


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_pool_file_page_lists_the_fields_that_are_read(mapping: str) -> None:
    with pytest.raises(PoolFileError) as raised:
        parse(MAPPINGS[mapping])

    [fix] = [each.fix for each in raised.value.problems if UNKNOWN in each.message]
    listed = [path.removeprefix(mapping) for path, *_ in FIELDS if path.startswith(mapping)]
    assert set(fix.removeprefix("use one of ").split(", ")) == {
        each for each in listed if not set(each) & set(".[")
    }
