"""The decision about a pod: an injection with notes, or a denial with its field and its fix. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from injector.patch import Operation
from injector.settings import Allow

MAX_WARNING_CHARS = 256
"""The API server shortens longer warnings."""


class Reason(StrEnum):
    """The kind of a denial or a note: a label of the injector's metrics."""

    ANNOTATION = "annotation"
    COMMAND = "command"
    CONFIG_FILE = "config_file"
    ENGINE_CALLED = "engine_called"
    ENGINE_KEY = "engine_key"
    ENGINE_OPEN = "engine_open"
    EXEC_PROBE = "exec_probe"
    HOOK = "hook"
    HOST_NETWORK = "host_network"
    MESH = "mesh"
    METRICS = "metrics"
    OWN_SIDECAR = "own_sidecar"
    PLAIN_JOB = "plain_job"
    PORTS = "ports"
    PROBE = "probe"
    QOS = "qos"
    RANK_PORTS = "rank_ports"
    ROUTER = "router"
    SECOND_ENGINE = "second_engine"
    SOCKET = "socket"
    STATIC_POD = "static_pod"
    TLS = "tls"
    UNCHECKED = "unchecked"
    VOLUME = "volume"
    WHICH_ENGINE = "which_engine"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Note:
    """A warning for the owner of the pod, which may be created."""

    reason: Reason
    text: str

    def __str__(self) -> str:
        return f"tokenpool: {self.text}"


@dataclass(frozen=True, slots=True)
class Injection:
    """The pod may be created, with this patch. An empty patch leaves it unchanged."""

    patch: tuple[Operation, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The notes as the API server shows them to the pod's creator."""
        return tuple(map(str, self.notes))


@dataclass(frozen=True, slots=True)
class Denial:
    """The pod must not be created unchanged."""

    reason: Reason
    field: str
    """The field, annotation or container that is the problem."""
    problem: str
    fix: str
    """The change that makes the pod acceptable."""
    opt_out: Allow | None = None
    """The annotation that accepts the pod as it is; ``None`` if none does."""

    @property
    def message(self) -> str:
        """The whole text: the field, the problem, the fix, and the annotation that opts out."""
        accepted = f"; or {self.opt_out.offer}" if self.opt_out else ""
        return f"tokenpool: {self.field}: {self.problem}; {self.fix}{accepted}"
