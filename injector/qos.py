"""The pod's quality of service: a Guaranteed pod stays Guaranteed. Pure.

The kubelet evicts Burstable pods before Guaranteed ones, and gives exclusive cores and NUMA nodes only to
Guaranteed ones. A pod is Guaranteed if every container has a CPU and a memory limit, equal to its requests.
So the sidecar of such a pod gets requests that equal its limits.
"""

from __future__ import annotations

from dataclasses import replace

from injector.decisions import Note, Reason
from injector.quantity import amount
from injector.settings import Template, Wish, annotation
from injector.shape import Json, containers

_RESOURCES = ("cpu", "memory")
_CPU = "1"
"""The sidecar's CPU in a Guaranteed pod. A limit below a core throttles its event loop for up to 0.1 s."""
_MEMORY = "512Mi"


def fitted(pod: Json, wish: Wish) -> tuple[Template, tuple[Note, ...]]:
    """The template with the resources that keep the pod's class, and notes."""
    template = wish.template
    if (whole := pod["spec"].get("resources")) and _is_equal(whole):
        # The class follows from the pod's own resources, which the sidecar shares.
        text = "spec.resources bounds the whole pod: add the sidecar's CPU and memory to it"
        return template, (Note(Reason.QOS, text),)
    if not template.keep_guaranteed or not all(
        _is_equal(each.get("resources") or {}) for each in containers(pod)
    ):
        return template, ()
    cpu = template.cpu_limit or (template.cpu_request if "cpu_request" in wish.said else None) or _CPU
    memory = template.memory_limit or template.memory_request or _MEMORY
    text = (
        f"the pod is Guaranteed, so the sidecar requests its limits: cpu {cpu}, memory {memory}; change them"
        f" with annotations {annotation('cpu_limit')} and {annotation('memory_limit')}"
    )
    equal = replace(template, cpu_request=cpu, cpu_limit=cpu, memory_request=memory, memory_limit=memory)
    return equal, (Note(Reason.QOS, text),)


def _is_equal(resources: Json) -> bool:
    """Whether CPU and memory have limits, and requests that equal them. A missing request is the limit."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name in _RESOURCES:
        most = amount(limits.get(name))
        if not most or amount(requests.get(name, limits.get(name))) != most:
            return False
    return True
