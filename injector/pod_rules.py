"""Rules about the pod as a whole: pods that stay unchanged, and pods that are denied. Pure."""

from __future__ import annotations

from injector import shape, sidecar_container
from injector.decisions import Denial, Injection, Note, Reason
from injector.settings import STATUS, Allow, Template, annotation
from injector.shape import Json

_MIRROR = "kubernetes.io/config.mirror"


def is_injected(pod: Json) -> bool:
    """Whether an injector added the sidecar."""
    return _has_sidecar(pod) and shape.metadata(pod, "annotations").get(STATUS) == "injected"


def refusal(pod: Json, allowed: frozenset[Allow]) -> Denial | None:
    """The denial of a pod that cannot have a sidecar; ``None`` if it can, or if it opts out."""
    if pod["spec"].get("hostNetwork") and Allow.HOST_NETWORK not in allowed:
        return Denial(
            Reason.HOST_NETWORK,
            "spec.hostNetwork",
            "the pod shares its ports and its loopback with all processes of the node, so that they could"
            " bypass the sidecar",
            "remove hostNetwork, or the label that asks for a sidecar",
            opt_out=Allow.HOST_NETWORK,
        )
    if _has_sidecar(pod) and not is_injected(pod) and Allow.OWN_SIDECAR not in allowed:
        return Denial(
            Reason.OWN_SIDECAR,
            f"container {sidecar_container.NAME}",
            "the manifest has a container of this name, which the injector did not add",
            "remove the container, or the label that asks for a sidecar",
            opt_out=Allow.OWN_SIDECAR,
        )
    return None


def left_alone(pod: Json, allowed: frozenset[Allow]) -> Injection | None:
    """The answer for a pod that gets no sidecar; ``None`` if it gets one."""
    if is_injected(pod):
        return Injection()
    if pod["spec"].get("hostNetwork") and Allow.HOST_NETWORK in allowed:
        text = "not injected: a pod with hostNetwork; its engine serves every client"
        return Injection(notes=(Note(Reason.HOST_NETWORK, text),))
    if _has_sidecar(pod) and Allow.OWN_SIDECAR in allowed:
        text = f"not injected: there is a container {sidecar_container.NAME} already"
        return Injection(notes=(Note(Reason.OWN_SIDECAR, text),))
    if _MIRROR in shape.metadata(pod, "annotations"):
        text = (
            "not injected: only the file on its node changes a static pod; write the sidecar into that file"
        )
        return Injection(notes=(Note(Reason.STATIC_POD, text),))
    return None


def never_completes(pod: Json, template: Template, allowed: frozenset[Allow]) -> Denial | None:
    """The denial of a plain sidecar in a pod that has to end. A plain sidecar never ends by itself."""
    if template.native or not _must_end(pod) or Allow.PLAIN_JOB in allowed:
        return None
    return Denial(
        Reason.PLAIN_JOB,
        f"annotation {annotation('native')}",
        "with a plain sidecar the pod never completes, because the sidecar runs on after the engine",
        f'set annotation {annotation("native")}: "true" (Kubernetes 1.32 or later)',
        opt_out=Allow.PLAIN_JOB,
    )


def _must_end(pod: Json) -> bool:
    """Whether a Job owns the pod, or its containers are not restarted when they end."""
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    is_of_job = any(each.get("kind") == "Job" for each in owners)
    return is_of_job or pod["spec"].get("restartPolicy") in ("Never", "OnFailure")


def _has_sidecar(pod: Json) -> bool:
    return any(each["name"] == sidecar_container.NAME for each in shape.containers(pod))
