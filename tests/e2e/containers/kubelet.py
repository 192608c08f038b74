"""The kubelet's part for a pod that podman runs: its probes, and the order of its end.

Podman 4 knows neither native sidecars nor hooks, and runs ``httpGet`` probes with curl in the container. So
it runs the containers alone, and this module does the rest as Kubernetes does. It asks probes from outside of
the pod. At the pod's end, all preStop hooks start at once. A container gets SIGTERM after its hook, and a
native sidecar after all other containers, too.
"""

from __future__ import annotations

import copy
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.containers.podman import Podman

Json = dict[str, Any]

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
END_S = 60.0
"""The longest time for a hook, and for a container after SIGTERM."""


def for_podman(pod: Json) -> Json:
    """The pod with containers only: those that podman would run in another way are changed."""
    made = copy.deepcopy(pod)
    spec = made["spec"]
    # Podman refuses annotations with more than 63 characters.
    del made["metadata"]["annotations"]
    # Podman would restart a container that ends by itself. The kubelet does not, once a pod is deleted.
    spec["restartPolicy"] = "Never"
    native = [each for each in spec.pop("initContainers", []) if each.get("restartPolicy") == "Always"]
    spec["containers"] += native
    for each in spec["containers"]:
        # Podman would publish the ports on this machine, where two pods cannot have the same.
        for name in (*PROBES, "lifecycle", "restartPolicy", "ports"):
            each.pop(name, None)
    return made


@dataclass
class Kubelet:
    """The kubelet of one running pod."""

    podman: Podman
    pod: Json
    """The pod as the API server has it."""
    address: str
    events: list[tuple[str, str]] = field(default_factory=list)
    """Containers with ``hook``, ``hook ended``, ``SIGTERM`` or ``ended``, in the order of their times."""

    def containers(self) -> Iterator[Json]:
        """All containers that run as long as the pod."""
        yield from self.pod["spec"]["containers"]
        yield from self._native()

    def succeeds(self, container: str, probe: str) -> bool:
        """The result of one probe. Its port must be a number or a name that the container declares."""
        (found,) = [each for each in self.containers() if each["name"] == container]
        asked: Json = found[probe]
        if "exec" in asked:
            # Without its time limit: podman itself needs seconds to start a command on a busy machine.
            return self.podman.executes(self._name(container), asked["exec"]["command"], END_S)
        action, timeout = asked["httpGet"], float(asked.get("timeoutSeconds") or 1)
        named = {port.get("name"): port["containerPort"] for port in found.get("ports", [])}
        port = named.get(action["port"], action["port"])
        connection = http.client.HTTPConnection(self.address, port, timeout=timeout)
        try:
            connection.request("GET", action.get("path") or "/")
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> None:
        """End the pod, as after its deletion. Returns when all containers have ended."""
        ended = threading.Event()
        others = [
            threading.Thread(target=self._end, args=(each, None)) for each in self.pod["spec"]["containers"]
        ]
        last = [threading.Thread(target=self._end, args=(each, ended)) for each in self._native()]
        for each in (*others, *last):
            each.start()
        for each in others:
            each.join(2 * END_S)
        ended.set()
        for each in last:
            each.join(2 * END_S)
        gone = {name for name, event in self.events if event == "ended"}
        assert gone == {each["name"] for each in self.containers()}, self.events

    def exit_code(self, container: str) -> int:
        """The exit code of a container that has ended."""
        return int(self.podman("inspect", "--format", "{{.State.ExitCode}}", self._name(container)))

    def _end(self, container: Json, turn: threading.Event | None) -> None:
        name = container["name"]
        hook = (container.get("lifecycle") or {}).get("preStop")
        if hook:
            self.events.append((name, "hook"))
            self.podman.executes(self._name(name), hook["exec"]["command"], END_S)
            self.events.append((name, "hook ended"))
        if turn is not None:
            turn.wait(END_S)
        self.events.append((name, "SIGTERM"))
        self.podman.tells(self._name(name), "TERM")
        self.podman("wait", self._name(name), timeout=END_S)
        self.events.append((name, "ended"))

    def _native(self) -> list[Json]:
        spec = self.pod["spec"]
        return [each for each in spec.get("initContainers", []) if each.get("restartPolicy") == "Always"]

    def _name(self, container: str) -> str:
        """Podman's name of a container."""
        return f"{self.pod['metadata']['name']}-{container}"
