"""Engines that speak TLS: the sidecar takes over the certificate, and the engine speaks plain HTTP. Pure.

Clients see the same certificate on the same port. The engine is on the loopback, where only the sidecar
connects. The certificate must be in a volume that the sidecar's user can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from injector.decisions import Denial, Note, Reason
from injector.engine_container import EngineContainer
from injector.shape import Json

OPTIONS = frozenset({"--ssl-keyfile", "--ssl-certfile", "--ssl-ciphers"})
SWITCHES = frozenset({"--enable-ssl-refresh"})
_CLIENTS = ("--ssl-ca-certs", "--ssl-cert-reqs")
_OTHER_BITS, _GROUP_BITS = 0o004, 0o040
_FIX = "mount it from a Secret, or remove the TLS options and terminate TLS in front of the pod"


@dataclass(frozen=True, slots=True)
class TakenCertificate:
    """The certificate that the sidecar serves instead of the engine."""

    cert: str
    key: str
    """Paths in the engine's container, and in the sidecar's."""
    mounts: tuple[Json, ...]
    """The engine's volume mounts with these files."""
    notes: tuple[Note, ...] = ()


def taken(found: EngineContainer, pod: Json) -> TakenCertificate | Denial | None:
    """The certificate of an engine that speaks TLS; ``None`` for one that does not."""
    cert, key = found.option("--ssl-certfile"), found.option("--ssl-keyfile")
    if cert is None and key is None:
        return None
    field = f"{found.field}: --ssl-certfile"
    if not found.start.is_vllm:
        return Denial(Reason.TLS, field, "only vLLM's TLS options can be moved to the sidecar", _FIX)
    if not cert or not key:
        fix = "give both --ssl-certfile and --ssl-keyfile in the command, as paths"
        return Denial(Reason.TLS, field, "certificate and key are not both known", fix)
    if found.option(_CLIENTS[0]) or found.option(_CLIENTS[1]) not in (None, "0"):
        return Denial(
            Reason.TLS,
            f"{found.field}: {_CLIENTS[0]}",
            "the sidecar does not verify certificates of clients",
            "verify them in a gateway in front of the pod, and remove the option",
        )
    mounts: list[Json] = []
    notes: list[Note] = []
    for path in (cert, key):
        mount = _mount_of(path, found.container)
        if mount is None:
            return Denial(Reason.TLS, field, f"{path} is in no volume that the sidecar could mount", _FIX)
        readable = _readable(str(mount["name"]), pod)
        if readable is False:
            return Denial(
                Reason.TLS,
                f"volume {mount['name']}",
                f"its mode does not let the sidecar's user read {path}",
                "set its defaultMode to 0444",
            )
        if readable is None:
            text = f"volume {mount['name']}: the sidecar's user must be able to read {path}"
            notes.append(Note(Reason.TLS, text))
        if mount not in mounts:
            mounts.append(mount)
    return TakenCertificate(cert, key, tuple({**each, "readOnly": True} for each in mounts), tuple(notes))


def _mount_of(path: str, container: Json) -> Json | None:
    """The deepest volume mount around a file."""
    around = [
        each
        for each in container.get("volumeMounts") or []
        if (path + "/").startswith(str(each["mountPath"]).rstrip("/") + "/") and "subPathExpr" not in each
    ]
    return max(around, key=lambda each: len(str(each["mountPath"])), default=None)


def _readable(name: str, pod: Json) -> bool | None:
    """Whether other users can read a volume's files; ``None`` if the manifest does not say so."""
    volumes: list[dict[str, Any]] = pod["spec"].get("volumes") or []
    volume = next((each for each in volumes if each["name"] == name), {})
    for kind in ("secret", "configMap", "projected"):
        if isinstance(source := volume.get(kind), dict):
            mode = source.get("defaultMode")
            # The kubelet gives the files to the pod's fsGroup, which every container has.
            groups = _GROUP_BITS if "fsGroup" in (pod["spec"].get("securityContext") or {}) else 0
            return mode is None or bool(int(mode) & (_OTHER_BITS | groups))
    return None
