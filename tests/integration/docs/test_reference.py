"""The pages in docs/reference/ are generated from the code, and complete."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import generate
from loadgen.described import FIELDS as SCENARIO_FIELDS
from loadgen.described import Bounds, ScenarioField
from loadgen.fields import ScenarioError
from loadgen.reading import parse as parse_scenario
from tokenpool.poolfile.described import FIELDS, REQUIRED
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


def of_tenant(field: str) -> str:
    """A scenario with one tenant that has this field."""
    head = "name: a\nmodel: b\nduration_s: 1\ntenants: [{name: x"
    others = {"arrivals": "{poisson: {rate: 1}}", "input": "1", "output": "1"}
    given = [f"{name}: {value}" for name, value in others.items() if not field.startswith(f"{name}:")]
    return f"{head}, {', '.join(given)}, {field}}}]\n"


def nested(*names: str) -> str:
    """A field with an unknown field in its innermost mapping."""
    text = f"{{{UNKNOWN}: 1}}"
    for name in reversed(names[1:]):
        text = f"{{{name}: {text}}}"
    return f"{names[0]}: {text}"


ARRIVALS = ("constant", "poisson", "bursty", "gamma", "ramp", "on_off", "closed")
TRACES = ("azure", "burstgpt", "mooncake", "sharegpt", "lines")
SCENARIO_MAPPINGS = {
    "": f"{UNKNOWN}: 1",
    "tenants[].": of_tenant(f"{UNKNOWN}: 1"),
    "phases[].": of_tenant("starts_s: 0") + f"phases: [{{{UNKNOWN}: 1}}]",
    "faults[].": of_tenant("starts_s: 0") + f"faults: [{{{UNKNOWN}: 1}}]",
    "tokenizer.": of_tenant("starts_s: 0") + f"tokenizer: {{{UNKNOWN}: 1}}",
    **{f"tenants[].arrivals.{kind}.": of_tenant(nested("arrivals", kind)) for kind in ARRIVALS},
    **{f"tenants[].trace.{form}.": of_tenant(nested("trace", form)) for form in TRACES},
    **{
        f"tenants[].input.{kind}.": of_tenant(nested("input", kind))
        for kind in ("uniform", "normal", "lognormal")
    },
    **{
        f"tenants[].{name}.": of_tenant(nested(name))
        for name in ("slo", "prefix", "retries", "cancel", "conversation")
    },
}
"""A scenario with an unknown field, for the path of each mapping."""


@pytest.mark.parametrize("mapping", SCENARIO_MAPPINGS)
def test_the_scenario_page_lists_the_fields_that_are_read(mapping: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(SCENARIO_MAPPINGS[mapping], "s.yaml", {}, Path())

    known = str(raised.value).partition("use one of ")[2].split(", ")
    listed = [path.removeprefix(mapping) for path, *_ in SCENARIO_FIELDS if path.startswith(mapping)]
    assert set(known) == {each for each in listed if not set(each) & set(".[")}


@pytest.mark.parametrize("kind", ["arrivals", "input", "trace"])
def test_the_scenario_page_lists_the_kinds_of_arrivals_and_lengths(kind: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(of_tenant(f"{kind}: {{}}"), "s.yaml", {}, Path())

    known = str(raised.value).partition("write exactly one of ")[2].split(", ")
    start = f"tenants[].{kind}."
    assert set(known) == {
        path.removeprefix(start).partition(".")[0] for path, *_ in SCENARIO_FIELDS if path.startswith(start)
    }


# --- the bounds of scenario fields ---

SAMPLES = {"text": "a", "path": "none.csv", "number": 1, "whole number": 1}
"""A value of each type that required fields have."""


def with_value(field: ScenarioField, value: float) -> str:
    """A scenario with this value, and with the required fields beside it."""
    tenant: dict[str, Any] = {"name": "x", "arrivals": {"poisson": {"rate": 1}}, "input": 1}
    tenant |= {"endpoint": "embeddings"} if field.path == "tenants[].batch" else {"output": 1}
    top: dict[str, Any] = {"name": "a", "model": "b", "duration_s": 100, "tenants": [tenant]}
    mapping, (*outer, last) = top, field.path.split(".")
    for word in outer:
        if word.endswith("[]"):
            (mapping,) = mapping[word.removesuffix("[]")]
        else:
            mapping[word] = {}
            mapping = mapping[word]
    has_siblings = len(outer) > 1 and outer[-1] != "input"  # of which a scenario has one only
    for other in SCENARIO_FIELDS if has_siblings else ():
        *around, name = other.path.split(".")
        if around == outer and other.default == REQUIRED:
            mapping[name] = SAMPLES[other.kind.partition(",")[0]]
    mapping[last] = value
    return yaml.safe_dump(top)


def beyond() -> Iterator[tuple[str, float, str]]:
    """Values beyond each bound that the page states, with the words of the error."""
    for each in SCENARIO_FIELDS:
        if isinstance(each.bounds, Bounds):
            least, most, is_above = each.bounds
            yield each.path, least if is_above else least - 1, "more than" if is_above else "at least"
            if not math.isinf(most):
                yield each.path, most + 1, "at most"


@pytest.mark.parametrize(("path", "value", "words"), [*beyond()])
def test_the_bounds_on_the_scenario_page_are_those_that_hold(path: str, value: float, words: str) -> None:
    (field,) = [each for each in SCENARIO_FIELDS if each.path == path]
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(with_value(field, value), "s.yaml", {}, Path())
    assert isinstance(field.bounds, Bounds)
    bound = field.bounds.most if words == "at most" else field.bounds.least
    assert f"{path.rpartition('.')[2]} is {value:g}; write {words} {bound:g}" in str(raised.value)


def test_every_number_on_the_scenario_page_has_bounds() -> None:
    numbers = [each for each in SCENARIO_FIELDS if each.kind.startswith(("number", "whole number"))]
    assert [each.path for each in numbers if not str(each.bounds)] == []


# --- the commands of loadgen ---


def test_the_loadgen_page_has_every_command_and_its_options() -> None:
    text = (generate.FOLDER / "loadgen.md").read_text()
    for command in ("init", "check", "run", "sweep", "capacity", "compare", "engine"):
        assert f"## loadgen {command}\n" in text
    for option in ("--fail-on GOAL", "--fail-if REGRESSION", "--slo GOAL", "--force", "--slots X"):
        assert f"`{option}`" in text
    assert " |  | None. |" not in text  # every option has a meaning
