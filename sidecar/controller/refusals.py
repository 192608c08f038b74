"""The controller's refusals. Each message names the thing, the number and the next step."""

from __future__ import annotations

from typing import Final

from sidecar.decisions import ENGINE_RETRY_S, Refusal
from sidecar.identity import Credential
from tokenpool.accounting.account import Account
from tokenpool.admission.rules import SHORTEST_WAIT_S, Shed
from tokenpool.amounts import Dimension
from tokenpool.outcomes import Reason
from tokenpool.quotas.budget import Exhausted
from tokenpool.quotas.messages import Scope
from tokenpool.quotas.windows import text_of

JITTER: Final = 0.25
"""The wait of a shed request is lengthened by up to this share, to spread the retries."""


def of_shed(account: Account, shed: Shed, random: float, *, has_waited: bool = False) -> Refusal:
    """The refusal of a request that was shed. ``random`` (0 to 1) spreads the retries.

    ``has_waited``: the request was shed at the end of its time in the admission queue.
    """
    name = account.entitlement.name
    if shed.reason is Reason.NEVER_FITS:
        message = (
            f"entitlement {name!r}: this request needs {shed.cost:.0f} {shed.dimension}, but"
            f" can never have more than {shed.limit:.0f}; make it smaller (fewer sequences, a"
            " shorter prompt or output bound) or ask for a higher ceiling"
        )
        return Refusal(shed.reason, message, account=account)
    if shed.quota is not None:
        return _of_quota(account, shed, shed.quota, random)
    wait = shed.retry_after_s * (1 + JITTER * random)
    whose = f"group {shed.group!r}" if shed.group else f"entitlement {name!r}"
    if shed.reason is Reason.ENGINE_FULL:
        whose = "the engine"
    use = (
        f"{shed.in_use:.0f} tokens used in advance"
        if shed.dimension is Dimension.TOKENS_PER_SECOND
        else f"in use {shed.in_use:.0f}"
    )
    message = (
        f"entitlement {name!r} shed on {shed.dimension}: limit of {whose} {shed.limit:.0f},"
        f" {use}, cost {shed.cost:.0f}; retry in {wait:.2f} s"
    )
    return Refusal(shed.reason, message, retry_after_s=wait, account=account, has_waited=has_waited)


def _of_quota(account: Account, shed: Shed, quota: Exhausted, random: float) -> Refusal:
    """The refusal of a request that a quota does not cover. The names of groups are not told."""
    whose = f"entitlement {account.entitlement.name!r}"
    if quota.budget.scope is not Scope.ENTITLEMENT:
        whose = f"the {quota.budget.scope} of {whose}"
    message = (
        f"{whose} has spent {quota.spent:.0f} of its quota of {quota.tokens:.0f} tokens per"
        f" {quota.budget.per}; this request costs {quota.cost:.0f}; the quota resets at"
        f" {text_of(quota.resets_at)}"
    )
    wait = shed.retry_after_s + JITTER * random
    if not quota.is_final:
        message += f", but the rest is only in use: retry in {wait:.2f} s"
    return Refusal(shed.reason, message, retry_after_s=wait, account=account)


def over_credential(
    account: Account, credential: Credential, sequences: int, in_use: int, random: float
) -> Refusal:
    """The refusal of a request beyond its credential's limit. ``random`` (0 to 1) spreads the retries."""
    most = credential.concurrency
    if sequences > most:
        return Refusal(
            Reason.NEVER_FITS,
            f"credential {credential.id!r}: this request needs {sequences} sequences, but can never have more"
            f" than {most}; send fewer, or ask for a higher limit",
            account=account,
        )
    wait = max(account.meter.residence.value / max(in_use, 1), SHORTEST_WAIT_S) * (1 + JITTER * random)
    return Refusal(
        Reason.CONCURRENCY,
        f"credential {credential.id!r} shed on concurrency: limit {most}, in use here {in_use}, cost"
        f" {sequences}; retry in {wait:.2f} s",
        retry_after_s=wait,
        account=account,
    )


def engine_down(account: Account | None) -> Refusal:
    """The engine is not available."""
    return Refusal(
        Reason.ENGINE_DOWN,
        "the engine behind this proxy is not available; retry later",
        retry_after_s=ENGINE_RETRY_S,
        account=account,
    )


def unknown_response(name: str, account: Account) -> Refusal:
    """The entitlement has no stored response of this name. The message is the engine's own."""
    return Refusal(
        Reason.UNKNOWN_RESPONSE, f"Response with id '{name}' not found.", "response_id", account=account
    )


def response_id_in_use(name: str, account: Account) -> Refusal:
    """A stored response of this name belongs to another entitlement."""
    message = f"the id '{name}' is in use by another stored response; choose another request_id, or send none"
    return Refusal(Reason.MALFORMED, message, "request_id", account=account)


def unknown_model(name: str, account: Account) -> Refusal:
    """The pool does not serve this model. The message is the engine's own."""
    return Refusal(Reason.UNKNOWN_MODEL, f"The model `{name}` does not exist.", "model", account=account)
