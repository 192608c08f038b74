"""Rules and dashboards use existing metrics only; an alert fires for the pool with the fault, and clears."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.usage.consumer import RESULTS
from monitoring.model import Alert
from monitoring.rules import GROUPS, INJECTOR, RESOURCES
from sidecar.handover.asking import Result
from sidecar.telemetry import TPOT, TTFT
from tests.integration.observability import promtool
from tests.integration.observability.alert_cases import (
    CASES,
    ONE_OF_FIVE,
    ONE_OF_FIVE_GONE,
    ONE_OF_FIVE_WARNS,
    QUIET,
    Case,
)
from tests.integration.observability.exposed import ROOT, exposed
from tests.integration.observability.promql import Matcher, Selector, grouped_by, selectors
from tests.integration.observability.rule_tests import (
    STEP_MIN,
    firing_and_clearing,
    is_long,
    one_of_several,
    staying_silent,
)
from tokenpool.amounts import Dimension
from tokenpool.entitlements import Tier
from tokenpool.leases.settings import Mode
from tokenpool.outcomes import Ending, Reason

PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARDS = sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
RUNBOOK = ROOT / "docs" / "runbook.md"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity", "pool"}}
"""Series that Prometheus creates itself, and their labels."""
OF_SCRAPES = {"job", "instance", "namespace"}
VALUES = {
    "outcome": {str(outcome) for outcome in (*Ending, *Reason)},
    "mode": set(Mode),
    "dimension": set(Dimension),
    "tier": set(Tier),
    "result": {
        *("led", "followed", "fenced", "store_down", "failed", "answered", "ok", "invalid", "dropped"),
        *(*Result, *RESULTS),
    },
    "kind": {"input", "cached", "output"},
    "slo": {TTFT, TPOT},
}


@pytest.fixture(scope="module")
def series() -> Mapping[str, frozenset[str]]:
    return exposed()


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """The expressions of panels and variables, each with its place."""
    for path in DASHBOARDS:
        page = json.loads(path.read_text())
        for panel in page["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
        for variable in page["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None, variable
            yield f"{path.name}: ${variable['name']}", f"sum by (namespace, pool, {asked[2]}) ({asked[1]})"


EXPRESSIONS = [
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES),
    *dashboard_expressions(),
]


def labels_of(selector: Selector, series: Mapping[str, frozenset[str]]) -> set[str] | None:
    """The possible labels of a metric; ``None`` for a metric that no process exposes."""
    if selector.metric in OF_PROMETHEUS:
        return OF_PROMETHEUS[selector.metric] | OF_SCRAPES
    if selector.metric in RECORDED:
        inner = [
            labels_of(each, series)
            for each in selectors(RECORDED[selector.metric])
            if each.metric != selector.metric  # a rule that keeps its own last value
        ]
        assert None not in inner
        return set().union(*(labels for labels in inner if labels))
    found = series.get(selector.metric)
    return set(found) | OF_SCRAPES if found is not None else None


def impossible_values(matcher: Matcher) -> list[str]:
    """The values in a matcher that the label never has."""
    known = VALUES.get(matcher.label)
    return [] if known is None else [one for one in matcher.alternatives() if one not in known]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_only_existing_metrics_labels_and_values_are_used(
    where: str, expression: str, series: Mapping[str, frozenset[str]]
) -> None:
    found = list(selectors(expression))
    everything = {"dimension"} if "label_replace" in expression else set()

    assert found
    for selector in found:
        labels = labels_of(selector, series)
        assert labels is not None, f"no process exposes {selector.metric}"
        assert {matcher.label for matcher in selector.matchers} <= labels, selector
        assert not [bad for matcher in selector.matchers for bad in impossible_values(matcher)], selector
        everything |= labels
    assert grouped_by(expression) <= everything


def test_an_unknown_metric_is_found(series: Mapping[str, frozenset[str]]) -> None:
    asked = 'sum by (pool) (rate(tokenpool_nothing{outcome=~"finished|lost"}[5m])) > on (pool) up'

    nothing, up = selectors(asked)

    assert (nothing.metric, up.metric) == ("tokenpool_nothing", "up")
    assert labels_of(nothing, series) is None
    assert impossible_values(nothing.matchers[0]) == ["lost"]
    assert grouped_by(asked) == {"pool"}


def test_every_dashboard_exists_with_a_unique_id() -> None:
    pages = [json.loads(path.read_text()) for path in DASHBOARDS]

    assert [path.stem for path in DASHBOARDS] == ["pod", "pool", "tenants"]
    assert len({page["uid"] for page in pages}) == len(pages)
    for page in pages:
        assert not [i for i, n in Counter(panel["id"] for panel in page["panels"]).items() if n > 1]
        assert {panel["datasource"]["uid"] for panel in page["panels"]} == {"${datasource}"}
        corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in page["panels"]]
        assert len(set(corners)) == len(corners)


def alert_id(alert: dict[str, Any]) -> str:
    return f"{alert['alert']}-{alert['labels']['severity']}"


KEPT = re.compile(r"\b(?:by|on) \(namespace, (?:pool\b|job, instance\b)")
OF_A_NAMESPACE = {rule.name for group in (INJECTOR, RESOURCES) for rule in group.rules}
"""An injector serves all pools, and the resources are of several: their alerts keep the namespace alone."""


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_expression_keeps_the_namespace_and_the_pool(where: str, expression: str) -> None:
    groupings = re.findall(r"\b(?:by|on|ignoring|without)\s*\(", expression)
    totals = re.findall(r"\b(?:sum|avg|min|max|count|group|topk)\s*\((?!\))", expression)

    kept = re.compile(r"\b(?:by|on) \(namespace\b") if where in OF_A_NAMESPACE else KEPT
    assert len(kept.findall(expression)) == len(groupings)
    assert not totals, "a total over all pools"


@pytest.mark.parametrize(
    ("where", "expression"),
    list(dashboard_expressions()),
    ids=[where for where, _ in dashboard_expressions()],
)
def test_every_panel_shows_the_chosen_pool(where: str, expression: str) -> None:
    chosen = {"namespace": "$namespace", "pool": "$pool"}
    for selector in selectors(expression):
        matched = {matcher.label: matcher.value for matcher in selector.matchers}
        if not where.endswith(("$namespace", "$pool")):
            assert {label: matched[label].removesuffix("|") for label in chosen} == chosen, selector


def test_every_dashboard_lets_the_reader_choose_source_namespace_and_pool() -> None:
    for path in DASHBOARDS:
        variables = json.loads(path.read_text())["templating"]["list"]
        assert [each["name"] for each in variables[:3]] == ["datasource", "namespace", "pool"]
        assert variables[0]["type"] == "datasource"


@pytest.mark.parametrize("alert", ALERTS, ids=alert_id)
def test_every_alert_has_a_severity_a_description_and_a_runbook(alert: dict[str, Any]) -> None:
    said = alert["annotations"]

    assert alert["labels"]["severity"] in ("critical", "warning")
    assert said["summary"]
    assert said["description"]
    assert re.fullmatch(r"https://[a-z./]+#[a-z-]+", said["runbook_url"])


def test_the_runbook_has_a_section_for_every_alert() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert {alert["annotations"]["runbook_url"].partition("#")[2] for alert in ALERTS} <= anchors


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    fires = {(case.alert, severity) for case in CASES for severity in case.severities}

    assert fires == {(alert["alert"], alert["labels"]["severity"]) for alert in ALERTS}


@pytest.fixture(scope="module")
def checker() -> str:
    try:
        return promtool.executable()
    except LookupError as error:
        pytest.skip(str(error))


def check(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_its_configuration_and_rules(checker: str) -> None:
    said = check(checker, "check", "config", str(PROMETHEUS / "prometheus.yml"))

    assert f"{len(RULES)} rules found" in said


BY_NAME: dict[str, list[Alert]] = {}
for group in GROUPS:
    for rule in group.rules:
        if isinstance(rule, Alert):
            BY_NAME.setdefault(rule.name, []).append(rule)


def run_rule_tests(
    checker: str,
    folder: Path,
    step_min: int,
    tests: list[dict[str, Any]],
    rules: Path = PROMETHEUS / "rules.yml",
) -> None:
    """Run tests of the rules in one file."""
    file = folder / "tests.yml"
    content = {
        "rule_files": [str(rules)],
        "evaluation_interval": f"{step_min}m",
        "tests": tests,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "SUCCESS" in check(checker, "test", "rules", str(file))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.about}".rstrip("-"))
def test_an_alert_fires_for_the_pool_with_the_fault_alone_and_clears(
    checker: str, tmp_path: Path, case: Case
) -> None:
    test = firing_and_clearing(case, BY_NAME[case.alert])
    rules = PROMETHEUS / "rules.yml"
    if is_long(case):  # with all rules, three days take half a minute
        rules = tmp_path / "rules.yml"
        needed = [r for r in RULES if r.get("alert") == case.alert or "slo" in r.get("record", "")]
        rules.write_text(yaml.safe_dump({"groups": [{"name": "needed", "rules": needed}]}))

    run_rule_tests(checker, tmp_path, STEP_MIN[is_long(case)], [test], rules)


@pytest.mark.parametrize("is_long", [False, True])
def test_no_alert_fires_for_a_state_that_looks_like_a_fault(
    checker: str, tmp_path: Path, is_long: bool
) -> None:
    tests = [staying_silent(quiet) for quiet in QUIET if quiet.is_long == is_long]
    run_rule_tests(checker, tmp_path, STEP_MIN[is_long], tests)


def test_no_fault_of_one_sidecar_of_five_is_critical(checker: str, tmp_path: Path) -> None:
    tests = [
        one_of_several("every fault at one sidecar", ONE_OF_FIVE, ONE_OF_FIVE_WARNS),
        one_of_several("one sidecar is gone", ONE_OF_FIVE_GONE, 2),
    ]

    run_rule_tests(checker, tmp_path, STEP_MIN[True], tests)


def test_prometheus_parses_the_expressions_of_dashboards(checker: str, tmp_path: Path) -> None:
    asked = [
        {"record": "dashboard:asks:this", "expr": expression} for _, expression in dashboard_expressions()
    ]
    for number, rule in enumerate(asked):
        rule["labels"] = {"panel": str(number)}
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": asked}]}))

    assert f"{len(asked)} rules found" in check(checker, "check", "rules", str(file))
