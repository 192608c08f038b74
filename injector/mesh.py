"""Pods with Istio's proxy: probes that mutual TLS does not stop, and ports outside the mesh. Pure.

In STRICT mode Istio's proxy accepts only mutual TLS, and the kubelet has no certificate. Istio's injector
rewrites the probes that it sees: its agent on port 15020 answers them. It does not rewrite a probe that is
added later. So in such a pod every probe of tokenpool is a command in the container.
"""

from __future__ import annotations

import json
from typing import Any

from injector.decisions import Note, Reason
from injector.shape import Json, containers, metadata

_PROXY, _INIT = "istio-proxy", "istio-init"
_STATUS = "sidecar.istio.io/status"
_ASKED = "sidecar.istio.io/inject"
_REVISION = "istio.io/rev"
_IN, _OUT = "traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts"
_REWRITTEN = "/app-health/"
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_HOOKS = ("postStart", "preStop")


def has_run(pod: Json) -> bool:
    """Whether Istio's injector already changed the pod."""
    return _STATUS in metadata(pod, "annotations") or any(each["name"] == _PROXY for each in containers(pod))


def is_in(pod: Json) -> bool:
    """Whether the pod gets or has Istio's proxy. A label of the namespace is not known here."""
    labels, annotations = metadata(pod, "labels"), metadata(pod, "annotations")
    if labels.get(_ASKED) == "false" or annotations.get(_ASKED) == "false":
        return False
    asked = "true" in (labels.get(_ASKED), annotations.get(_ASKED)) or _REVISION in labels
    return asked or has_run(pod)


def variable(pod: Json, name: str) -> str | None:
    """A variable of Istio's proxy in the pod."""
    for each in containers(pod):
        if each["name"] == _PROXY:
            for entry in each.get("env") or []:
                if entry["name"] == name:
                    return str(entry.get("value") or "")
    return None


def restored(container: Json, pod: Json) -> Json:
    """The container with the probes and hooks that Istio redirected to its agent."""
    try:
        known = json.loads(variable(pod, "ISTIO_KUBE_APP_PROBERS") or "{}")
    except ValueError:
        return container
    if not isinstance(known, dict):
        return container

    def original(handler: Any) -> Any:
        path = ((handler or {}).get("httpGet") or {}).get("path") or ""
        before = known.get(path) if path.startswith(_REWRITTEN) else None
        if not isinstance(before, dict):
            return handler
        timing = {key: value for key, value in handler.items() if key not in _HANDLERS}
        return {**timing, **{key: before[key] for key in _HANDLERS if key in before}}

    made = {name: original(value) if name.endswith("Probe") else value for name, value in container.items()}
    if hooks := container.get("lifecycle"):
        made["lifecycle"] = {
            name: original(value) if name in _HOOKS else value for name, value in hooks.items()
        }
    return made


def excluded(pod: Json, admin: int, peer: int | None) -> tuple[dict[str, str], tuple[Note, ...]]:
    """Annotations that keep the admin and the peer port out of the mesh, and a note if they come too late.

    Prometheus and the other sidecars connect to the pod's address without mutual TLS. The peer port proves a
    key of its own.
    """
    if not is_in(pod):
        return {}, ()
    inbound = [admin] if peer is None else [admin, peer]
    given = metadata(pod, "annotations")
    wanted = {_IN: _merged(given.get(_IN), inbound)}
    if peer is not None:
        wanted[_OUT] = _merged(given.get(_OUT), [peer])
    missing = {name: value for name, value in wanted.items() if value != given.get(name)}
    # Istio's CNI plugin reads the annotations later; its init container was given the ports before.
    if not missing or not any(each["name"] == _INIT for each in containers(pod)):
        return missing, ()
    said = " and ".join(f'{name}: "{value}"' for name, value in missing.items())
    return missing, (Note(Reason.MESH, f"Istio's injector ran first: add to the pod template {said}"),)


def _merged(given: str | None, ports: list[int]) -> str:
    if given is not None and given.strip() == "*":
        return given
    every = [text.strip() for text in (given or "").split(",") if text.strip()]
    return ",".join([*every, *(str(port) for port in ports if str(port) not in every)])
