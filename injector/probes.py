"""Probes and hooks of the engine, after its move to the loopback. Pure.

The kubelet probes the pod's address, where the engine no longer answers. So the sidecar answers the readiness
probe. Liveness and startup probes run inside the engine's container (``exec``) if its image has Python, as
vLLM's does: a restarted or overloaded sidecar is no reason to kill an engine that loads for minutes.
Otherwise they go through the sidecar's ``/health``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from injector.command_line import LOOPBACK, base
from injector.decisions import Note, Reason
from injector.shape import Json

_EXEC_EXTRA_S = 4
"""Time to start an interpreter on a busy node, in addition to the engine's own answer."""
_PROBES = ("readinessProbe", "livenessProbe", "startupProbe")


@dataclass(frozen=True, slots=True)
class Places:
    """The targets of probes."""

    asked: frozenset[int | str]
    """The engine's port in the manifest: its number, and its names."""
    engine_port: int
    listen_port: int
    admin_port: int
    interpreter: str | None
    """The Python that probes the engine in its own container; ``None``: probes use the sidecar."""
    is_tls: bool = False
    """Whether the sidecar speaks TLS on the proxied port."""
    is_in_mesh: bool = False
    """Whether probes over the network would need mutual TLS."""


def turned(container: Json, places: Places) -> tuple[dict[str, Any], list[Note]]:
    """The container's changed probes and hooks, and warnings about those that could not be changed."""
    fields: dict[str, Any] = {}
    doubts: list[Note] = []
    for name in _PROBES:
        probe = container.get(name) or {}
        if (changed := _probe(name, probe, places)) is not None:
            fields[name] = changed
        elif _asks(probe, "grpc", places):
            text = f"{name} of container {container['name']} uses gRPC: use httpGet with /health instead"
            doubts.append(Note(Reason.PROBE, text))
    hooks: Json = container.get("lifecycle") or {}
    for name in ("postStart", "preStop"):
        if (kind := _kind(hooks.get(name) or {}, places)) is None:
            continue
        if places.interpreter is None:
            text = (
                f"{name} of container {container['name']} asks its old port, where it no longer listens: use"
                f" a command that asks {LOOPBACK}:{places.engine_port}"
            )
            doubts.append(Note(Reason.PROBE, text))
            continue
        hooks = {**hooks, name: _asked_inside(kind, hooks[name][kind], places, timeout=_EXEC_EXTRA_S)}
        fields["lifecycle"] = hooks
    return fields, doubts


def _probe(name: str, probe: Json, places: Places) -> Json | None:
    kind = _kind(probe, places)
    if kind is None:
        return None
    timing = {key: value for key, value in probe.items() if key != kind}
    if name == "readinessProbe" and not places.is_in_mesh:
        return {**timing, "httpGet": {"path": "/readyz", "port": places.admin_port}}
    if places.interpreter is None:
        scheme = {"scheme": "HTTPS"} if places.is_tls else {}
        return {**timing, "httpGet": {"path": "/health", "port": places.listen_port, **scheme}}
    timeout = max(int(probe.get("timeoutSeconds") or 1), 1)
    return {
        **timing,
        "timeoutSeconds": timeout + _EXEC_EXTRA_S,
        **_asked_inside(kind, probe[kind], places, timeout=timeout),
    }


def redirected(container: Json, places: Places) -> tuple[dict[str, Any], list[Note]]:
    """The changed probes of another container, which probe the engine's port: they use ``/health``.

    The sidecar answers there now. It answers every other path with 401 or 404 without a key.
    """
    fields: dict[str, Any] = {}
    doubts = []
    for name in _PROBES:
        probe = container.get(name) or {}
        if not _asks(probe, "httpGet", places) or probe["httpGet"].get("path") == "/health":
            continue
        fields[name] = {**probe, "httpGet": {**probe["httpGet"], "path": "/health"}}
        text = f"{name} of container {container['name']} probes the engine's port: it probes /health now"
        doubts.append(Note(Reason.PROBE, text))
    return fields, doubts


def _kind(handler: Json, places: Places) -> str | None:
    """The kind of a probe or hook that connects to the engine's port; ``None`` for others."""
    return next((kind for kind in ("httpGet", "tcpSocket") if _asks(handler, kind, places)), None)


def _asks(handler: Json, kind: str, places: Places) -> bool:
    asked = handler.get(kind)
    if not isinstance(asked, dict):
        return False
    port = asked.get("port")
    # The API also accepts numbers as text.
    number = int(port) if isinstance(port, str) and port.isascii() and port.isdigit() else port
    return number in places.asked and asked.get("host") in (None, "", LOOPBACK, "localhost")


def _asked_inside(kind: str, asked: Json, places: Places, *, timeout: int) -> Json:
    code = _HTTP if kind == "httpGet" else _TCP
    headers = {each["name"]: each["value"] for each in asked.get("httpHeaders") or []}
    filled = code.format(
        host=LOOPBACK,
        port=places.engine_port,
        timeout=timeout,
        path=asked.get("path") or "/",
        headers=headers,
    )
    return {"exec": {"command": [str(places.interpreter), "-c", filled]}}


_HTTP = (
    "import http.client, sys; "
    "c = http.client.HTTPConnection({host!r}, {port}, timeout={timeout}); "
    "c.request('GET', {path!r}, headers={headers!r}); "
    "sys.exit(c.getresponse().status >= 400)"
)
_TCP = "import socket; socket.create_connection(({host!r}, {port}), {timeout}).close()"


def waits_for_sidecar(places: Places, *, drains_within: int, longest: int) -> Json:
    """A hook before the engine's end that lasts until the sidecar has drained, at most ``longest`` seconds.

    Kubernetes stops the containers of a pod in no useful order (a native sidecar last), and vLLM ends its
    streams on SIGTERM. The sidecar closes its admin port when it has drained. If it does not begin to drain
    within ``drains_within`` seconds, only the engine is being restarted, and the hook ends.
    """
    if places.interpreter is None:
        return {"exec": {"command": ["sleep", str(longest)]}}
    code = _WAIT.format(host=LOOPBACK, port=places.admin_port, within=drains_within, longest=longest)
    return {"exec": {"command": [places.interpreter, "-c", code]}}


def lasts(hook: Json) -> float:
    """Seconds that a hook certainly lasts: of a ``sleep``, or of a command that does nothing else."""
    action = hook.get("sleep")
    if isinstance(action, dict):
        words = ["sleep", str(action.get("seconds"))]
    else:
        words = list((hook.get("exec") or {}).get("command") or ())
    if len(words) == 3 and words[1] == "-c" and base(words[0]) in ("sh", "bash"):
        words = words[2].split()
    slept = _SECONDS.fullmatch(words[1]) if len(words) == 2 and base(words[0]) == "sleep" else None
    return float(slept[1]) if slept else 0.0


_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")


_WAIT = """\
import http.client, time
start, drains = time.monotonic(), False
while time.monotonic() < start + ({longest} if drains else {within}):
    try:
        c = http.client.HTTPConnection({host!r}, {port}, timeout=2)
        c.request('GET', '/readyz')
        drains = b'draining' in c.getresponse().read()
    except TimeoutError:
        pass
    except (OSError, http.client.HTTPException):
        break
    time.sleep(0.2)
"""
