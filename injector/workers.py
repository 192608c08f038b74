"""Pods without an HTTP server: workers of an engine that runs on several nodes. Pure.

A worker serves no request, so nothing can bypass a sidecar, and a sidecar in it would never be ready. Such a
pod stays unchanged.
"""

from __future__ import annotations

import re

from injector import command_line, shape, start
from injector.decisions import Note, Reason
from injector.engine_container import is_engine
from injector.settings import Wish
from injector.shape import Json

_SERVER = re.compile(r"vllm\s+serve|vllm\.entrypoints|api_server|launch_server|--port\b")
_RAY_WORKER = re.compile(
    r"\bray\s+start\b(?!.*--head\b)|multi-node-serving\.sh\s+worker|run_cluster\.sh\s.*--worker"
    r"|\$\{?KUBERAY_GEN_RAY_START_CMD",
    re.DOTALL,
)
"""Commands that join a Ray cluster. The engine's processes are then started by the leader."""
_NODE_TYPE = "ray.io/node-type"
"""KubeRay's label of a pod; the head may serve HTTP with Ray Serve."""


def note(pod: Json, wish: Wish) -> Note | None:
    """The note about a pod that only has workers; ``None`` if a container may serve requests."""
    if shape.metadata(pod, "labels").get(_NODE_TYPE) == "head":
        return None
    every = pod["spec"]["containers"]
    if wish.container is not None:
        every = [each for each in every if each["name"] == wish.container]
    engines = [each for each in every if is_engine(each) or _joins_ray(each)]
    if not engines or not all(map(_is_worker, engines)):
        return None
    names = ", ".join(each["name"] for each in engines)
    return Note(
        Reason.WORKER,
        f"not injected: {names} is a worker without an HTTP server; its leader gets the sidecar",
    )


def _is_worker(container: Json) -> bool:
    return command_line.is_headless(start.read(container).words) or _joins_ray(container)


def _joins_ray(container: Json) -> bool:
    text = " ".join((*(container.get("command") or ()), *(container.get("args") or ())))
    if len(text) > start.MAX_SCRIPT_CHARS:
        return False
    return _RAY_WORKER.search(text) is not None and _SERVER.search(text) is None
