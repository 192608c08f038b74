"""Routers and scrapers that read the engine's metrics: the marks of such a pod, and the consequences. Pure.

An endpoint picker scores replicas by the engine's metrics on the proxied port, and a scraper reads them
there. For such a pod the sidecar serves the engine's metrics and model list on that port without a key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from injector import mesh
from injector.decisions import Note, Reason
from injector.settings import Wish, annotation
from injector.shape import Json, metadata
from injector.sidecar_container import hands_over

_PICKERS = (
    "llm-d.ai/",
    "inference.networking.k8s.io/",
    "inference.networking.x-k8s.io/",
    "model.aibrix.ai/",
    "kserve.io/component",
)
"""Labels of pods that llm-d, the Gateway API's inference extension, AIBrix and KServe place requests on."""
_STACK = ("app.kubernetes.io/component", "serving-engine")
"""The label of the vLLM production stack's engines, which its router finds and scrapes."""
_SCRAPE, _PORT, _PATH = "prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path"
_TARGETS = "prometheus.istio.io/scrape-targets"
"""Ports for Istio's agent, each as PORT or PORT:PATH, separated by commas."""
_KSERVE_SCRAPE = "serving.kserve.io/enable-prometheus-scraping"


@dataclass(frozen=True, slots=True)
class Metrics:
    """The engine's metrics on the proxied port."""

    are_exposed: bool
    annotations: dict[str, str]
    """Annotations that change, because the port changes."""
    notes: tuple[Note, ...]


def metrics(pod: Json, wish: Wish, names: frozenset[int | str], listen: int) -> Metrics:
    """The decision for a pod. ``names`` has the engine's port in the manifest: its number, and its names."""
    wanted = wish.template.expose_engine_metrics
    picker, scraper = _picker(pod), _scraper(pod, names)
    cause = picker or scraper
    notes = [_exposed(cause, listen)] if cause and wanted == "auto" else []
    if picker and hands_over(wish.template) and "handover" not in wish.said:
        notes.append(
            Note(
                Reason.ROUTER,
                f"{picker} says that a router places requests: set annotation {annotation('handover')}:"
                ' "off", or the sidecars move them again',
            )
        )
    is_on = wanted == "on" or (wanted == "auto" and cause is not None)
    changed, doubts = _followed(pod, names, listen)
    return Metrics(is_on, changed, (*notes, *doubts))


def _exposed(cause: str, listen: int) -> Note:
    return Note(
        Reason.METRICS,
        f"{cause} asks for the engine's metrics: port {listen} serves /metrics and /v1/models without a key;"
        f' annotation {annotation("expose_engine_metrics")}: "off" prevents it',
    )


def _picker(pod: Json) -> str | None:
    for name, value in metadata(pod, "labels").items():
        if name.startswith(_PICKERS) or (name, value) == _STACK:
            return f"label {name}"
    return None


def _scraper(pod: Json, names: frozenset[int | str]) -> str | None:
    annotations = metadata(pod, "annotations")
    if annotations.get(_KSERVE_SCRAPE) == "true":
        return f"annotation {_KSERVE_SCRAPE}"
    if annotations.get(_SCRAPE) == "true":
        targets = annotations.get(_TARGETS, "").split(",")
        if any(_meant(target.partition(":")[0].strip()) in names for target in targets):
            return f"annotation {_TARGETS}"
        if (port := annotations.get(_PORT)) is None:
            return f"annotation {_SCRAPE}"
        if _meant(port) in names:
            return f"annotation {_PORT}"
    if _istio_scrapes(pod, names):
        return "Istio, which merges metrics,"
    named = sorted(name for name in names if isinstance(name, str) and "metrics" in name)
    return f"port name {named[0]}" if named else None


def _istio_scrapes(pod: Json, names: frozenset[int | str]) -> bool:
    """Whether Istio took the pod's annotations over. Its agent then reads the port."""
    try:
        taken = json.loads(mesh.variable(pod, "ISTIO_PROMETHEUS_ANNOTATIONS") or "{}")
    except ValueError:
        return False
    if not isinstance(taken, dict) or taken.get("scrape") not in ("true", True):
        return False
    targets = taken.get("targets")
    ports = (
        [each.get("port") for each in targets if isinstance(each, dict)] if isinstance(targets, list) else []
    )
    ports.append(taken.get("port"))
    return not any(ports) or any(_meant(str(port or "")) in names for port in ports)


def _meant(port: str) -> int | str:
    return int(port) if port.isascii() and port.isdigit() else port


def _followed(pod: Json, names: frozenset[int | str], listen: int) -> tuple[dict[str, str], list[Note]]:
    """The scraper's annotations after the move, and notes about those that lead nowhere."""
    annotations = metadata(pod, "annotations")
    port = annotations.get(_PORT)
    if annotations.get(_SCRAPE) != "true" or port is None or _meant(port) not in names:
        return {}, []
    path = annotations.get(_PATH, "/metrics")
    doubts = [
        Note(
            Reason.METRICS,
            f"annotation {_PATH}: {path} leads nowhere, because the sidecar serves the engine's metrics at"
            " /metrics; change it",
        )
    ]
    changed = {_PORT: str(listen)} if port != str(listen) and port.isdigit() else {}
    return changed, doubts if path != "/metrics" else []
