"""The parts of a rule file: recording rules, alerts and their groups, as records.

Every rule keeps ``namespace`` and ``pool``: one Prometheus reads many pools, and two namespaces may have
pools of the same name. ``namespace`` comes from the scrape (a PodMonitor sets it), ``pool`` from the series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

RUNBOOK_URL = "https://tokenpool.io/docs/runbook"
"""The published runbook. ``--runbook-url`` of ``monitoring.generate`` names a copy of your own."""


class Severity(StrEnum):
    """The urgency of an alert, in the words of the Prometheus operator's own alerts."""

    CRITICAL = "critical"
    """An engineer is needed now: tenants are not served as promised."""
    WARNING = "warning"
    """It can wait until working hours. A fault of one sidecar of several is never more than this."""


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule."""

    name: str
    expr: str

    def content(self, runbook: str) -> Mapping[str, object]:
        """The rule as a mapping for YAML."""
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. Texts may have Prometheus' templates; ``anchor`` is its section in the runbook."""

    name: str
    severity: Severity
    expr: str
    lasts: str
    """The time for which the expression must hold, such as ``5m``; ``0s``: none."""
    summary: str
    description: str
    anchor: str

    def content(self, runbook: str) -> Mapping[str, object]:
        """The rule as a mapping for YAML. ``runbook`` is the URL of the runbook."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasts} if self.lasts != "0s" else {}),
            "labels": {"severity": self.severity.value},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook}#{self.anchor}",
            },
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: tuple[Record | Alert, ...]

    def content(self, runbook: str) -> Mapping[str, object]:
        """The group as a mapping for YAML."""
        return {"name": self.name, "rules": [rule.content(runbook) for rule in self.rules]}
