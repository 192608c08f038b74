"""The controller's parts by themselves: the caller of a request, refusals in words, the access log.

``test_admission``, ``test_clients`` and ``test_engine_priority`` have what tenants see of them over the wire.
"""

from __future__ import annotations

import json
import logging

import pytest

from sidecar.controller import refusals
from sidecar.controller.access_log import AccessLog
from sidecar.controller.controller import Controller, Policies
from sidecar.controller.engine_priority import (
    PRIORITY_GUARANTEED,
    PRIORITY_SHARED,
    PRIORITY_SPOT,
    PriorityPolicy,
)
from sidecar.decisions import AdmittedRequest, Refusal
from sidecar.identity import MOST_KEYS, Credential
from sidecar.proxy.heads import RequestHead
from tests.support.domain_builders import account
from tests.support.harness import CHAT, POOL
from tests.support.sidecar_builders import configuration, controller, head
from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount, Dimension
from tokenpool.capacity.model import EngineObservation
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Usage


def key(text: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + text.encode()


def caller(made: Controller, sent: RequestHead) -> str | Reason | None:
    """The name of the entitlement that a request belongs to, or the reason of its refusal."""
    found = made.authorize(sent)
    if isinstance(found, Refusal):
        return found.reason
    return found[1].entitlement.name if found[1] is not None else None


# --- authentication ---


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        (b"POST", b"/v1/completions", [key("g-key")], "g"),
        (b"POST", b"/v1/completions", [(b"x-api-key", b"e-key")], "e"),
        (b"POST", b"/v1/completions", [key("g-key"), (b"x-api-key", b"g-key")], "g"),
        (b"POST", b"/v1/completions", [key("g-key"), (b"x-api-key", b"e-key")], Reason.UNKNOWN_KEY),
        (b"POST", b"/v1/completions", [key("g-key"), (b"x-api-key", b"unknown")], "g"),
        (b"POST", b"/v1/completions", [key("unknown")], Reason.UNKNOWN_KEY),
        (b"POST", b"/v1/completions", [], Reason.UNKNOWN_KEY),
        (b"OPTIONS", b"/v1/completions", [], None),
        (b"GET", b"/health", [], None),
        (b"GET", b"/v1/models", [], Reason.UNKNOWN_KEY),
        (b"GET", b"/metrics", [key("g-key")], Reason.UNKNOWN_ROUTE),
        (b"GET", b"/v1/completions", [key("g-key")], Reason.METHOD_NOT_ALLOWED),
        (b"GET", b"/v1/responses/resp_1", [key("g-key")], Reason.UNKNOWN_RESPONSE),
    ],
)
def test_a_request_belongs_to_the_owner_of_its_key(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], expected: str | Reason | None
) -> None:
    assert caller(controller(), head(path, *headers, method=method)) == expected


def test_the_identity_header_of_a_trusted_gateway_names_the_entitlement() -> None:
    made = controller(policies=Policies("X-Tenant-Id"))
    names = [(b"x-tenant-id", name) for name in (b"g", b"e", b"nobody", b"\xff")]

    assert caller(made, head(b"/v1/completions", names[0])) == "g"
    assert caller(made, head(b"/v1/completions", names[1], key("g-key"))) == "e"  # the gateway knows
    assert caller(made, head(b"/v1/completions", key("g-key"))) == "g"
    for wrong in ([names[2]], [names[3]], [names[0], names[1]], [names[0], names[0]]):
        assert caller(made, head(b"/v1/completions", *wrong, key("g-key"))) is Reason.UNKNOWN_KEY
    assert caller(controller(), head(b"/v1/completions", names[0])) is Reason.UNKNOWN_KEY


def test_callers_without_a_key_have_the_anonymous_account_if_there_is_one() -> None:
    made = controller(POOL + "anonymous: s\n")

    assert caller(made, head()) == "s"
    assert caller(made, head(b"/v1/completions", key("unknown"))) is Reason.UNKNOWN_KEY


def test_many_different_keys_are_not_all_looked_up() -> None:
    keys = [key(f"k{number}") for number in range(MOST_KEYS)]
    made = controller()

    assert caller(made, head(b"/v1/completions", *keys[1:], key("g-key"))) == "g"
    assert caller(made, head(b"/v1/completions", *keys, key("g-key"))) is Reason.UNKNOWN_KEY


def test_a_changed_pool_file_changes_the_callers() -> None:
    made, epoch = controller(), 1
    assert made.epoch == epoch

    made.configure(configuration(POOL.replace("[e-key]", "[new-key]").replace("name: s,", "name: t,")))

    assert made.epoch == epoch + 1
    assert caller(made, head(b"/v1/completions", key("e-key"))) is Reason.UNKNOWN_KEY
    assert caller(made, head(b"/v1/completions", key("new-key"))) == "e"
    assert caller(made, head(b"/v1/completions", key("s-key"))) == "t"


def test_a_route_is_told_before_a_drain_and_a_drain_before_a_key() -> None:
    made = controller()
    made._lifecycle.is_draining = True

    assert caller(made, head(b"/nowhere")) is Reason.UNKNOWN_ROUTE
    assert caller(made, head(b"/v1/completions", key("unknown"))) is Reason.DRAINING


def test_client_text_in_messages_is_short_and_printable() -> None:
    refusal = controller().authorize(head(b"/\x1b[31m\xff" + b"x" * 500, method=b"G\x00T"))

    assert isinstance(refusal, Refusal)
    shown = "/?[31m\N{REPLACEMENT CHARACTER}" + "x" * 93
    assert refusal.message == f"G?T {shown} is not served here"


# --- refusals ---


def shed(reason: Reason, dimension: Dimension, *, in_use: float = 3.0) -> Shed:
    return Shed(reason, dimension, limit=4.0, in_use=in_use, cost=2.0, retry_after_s=8.0)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            shed(Reason.CONCURRENCY, Dimension.CONCURRENCY),
            "entitlement 'a' shed on concurrency: limit of entitlement 'a' 4, in use 3, cost 2;"
            " retry in 9.00 s",
        ),
        (
            shed(Reason.ENGINE_FULL, Dimension.CONCURRENCY),
            "entitlement 'a' shed on concurrency: limit of the engine 4, in use 3, cost 2; retry in 9.00 s",
        ),
        (
            shed(Reason.TOKENS_PER_SECOND, Dimension.TOKENS_PER_SECOND),
            "entitlement 'a' shed on tokens_per_second: limit of entitlement 'a' 4,"
            " 3 tokens used in advance, cost 2; retry in 9.00 s",
        ),
    ],
)
def test_a_shed_names_the_limit_the_use_and_the_time(what: Shed, words: str) -> None:
    refusal = refusals.of_shed(account(), what, 0.5)

    assert refusal.message == words
    assert refusal.reason is what.reason
    assert refusal.retry_after_s == 8.0 * (1 + refusals.JITTER / 2)


def test_a_request_that_can_never_fit_has_no_retry_time() -> None:
    refusal = refusals.of_shed(account(), shed(Reason.NEVER_FITS, Dimension.KV_TOKENS), 0.5)

    assert refusal.retry_after_s is None
    assert "needs 2 kv_tokens, but can never have more than 4" in refusal.message
    assert "ask for a higher ceiling" in refusal.message


def test_waits_are_spread_and_never_shortened() -> None:
    what, tenant = shed(Reason.CONCURRENCY, Dimension.CONCURRENCY), account()
    waits = [refusals.of_shed(tenant, what, number / 10).retry_after_s for number in range(10)]

    assert waits == sorted(set(waits))
    assert (waits[0], waits[-1] < 8.0 * (1 + refusals.JITTER)) == (8.0, True)


# --- the access log ---


def test_a_request_is_one_line_with_its_usage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sidecar.access")

    AccessLog(is_on=True).write(b"7", account(), Ending.FINISHED, 0.12345678, Usage(10, 5, 3))
    AccessLog(is_on=True).write(b"8", None, Reason.UNKNOWN_KEY, 0.0)
    AccessLog(is_on=False).write(b"9", account(), Ending.FINISHED, 1.0)

    served, refused = [vars(record) for record in caplog.records]
    assert served["message"] == refused["message"] == "request"
    assert (served["entitlement"], served["outcome"], served["seconds"]) == ("a", "finished", 0.123457)
    assert (served["input_tokens"], served["output_tokens"], served["cached_tokens"]) == (10, 5, 3)
    assert (refused["entitlement"], refused["outcome"]) == (None, "unknown_key")
    assert "input_tokens" not in refused
    assert (served["request_id"], refused["request_id"]) == ("7", "8")


# --- the engine's priority ---


def serving(policy: PriorityPolicy = PriorityPolicy.AUTO, *, is_vllm: bool = True) -> Controller:
    """A controller whose engine has room, for accounts that may use it."""
    made = controller(policies=Policies(engine_priority=policy))
    made.engine.health_answered()
    seen = EngineObservation(at=0.0, running=0, waiting=0, kv_usage=0.0, kv_tokens=1e6, is_vllm=is_vllm)
    made.engine.page_read(seen, 0, 0)
    made.engine.context_window_read(4096)
    for each in made.accounts.values():
        assured = each.entitlement.guarantee
        each.set_limits(Amount(1e6, 1e6, 8), assured, 0.0, 0.0)
    made.engine_changed()
    return made


def admitted(made: Controller, tenant: Account, body: object = CHAT) -> AdmittedRequest:
    """A request of this account that is admitted; its priority is in the body."""
    found = made.authorize(head(b"/v1/chat/completions", key(f"{tenant.entitlement.name}-key")))
    assert not isinstance(found, Refusal)
    decision = made.admit(found[0], tenant, json.dumps(body).encode())
    assert isinstance(decision, AdmittedRequest)
    return decision


def sent(made: Controller, name: str, body: object = CHAT) -> object:
    """The priority that the engine is sent."""
    return json.loads(admitted(made, made.accounts[name], body).body).get("priority")


def test_a_request_that_is_placed_again_counts_once_for_its_credential() -> None:
    made, credential = serving(), Credential("g", "k", concurrency=1)
    tenant, body = made.accounts["g"], json.dumps(CHAT).encode()
    found = made.authorize(head(b"/v1/chat/completions", key("g-key")))
    assert not isinstance(found, Refusal)
    route = found[0]
    assert route.parse is not None
    first = made.admit(route, tenant, body, None, credential)
    assert isinstance(first, AdmittedRequest)
    refused = made.admit(route, tenant, body, None, credential)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.CONCURRENCY

    first.parsed = route.parse(body)
    again = made.admit_again(first, has_failed=False)
    assert isinstance(again, AdmittedRequest)
    assert (again.limited_by, made.limits.in_use("k")) == ("k", 1)
    made.settlement.settle(again, Ending.FINISHED, Usage(1, 1), None, spent=True)
    assert made.limits.is_empty

    full = made.admit(route, tenant, body, None, credential)
    assert isinstance(full, AdmittedRequest)
    full.parsed = route.parse(body)
    made.connection_refused()
    waits = made.admit_again(full, has_failed=False)
    assert isinstance(waits, PendingRequest)
    assert (waits.limited_by, made.limits.in_use("k")) == ("k", 1)
    shed_now = shed(Reason.ENGINE_FULL, Dimension.CONCURRENCY)
    assert isinstance(made.decided(waits, shed_now), Refusal)
    assert made.limits.is_empty


def test_each_tier_has_its_priority_and_a_burst_is_not_guaranteed() -> None:
    made = serving()

    within = [sent(made, "g") for _ in range(4)]

    assert within == [PRIORITY_GUARANTEED] * 4
    assert sent(made, "g") == PRIORITY_SHARED  # the fifth is beyond the guarantee
    assert (sent(made, "e"), sent(made, "s")) == (PRIORITY_SHARED, PRIORITY_SPOT)


@pytest.mark.parametrize(
    ("policy", "is_vllm", "refuses", "expected"),
    [
        (PriorityPolicy.AUTO, True, False, (PRIORITY_SPOT, PRIORITY_SPOT)),
        (PriorityPolicy.AUTO, True, True, (None, None)),
        (PriorityPolicy.AUTO, False, False, (None, None)),
        (PriorityPolicy.ON, False, True, (PRIORITY_SPOT, PRIORITY_SPOT)),
        (PriorityPolicy.OFF, True, False, (None, 3)),
    ],
)
def test_the_policy_and_the_engine_decide_about_the_field(
    policy: PriorityPolicy, is_vllm: bool, refuses: bool, expected: tuple[int | None, int | None]
) -> None:
    """The second one is of a client that wrote a priority of its own."""
    made = serving(policy, is_vllm=is_vllm)
    if refuses:
        made.engine.priority_answered(PRIORITY_SPOT, is_accepted=False)

    assert (sent(made, "s"), sent(made, "s", CHAT | {"priority": 3})) == expected


def test_a_refused_priority_is_taken_out_and_counted() -> None:
    made = serving()
    request = admitted(made, made.accounts["s"])
    assert request.priority == PRIORITY_SPOT

    made.priority_refused(request)

    assert (request.priority, json.loads(request.body)) == (None, CHAT)
    counts = {
        sample.name + str(sample.labels.get("priority", "")): sample.value
        for metric in made.metrics()
        for sample in metric.samples
        if metric.name.startswith("tokenpool_engine_priority")
    }
    assert counts["tokenpool_engine_priority_refused_total"] == 1
    assert counts[f"tokenpool_engine_priority_total{PRIORITY_SPOT}"] == 1


# --- requests of other replicas ---


def test_after_a_refused_connection_other_replicas_wait_for_the_next_health_check() -> None:
    made = serving()
    assert made.control.is_serving
    made.connection_refused()
    assert not made.control.is_serving
    made.engine_changed()
    assert not made.control.is_serving
    made.engine.health_answered()
    made.engine_changed()
    assert made.control.is_serving


def test_a_sidecar_that_drains_takes_no_requests_of_other_replicas() -> None:
    made = serving()
    made._lifecycle.is_draining = True
    made.update_serving()
    assert not made.control.is_serving
    made.engine_changed()
    assert not made.control.is_serving
