"""Rules and dashboards use existing metrics only, and a test of every alert has it fire and stay silent."""

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

from sidecar.handover.asking import Result
from tests.integration.observability import promtool
from tests.integration.observability.exposed import ROOT, exposed
from tests.integration.observability.promql import Matcher, Selector, grouped_by, selectors
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
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
"""Series that Prometheus creates itself, and their labels."""
OF_SCRAPES = {"job", "instance"}
VALUES = {
    "outcome": {str(outcome) for outcome in (*Ending, *Reason)},
    "mode": set(Mode),
    "dimension": set(Dimension),
    "tier": set(Tier),
    "result": {"led", "followed", "fenced", "store_down", "failed", "answered", "ok", "invalid", *Result},
    "kind": {"input", "cached", "output"},
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
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None, variable
            yield f"{path.name}: ${variable['name']}", f"sum by ({asked[2]}) ({asked[1]})"


EXPRESSIONS = [
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES),
    *dashboard_expressions(),
]


def labels_of(selector: Selector, series: Mapping[str, frozenset[str]]) -> set[str] | None:
    """The possible labels of a metric; ``None`` for a metric that no process exposes."""
    if selector.metric in OF_PROMETHEUS:
        return OF_PROMETHEUS[selector.metric] | OF_SCRAPES
    if selector.metric in RECORDED:
        inner = [labels_of(each, series) for each in selectors(RECORDED[selector.metric])]
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
        assert {panel["datasource"]["uid"] for panel in page["panels"]} == {_datasource()}


def _datasource() -> str:
    provisioned = ROOT / "docker" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    return str(yaml.safe_load(provisioned.read_text())["datasources"][0]["uid"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_severity_a_description_and_a_runbook(alert: dict[str, Any]) -> None:
    said = alert["annotations"]

    assert alert["labels"]["severity"] in ("page", "ticket")
    assert said["summary"]
    assert said["description"]
    assert re.fullmatch(r"docs/runbook\.md#[a-z-]+", said["runbook"])


def test_the_runbook_has_a_section_for_every_alert() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS} <= anchors


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests.yml").read_text())["tests"]
    asked = [case for test in tests for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}

    assert {case["alertname"] for case in asked if case["exp_alerts"]} == names
    assert {case["alertname"] for case in asked if not case["exp_alerts"]} == names


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


def test_alerts_fire_and_stay_silent(checker: str) -> None:
    assert "SUCCESS" in check(checker, "test", "rules", str(PROMETHEUS / "tests.yml"))


def test_prometheus_parses_the_expressions_of_dashboards(checker: str, tmp_path: Path) -> None:
    asked = [
        {"record": "dashboard:asks:this", "expr": expression} for _, expression in dashboard_expressions()
    ]
    for number, rule in enumerate(asked):
        rule["labels"] = {"panel": str(number)}
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": asked}]}))

    assert f"{len(asked)} rules found" in check(checker, "check", "rules", str(file))
