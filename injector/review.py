"""AdmissionReview v1: the API server's request and the response to it. Pure; ``app`` serves HTTP."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from injector import shape
from injector.decisions import MAX_WARNING_CHARS, Denial, Injection, Note, Reason
from injector.inject import inject
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
    """The message of a denial, or all warnings."""
    owner: str | None = None
    """The controller that creates the pod."""
    denied_for: Reason | None = None
    notes: tuple[Note, ...] = ()


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
        # A controller, such as a ReplicaSet, writes this message into an Event about itself.
        response["status"] = {"code": 422, "reason": "Invalid", "message": decision.message}
        response["auditAnnotations"] = {"denied": decision.reason.value}
        owner = shape.owner(request.object or {})
        return Answered(_review(response), title, "denied", decision.message, owner, decision.reason)
    if decision.warnings:
        response["warnings"] = _short(decision.warnings)
        response["auditAnnotations"] = {"warnings": ",".join(note.reason.value for note in decision.notes)}
    if decision.patch:
        patch = base64.b64encode(msgspec.json.encode(decision.patch)).decode()
        response |= {"patchType": "JSONPatch", "patch": patch}
    result = "injected" if decision.patch else "untouched"
    owner = shape.owner(request.object) if decision.notes and request.object else None
    reason = "; ".join(decision.warnings)
    return Answered(_review(response), title, result, reason, owner, notes=decision.notes)


def _short(warnings: tuple[str, ...]) -> list[str]:
    """The warnings, none longer than the API server shows. The pod's annotation has them in full."""
    return [
        text if len(text) <= MAX_WARNING_CHARS else f"{text[: MAX_WARNING_CHARS - 3]}..." for text in warnings
    ]


def _review(response: Json) -> Json:
    return {"apiVersion": _VERSION, "kind": "AdmissionReview", "response": response}
