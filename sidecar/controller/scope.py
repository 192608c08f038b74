"""Scope: the entitlement of a request, once its model is known.

Authentication finds the accounts of a credential from the head alone. A credential of several entitlements
has one account for each, and their models are disjoint. The model in the body chooses among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.decisions import Identity, Refusal
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason


def resolve(account: Account, identity: Identity | None, model: str | None) -> tuple[Account, Refusal | None]:
    """The account for a request, and the refusal of a model that the credential may not use.

    ``account`` is the first account of the credential, and ``identity`` has the others.
    """
    others: tuple[Account, ...] = ()
    if identity is not None:
        if identity.refusal is not None:
            return account, identity.refusal
        others = identity.others
    if account.entitlement.may_use(model):
        return account, None
    for other in others:
        if other.entitlement.may_use(model):
            return other, None
    allowed = ", ".join(sorted(models_of(account, identity)))
    said = (
        f"The model `{model}` does not exist or you do not have access to it."
        if model is not None
        else "The request names no model."
    )
    message = f"{said} This API key may use: {allowed}"
    return account, Refusal(Reason.MODEL_NOT_PERMITTED, message, "model", account=account)


def lowered(account: Account, by_name: Mapping[str, Account], model: str | None) -> Account:
    """The account for a request with the service tier ``flex``: the spot entitlement that the file names.

    Without one it is the account itself. No request gets a higher tier, and none becomes enforced.
    """
    name = account.entitlement.flex
    target = by_name.get(name) if name is not None else None
    if target is None or not target.is_spot or not target.entitlement.may_use(model):
        return account
    becomes_enforced = account.shadow is not None and target.shadow is None
    return account if becomes_enforced else target


def owners(account: Account, identity: Identity | None) -> list[str]:
    """The entitlements whose stored responses a credential may use: its own, and those for ``flex``."""
    others = identity.others if identity is not None else ()
    names: list[str] = []
    for each in (account, *others):
        names.append(each.entitlement.name)
        if each.entitlement.flex is not None:
            names.append(each.entitlement.flex)
    return names


def models_of(account: Account, identity: Identity | None) -> frozenset[str]:
    """The models that a credential may use; empty for all models of the pool."""
    accounts = (account, *(identity.others if identity is not None else ()))
    return frozenset(model for each in accounts for model in each.entitlement.models)
