"""Which entitlement serves a request: model scopes, the service tier, and pools that are not enforced."""

from __future__ import annotations

import json

import pytest

from sidecar.controller.access_log import AccessLog
from sidecar.controller.controller import Controller
from sidecar.decisions import AdmittedRequest, Refusal
from tests.support.sidecar_builders import configuration, controller, head
from tokenpool.admission.pending import PendingRequest
from tokenpool.amounts import Amount
from tokenpool.capacity.model import EngineObservation
from tokenpool.outcomes import Decision, Ending, Reason, Verdict
from tokenpool.pricing.cost import Usage

POOL = """
pools:
  - name: chat
    models: [base, small, large, unused]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 8}
    POOL
entitlements:
  - {name: plain, pool: chat, tier: elastic, api_keys: [plain-key, {file: one-key, concurrency: 1}]}
  - {name: small, pool: chat, tier: elastic, models: [base, small], api_keys: [team-key, small-key]}
  - {name: large, pool: chat, tier: elastic, models: [large], flex: batch, api_keys: [team-key]}
  - {name: batch, pool: chat, tier: spot}
  - {name: trial, pool: chat, tier: elastic, enforce: false, ceiling: {concurrency: 1}, api_keys: [trial-key]}
  - {name: trial-flex, pool: chat, tier: elastic, enforce: false, flex: batch, api_keys: [flex-key]}
"""


def serving(pool: str = "", more: str = "", log: AccessLog | None = None) -> Controller:
    """A controller whose engine serves, with large limits."""
    made = controller(POOL.replace("POOL", pool) + more, access_log=log)
    made.engine.health_answered()
    made.engine.page_read(EngineObservation(0.0, running=0, waiting=0, kv_usage=0.0, kv_tokens=1e6), 0, 0)
    made.engine.context_window_read(4096)
    for each in made.accounts.values():
        limit = Amount(1e6, 1e6, 8).at_most(each.entitlement.ceiling)
        each.set_limits(limit, Amount(), 0.0, 0.0)
    made.engine_changed()
    return made


def decided(
    made: Controller,
    key: str,
    model: str | None = "base",
    path: bytes = b"/v1/chat/completions",
    body: bytes | None = None,
    **fields: object,
) -> AdmittedRequest | PendingRequest | Refusal:
    """The decision about a request with this key and model."""
    request = head(path, (b"authorization", b"Bearer " + key.encode()))
    found = made.authorize(request)
    if isinstance(found, Refusal):
        return found
    content = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | fields
    return made.admit(
        *found, body or json.dumps(content).encode(), None, request.credential, request.identity
    )


def served_by(made: Controller, key: str, model: str | None = "base", **fields: object) -> str | Reason:
    """The entitlement that serves a request, or the reason of its refusal."""
    found = decided(made, key, model, **fields)  # type: ignore[arg-type]
    if isinstance(found, Refusal):
        return found.reason
    assert found.account is not None
    return found.account.entitlement.name


def verdict(made: Controller, key: str, model: str | None = "base", **fields: object) -> Verdict | None:
    """The decision that is not enforced."""
    found = decided(made, key, model, **fields)  # type: ignore[arg-type]
    assert isinstance(found, AdmittedRequest)
    return found.verdict


# --- model scope ---


@pytest.mark.parametrize(
    ("key", "model", "expected"),
    [
        ("plain-key", "large", "plain"),
        ("plain-key", None, "plain"),
        ("plain-key", "other", Reason.UNKNOWN_MODEL),
        ("small-key", "small", "small"),
        ("small-key", "large", Reason.MODEL_NOT_PERMITTED),
        ("small-key", None, Reason.MODEL_NOT_PERMITTED),
        ("team-key", "base", "small"),
        ("team-key", "small", "small"),
        ("team-key", "large", "large"),
        ("team-key", "unused", Reason.MODEL_NOT_PERMITTED),
        ("team-key", "other", Reason.UNKNOWN_MODEL),
        ("team-key", None, Reason.MODEL_NOT_PERMITTED),
    ],
)
def test_the_model_of_a_request_chooses_the_entitlement(
    key: str, model: str | None, expected: str | Reason
) -> None:
    assert served_by(serving(), key, model) == expected


def test_the_refusal_names_the_models_of_the_credential() -> None:
    refusal = decided(serving(), "team-key", "unused")

    assert isinstance(refusal, Refusal)
    assert refusal.param == "model"
    assert refusal.message == (
        "The model `unused` does not exist or you do not have access to it."
        " This API key may use: base, large, small"
    )


def test_the_list_of_models_has_the_scope_of_the_credential() -> None:
    made = serving()
    shown = {}
    for key in ("plain-key", "small-key", "team-key", "trial-key"):
        request = head(b"/v1/models", (b"x-api-key", key.encode()), method=b"GET")
        found = made.authorize(request)
        assert not isinstance(found, Refusal)
        admitted = made.admit(*found, b"", None, request.credential, request.identity)
        assert isinstance(admitted, AdmittedRequest)
        shown[key] = admitted.models

    assert shown == {
        "plain-key": None,
        "small-key": {"base", "small"},
        "team-key": {"base", "small", "large"},
        "trial-key": None,
    }


def test_a_stored_response_may_be_continued_by_all_entitlements_of_its_credential() -> None:
    made = serving()
    first = decided(made, "team-key", "small", b"/v1/responses", b'{"model": "small", "input": "hi"}')
    assert isinstance(first, AdmittedRequest)
    made.settlement.settle(first, Ending.FINISHED, Usage(5, 5), None, spent=True, stored="resp_1")
    more = b'{"model": "large", "input": "hi", "previous_response_id": "resp_1"}'

    again = decided(made, "team-key", "large", b"/v1/responses", more)
    other = decided(made, "plain-key", "large", b"/v1/responses", more)

    assert isinstance(again, AdmittedRequest)
    assert isinstance(other, Refusal)
    assert other.reason is Reason.UNKNOWN_RESPONSE
    for key, is_found in (("team-key", True), ("plain-key", False), ("trial-key", False)):
        request = head(b"/v1/responses/resp_1", (b"x-api-key", key.encode()), method=b"GET")
        assert isinstance(made.authorize(request), tuple) is is_found


def test_a_changed_scope_takes_effect_with_the_pool_file() -> None:
    made = serving()

    made.configure(configuration(POOL.replace("POOL", "").replace("models: [large]", "models: [unused]")))

    assert served_by(made, "team-key", "unused") == "large"
    assert served_by(made, "team-key", "large") == Reason.MODEL_NOT_PERMITTED


# --- the service tier ---


@pytest.mark.parametrize(
    ("key", "model", "tier", "expected"),
    [
        ("team-key", "large", "flex", "batch"),
        ("team-key", "large", "priority", "large"),
        ("team-key", "large", "default", "large"),
        ("team-key", "large", 7, "large"),
        ("team-key", "large", None, "large"),
        ("team-key", "small", "flex", "small"),
        ("plain-key", "base", "flex", "plain"),
        ("plain-key", "base", "priority", "plain"),
        ("flex-key", "base", "flex", "trial-flex"),
    ],
)
def test_the_service_tier_flex_is_served_by_the_spot_entitlement_that_the_file_names(
    key: str, model: str, tier: object, expected: str
) -> None:
    assert served_by(serving(), key, model, service_tier=tier) == expected


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"/v1/completions", {"prompt": "hi"}),
        (b"/v1/responses", {"input": "hi"}),
        (b"/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}),
        (b"/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "hi"}]]}),
    ],
)
def test_every_generating_route_reads_the_service_tier(path: bytes, content: dict[str, object]) -> None:
    body = json.dumps({"model": "large", "service_tier": "flex"} | content).encode()

    found = decided(serving(), "team-key", "large", path, body)

    assert isinstance(found, AdmittedRequest)
    assert found.account is not None
    assert found.account.entitlement.name == "batch"
    assert json.loads(found.body)["service_tier"] == "flex"


# --- entitlements and pools that are not enforced ---


def test_an_entitlement_that_is_not_enforced_is_never_refused() -> None:
    made = serving()

    verdicts = [verdict(made, "trial-key") for _ in range(4)]

    assert verdicts[0] == Verdict(Decision.ADMIT)
    assert {each.reason for each in verdicts[1:] if each is not None} == {Reason.CONCURRENCY}
    assert verdict(made, "trial-key", "other") == Verdict(Decision.REFUSE, Reason.UNKNOWN_MODEL)
    malformed = verdict(made, "trial-key", body=b'{"model": "base", "messages": "none"}')
    assert malformed == Verdict(Decision.REFUSE, Reason.MALFORMED)
    assert served_by(made, "plain-key", body=b"{}") is Reason.MALFORMED


def test_the_limit_and_the_expiry_of_a_credential_are_not_enforced_with_the_pool() -> None:
    made = serving("enforce: false", "anonymous: batch\n")
    first = decided(made, "one-key")
    second = decided(made, "one-key")
    assert isinstance(first, AdmittedRequest)
    assert isinstance(second, AdmittedRequest)
    assert (first.verdict, second.verdict) == (
        Verdict(Decision.ADMIT),
        Verdict(Decision.SHED, Reason.CONCURRENCY),
    )

    for each in (first, second):
        made.settlement.settle(each, Ending.FINISHED, Usage(5, 5), None, spent=True)

    assert verdict(made, "one-key") == Verdict(Decision.ADMIT)


def test_a_body_that_is_not_enforced_reaches_the_engine_with_its_own_priority() -> None:
    made = serving()

    found = decided(made, "trial-key", priority=3)

    assert isinstance(found, AdmittedRequest)
    assert json.loads(found.body)["priority"] == 3
    assert found.priority is None


def test_without_an_engine_there_is_no_answer() -> None:
    made = serving()
    made.engine.connection_refused()

    assert served_by(made, "trial-key") is Reason.ENGINE_DOWN


def test_a_pool_that_is_not_enforced_serves_unknown_callers_as_the_anonymous_entitlement() -> None:
    made = serving("enforce: false", "anonymous: plain\n")

    assert served_by(made, "nobody") == "plain"
    assert verdict(made, "nobody") == Verdict(Decision.REFUSE, Reason.UNKNOWN_KEY)
    assert verdict(made, "plain-key") == Verdict(Decision.ADMIT)
    assert verdict(made, "small-key", "large") == Verdict(Decision.REFUSE, Reason.MODEL_NOT_PERMITTED)
    assert served_by(serving("enforce: false"), "nobody") is Reason.UNKNOWN_KEY
    assert served_by(serving("", "anonymous: plain\n"), "nobody") is Reason.UNKNOWN_KEY


def test_a_stored_response_of_another_caller_is_protected_without_enforcement() -> None:
    made = serving("enforce: false")
    first = decided(made, "plain-key", "base", b"/v1/responses", b'{"model": "base", "input": "hi"}')
    assert isinstance(first, AdmittedRequest)
    made.settlement.settle(first, Ending.FINISHED, Usage(5, 5), None, spent=True, stored="resp_1")

    def continued(key: str, response: str) -> AdmittedRequest | PendingRequest | Refusal:
        body = json.dumps({"model": "base", "input": "hi", "previous_response_id": response}).encode()
        return decided(made, key, "base", b"/v1/responses", body)

    own, older, foreign = (
        continued("plain-key", "resp_1"),
        continued("plain-key", "resp_0"),
        continued("trial-key", "resp_1"),
    )

    assert isinstance(own, AdmittedRequest)
    assert own.verdict == Verdict(Decision.ADMIT)
    assert isinstance(older, AdmittedRequest)
    assert older.verdict == Verdict(Decision.REFUSE, Reason.UNKNOWN_RESPONSE)
    assert isinstance(foreign, Refusal)
    for name, is_found in (("resp_0", True), ("resp_1", False)):
        request = head(f"/v1/responses/{name}".encode(), (b"x-api-key", b"trial-key"), method=b"GET")
        assert isinstance(made.authorize(request), tuple) is is_found


def test_the_pool_switch_takes_effect_at_once_in_both_directions() -> None:
    made = serving()
    off = configuration(POOL.replace("POOL", "enforce: false"))

    made.configure(off)
    assert verdict(made, "plain-key") == Verdict(Decision.ADMIT)
    made.configure(configuration(POOL.replace("POOL", "")))

    assert verdict(made, "plain-key") is None
    assert verdict(made, "trial-key") is not None
