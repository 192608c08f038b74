"""AdmissionReview v1: the API server's request and the response to it. Pure; ``app`` serves HTTP."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from injector import shape
from injector.inject import Denial, Injection, inject
from injector.settings import Template
from injector.shape import Json

_VERSION = "admission.k8s.io/v1"


class ReviewMalformed(ValueError):
    """A document that is not an AdmissionReview; the text gives the reason."""


class _Kind(msgspec.Struct):
    group: str
    version: str
    kind: str


class _Request(msgspec.Struct):
    uid: str
    kind: _Kind
    operation: str
    object: Json | None = None
    namespace: str = ""
    subResource: str = ""  # noqa: N815 (the API's name)


class _Review(msgspec.Struct):
    apiVersion: str  # noqa: N815 (the API's name)
    kind: str
    request: _Request


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, with the data of its log line."""

    document: Json
    pod: str
    result: str
    """``injected``, ``untouched`` or ``denied``."""
    reason: str


def answer(body: bytes, template: Template) -> Answered:
    """Answer one AdmissionReview. Raises ``ReviewMalformed``.

    Only pods are changed, and only when they are created: Kubernetes does not change the containers of a pod
    later. A dry run is answered like any other request, since answering has no effect.
    """
    request = _request(body)
    is_new_pod = (request.kind.group, request.kind.kind, request.operation) == ("", "Pod", "CREATE")
    if not is_new_pod or request.subResource:
        return _answered(request, Injection())
    if request.object is None:
        raise ReviewMalformed("request.object is missing: the creation of a pod must include the pod")
    try:
        decision = inject(request.object, template)
    except shape.PodMalformed as error:
        raise ReviewMalformed(f"request.object: {error}") from error
    return _answered(request, decision)


def _request(body: bytes) -> _Request:
    try:
        review = msgspec.json.decode(body, type=_Review)
    except msgspec.DecodeError as error:
        raise ReviewMalformed(f"not an AdmissionReview in JSON: {error}") from error
    if (review.apiVersion, review.kind) != (_VERSION, "AdmissionReview"):
        raise ReviewMalformed(
            f"{review.kind} of {review.apiVersion} is not AdmissionReview of {_VERSION}: list v1 in the"
            " webhook's admissionReviewVersions"
        )
    return review.request


def _answered(request: _Request, decision: Injection | Denial) -> Answered:
    title = f"{request.namespace}/{shape.title(request.object or {})}"
    response: dict[str, Any] = {"uid": request.uid, "allowed": isinstance(decision, Injection)}
    if isinstance(decision, Denial):
        response["status"] = {"code": 422, "reason": "Invalid", "message": decision.message}
        return Answered(_review(response), title, "denied", decision.message)
    if decision.warnings:
        response["warnings"] = list(decision.warnings)
    if decision.patch:
        patch = base64.b64encode(msgspec.json.encode(decision.patch)).decode()
        response |= {"patchType": "JSONPatch", "patch": patch}
    result = "injected" if decision.patch else "untouched"
    return Answered(_review(response), title, result, "; ".join(decision.warnings))


def _review(response: Json) -> Json:
    return {"apiVersion": _VERSION, "kind": "AdmissionReview", "response": response}
