"""Grafana dashboards, from ``dashboards.yaml``: the layout, the styles and the variables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).with_name("dashboards.yaml")
SCOPE = 'namespace=~"$namespace", pool=~"$pool"'
"""The text for ``$scope`` in an expression."""
WIDTH = 24
"""Grafana's grid."""
_SIZES = {"stat": (4, 4), "series": (12, 8), "table": (WIDTH, 5)}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ANY = {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice of the reader: the values of a metric's label. With ``is_any``, the default is all values."""

    name: str
    metric: str
    is_any: bool = False
    is_multiple: bool = False

    def content(self) -> dict[str, Any]:
        """The variable in Grafana's form."""
        asked = f"label_values({self.metric}, {self.name})"
        return {
            "name": self.name,
            "label": self.name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": asked, "refId": self.name},
            "definition": asked,
            "refresh": 2,
            "sort": 1,
            "multi": self.is_multiple,
            **(_ANY if self.is_any else {"includeAll": False}),
        }


_NAMESPACE = Variable("namespace", "tokenpool_engine_up", is_any=True, is_multiple=True)
"""Without Kubernetes no series has the label, which "All" matches, too."""
_POOL = Variable("pool", 'tokenpool_engine_up{namespace=~"$namespace"}')
VARIABLES = {
    "tenants": (
        _NAMESPACE,
        _POOL,
        Variable("entitlement", f"tokenpool_pool_limit{{{SCOPE}}}", is_any=True, is_multiple=True),
    ),
    "pool": (_NAMESPACE, _POOL),
    "pod": (_NAMESPACE, _POOL, Variable("instance", f"tokenpool_engine_up{{{SCOPE}}}")),
}
"""The variables of each dashboard besides the data source, each after those on which it depends."""


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by its name, in Grafana's form."""
    source: Mapping[str, Any] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return {name: _dashboard(name, page) for name, page in source.items()}


def text(dashboard: Mapping[str, Any]) -> str:
    """A dashboard as the content of a file."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _dashboard(name: str, page: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"tokenpool-{name}",
        "title": page["title"],
        "tags": ["tokenpool"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [chosen, *(each.content() for each in VARIABLES[name])]},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "tokenpool",
                "tags": ["tokenpool"],
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": list(_panels(page["panels"])),
    }


def _panels(described: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The panels from left to right; a row ends where the next panel has no room or another size."""
    x = y = height = 0
    for number, panel in enumerate(described, 1):
        kind = next(kind for kind in _SIZES if kind in panel)
        width, own_height = _SIZES[kind]
        if x + width > WIDTH or own_height != height:
            x, y, height = 0, y + height, own_height
        yield {
            "id": number,
            "gridPos": {"x": x, "y": y, "w": width, "h": own_height},
            **_panel(kind, panel),
        }
        x += width


def _panel(kind: str, panel: Mapping[str, Any]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _DATASOURCE,
            "expr": expr.replace("$scope", SCOPE),
            "legendFormat": legend,
            **({"instant": True} if kind != "series" else {}),
            **({"format": "table"} if kind == "table" else {}),
        }
        for number, (legend, expr) in enumerate(panel["queries"].items())
    ]
    return {
        "type": "timeseries" if kind == "series" else kind,
        "title": panel[kind],
        "description": panel.get("text", ""),
        "datasource": _DATASOURCE,
        **_STYLES[kind](panel),
        "targets": targets,
    }


def _stat(panel: Mapping[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "text", "value": None}]
    if panel.get("is_flag"):
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
    defaults = {"unit": panel.get("unit", "short"), "thresholds": {"mode": "absolute", "steps": steps}}
    return {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "textMode": "auto",
        },
    }


def _series(panel: Mapping[str, Any]) -> dict[str, Any]:
    stacks = panel.get("stacks", False)
    axis = {"min": panel.get("least", 0), "max": panel.get("most")}
    defaults = {
        "unit": panel.get("unit", "short"),
        "custom": {
            "lineWidth": 1,
            "fillOpacity": 20 if stacks else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if stacks else "none"},
        },
        **{name: value for name, value in axis.items() if value is not None},
    }
    return {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _table(panel: Mapping[str, Any]) -> dict[str, Any]:
    hidden = {"Time": True, "__name__": True, "Value": True}
    return {
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"showHeader": True},
        "transformations": [{"id": "organize", "options": {"excludeByName": hidden}}],
    }


_STYLES = {"stat": _stat, "series": _series, "table": _table}
