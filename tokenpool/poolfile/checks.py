"""Checks: the rules between the records of a pool file.

Promises are checked against the numbers that also bound provisioning: the capacity of a replica and the
number of replicas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from tokenpool.amounts import Dimension
from tokenpool.entitlements import Entitlement, KeyRef, KeySource, Pool, PoolFile, Tier
from tokenpool.poolfile.issuers import reached
from tokenpool.poolfile.problems import Sources
from tokenpool.yaml_nodes import Problems


class Located:
    """The lines of pools and entitlements in files, for problems that are found after reading."""

    def __init__(self, problems: Problems, sources: Sources | None = None) -> None:
        self.problems = problems
        self.sources = sources or Sources()
        self.pools: dict[str, int] = {}
        self._entitlements: dict[str, dict[str, int]] = {}

    def pool(self, name: str, line: int) -> None:
        """Remember the line of a pool. A second pool of the same name is an error."""
        first = self.pools.setdefault(name, line)
        if first != line:
            message = f"pool {name!r} was defined on {self.sources.where(first)} already"
            self.problems.error(line, message, "rename one")

    def entitlement(self, name: str, line: int, fields: dict[str, int]) -> None:
        """Remember the lines of an entitlement. A second entitlement of the same name is an error."""
        if name in self._entitlements:
            first = self._entitlements[name][""]
            message = f"entitlement {name!r} was defined on {self.sources.where(first)} already"
            self.problems.error(line, message, "rename one")
        else:
            self._entitlements[name] = {"": line} | fields

    def line(self, entitlement: Entitlement, field: str = "") -> int:
        """The line of an entitlement's field; without the field, the line of the entitlement."""
        lines = self._entitlements[entitlement.name]
        return lines.get(field, lines[""])


def check(file: PoolFile, located: Located, anonymous_line: int) -> None:
    """Check the records of a file against each other. Problems go to ``located.problems``."""
    by_jwt, any_by_jwt = reached(file)
    by_flex = {each.flex for each in file.entitlements if each.flex is not None}
    reach = by_jwt | by_flex, any_by_jwt
    by_name = {each.name: each for each in file.entitlements}
    for entitlement in file.entitlements:
        _check_entitlement(entitlement, file, located, reach)
        _check_flex(entitlement, by_name, located)
    for pool in file.pools:
        _check_promises(pool, file.entitlements_of(pool.name), located)
        if not file.entitlements_of(pool.name):
            located.problems.warn(
                located.pools[pool.name],
                f"pool {pool.name!r} has no entitlement",
                "no tenant can use it: add one",
            )
    _check_keys(file, located)
    _check_anonymous(file, located, anonymous_line)
    _check_shadow(file, located)


def _check_entitlement(
    entitlement: Entitlement, file: PoolFile, located: Located, reach: tuple[frozenset[str], bool]
) -> None:
    problems, name = located.problems, entitlement.name
    if entitlement.pool not in located.pools:
        known = ", ".join(located.pools) or "none"
        problems.error(
            located.line(entitlement, "pool"),
            f"entitlement {name!r} is in pool {entitlement.pool!r}, which is not defined",
            f"define it, or use one of: {known}",
        )
    check_promise(entitlement, located)
    _check_models(entitlement, file, located)
    others, is_any = reach
    if not entitlement.api_keys and file.anonymous != name and not is_any and name not in others:
        problems.warn(
            located.line(entitlement),
            f"entitlement {name!r} has no api_keys",
            "only a gateway's identity header can reach it: add a key or a rule of an issuer, or remove it",
        )


def _check_models(entitlement: Entitlement, file: PoolFile, located: Located) -> None:
    """Check that the pool serves the models of an entitlement's scope."""
    if not entitlement.models or entitlement.pool not in located.pools:
        return
    pool = file.pool(entitlement.pool)
    foreign = [model for model in entitlement.models if not pool.serves(model)]
    if foreign:
        located.problems.error(
            located.line(entitlement, "models"),
            f"entitlement {entitlement.name!r} names model {foreign[0]!r}, which pool {pool.name!r} does not"
            " serve",
            f"add it to the models of the pool, or use some of: {', '.join(pool.models)}",
        )


def _check_flex(entitlement: Entitlement, by_name: Mapping[str, Entitlement], located: Located) -> None:
    """Check the entitlement that serves the requests with ``service_tier: flex``."""
    if entitlement.flex is None:
        return
    target = by_name.get(entitlement.flex)
    line, name = located.line(entitlement, "flex"), entitlement.name
    if target is None or target.pool != entitlement.pool or target.tier is not Tier.SPOT:
        usable = [e.name for e in by_name.values() if e.pool == entitlement.pool and e.tier is Tier.SPOT]
        located.problems.error(
            line,
            f"flex of entitlement {name!r} is {entitlement.flex!r}, which is no spot entitlement of its pool",
            f"add one, or use one of: {', '.join(usable) or 'none'}",
        )
    elif target.models and not (entitlement.models and set(entitlement.models) <= set(target.models)):
        located.problems.error(
            line,
            f"flex of entitlement {name!r} is {target.name!r}, which may not use all of its models",
            f"add these models to {target.name!r}, or remove its models",
        )


def check_promise(entitlement: Entitlement, located: Located) -> None:
    """Check an entitlement's guarantee against its tier and its ceiling."""
    problems, name = located.problems, entitlement.name
    promised = [d for d in Dimension if entitlement.guarantee.get(d) > 0]
    line = located.line(entitlement, "guarantee")
    if entitlement.tier is Tier.SPOT and promised:
        problems.error(line, f"spot entitlement {name!r} has a guarantee", "remove it, or make it elastic")
    if entitlement.tier is Tier.GUARANTEED:
        _check_guarantee(entitlement, promised, located)
    for dimension in promised:
        if entitlement.ceiling.get(dimension) < entitlement.guarantee.get(dimension):
            problems.error(
                located.line(entitlement, "ceiling"),
                f"entitlement {name!r} has a ceiling of {entitlement.ceiling.get(dimension):g} {dimension}"
                f" below its guarantee of {entitlement.guarantee.get(dimension):g}",
                "raise the ceiling or lower the guarantee",
            )


def _check_guarantee(entitlement: Entitlement, promised: list[Dimension], located: Located) -> None:
    name, line = entitlement.name, located.line(entitlement, "guarantee")
    if not promised:
        located.problems.error(
            line, f"guaranteed entitlement {name!r} has no guarantee", "add one, or make it elastic"
        )
    elif len(promised) < len(Dimension):
        missing = ", ".join(d for d in Dimension if d not in promised)
        located.problems.warn(
            line,
            f"the guarantee of {name!r} does not name {missing}",
            "add the missing dimensions: a request uses all of them, and only named ones are guaranteed",
        )


def _check_promises(pool: Pool, entitlements: tuple[Entitlement, ...], located: Located) -> None:
    for dimension in Dimension:
        promised = sum(e.guarantee.get(dimension) for e in entitlements)
        if not promised:
            continue
        one = getattr(pool.replica, dimension.value)
        line = located.pools[pool.name]
        if one is None:
            located.problems.warn(
                line,
                f"pool {pool.name!r} promises {promised:g} {dimension}, but a replica has auto there",
                "the promise cannot be checked: give the replica a number",
            )
        elif promised > one * pool.max_replicas:
            located.problems.error(
                line,
                f"pool {pool.name!r} promises {promised:g} {dimension}, but {pool.max_replicas} replicas"
                f" of {one:g} provide at most {one * pool.max_replicas:g}",
                "lower guarantees, or raise replicas.max",
            )
        elif promised > one * pool.min_replicas:
            located.problems.warn(
                line,
                f"pool {pool.name!r} promises {promised:g} {dimension}, but {pool.min_replicas} replicas"
                f" of {one:g} provide {one * pool.min_replicas:g}",
                "guarantees shrink in proportion until the pool has more replicas: raise replicas.min",
            )


def _check_keys(file: PoolFile, located: Located) -> None:
    seen: dict[tuple[str, str], list[_Owner]] = {}
    owners = [(each, each.api_keys) for each in file.entitlements]
    for owner, keys in (*owners, (None, file.administrator_keys)):
        name = _owner_name(owner)
        for key in keys:
            if key.source is KeySource.PLAIN:
                located.problems.warn(
                    key.line,
                    f"a key of {name} is in plain text",
                    f"write 'sha256:{_identity(key)[1]}' instead",
                )
            others = seen.setdefault(_identity(key), [])
            clash = next((each for each in others if not _may_share(each.entitlement, owner)), None)
            others.append(_Owner(owner, key.line))
            if clash is not None:
                located.problems.error(
                    key.line,
                    f"a key of {name} is also a key of {_owner_name(clash.entitlement)} on"
                    f" {located.sources.where(clash.line)}",
                    "give each entitlement and the administrators their own keys, and each key once; two"
                    " entitlements of one pool may have a common key if their models have none in common",
                )


class _Owner(NamedTuple):
    """An owner of a key, and the line of the key. Without an entitlement: the administrators."""

    entitlement: Entitlement | None
    line: int


def _owner_name(owner: Entitlement | None) -> str:
    return "the administrators" if owner is None else repr(owner.name)


def _may_share(one: Entitlement | None, other: Entitlement | None) -> bool:
    return one is not None and other is not None and one.may_share_key(other)


def _identity(key: KeyRef) -> tuple[str, str]:
    """The identity of a key, as known from the file alone."""
    if key.source is KeySource.PLAIN:
        return "digest", hashlib.sha256(key.value.encode()).hexdigest()
    if key.source is KeySource.SHA256:
        return "digest", key.value
    return key.source.value, key.value


def _check_shadow(file: PoolFile, located: Located) -> None:
    """Warn about callers that a pool without enforcement refuses nevertheless."""
    for pool in file.pools:
        if pool.enforce or file.anonymous in [each.name for each in file.entitlements_of(pool.name)]:
            continue
        located.problems.warn(
            located.pools[pool.name],
            f"pool {pool.name!r} has enforce: false, but callers without a known key are refused",
            "name an entitlement of this pool in 'anonymous' to let them pass",
        )


def _check_anonymous(file: PoolFile, located: Located, line: int) -> None:
    names = [e.name for e in file.entitlements]
    if file.anonymous is not None and file.anonymous not in names:
        located.problems.error(
            line,
            f"anonymous is {file.anonymous!r}, which is no entitlement",
            f"use 'reject' or one of: {', '.join(names) or 'none'}",
        )
