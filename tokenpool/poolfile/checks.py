"""Checks: the rules between the records of a pool file.

Promises are checked against the numbers that also bound provisioning: the capacity of a replica and the
number of replicas. The guarantees of a group's members are checked against the guarantee of the group. Only
the guarantees of top groups and of entitlements in no group are checked against the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from typing import NamedTuple

from tokenpool.amounts import NOTHING, Dimension
from tokenpool.entitlements import (
    MOST_GROUP_LEVELS,
    Entitlement,
    Group,
    KeyRef,
    KeySource,
    Pool,
    PoolFile,
    Promises,
    Tier,
    chain,
    promises,
)
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
        self._groups: dict[str, dict[str, int]] = {}

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

    def group(self, name: str, line: int, fields: dict[str, int]) -> None:
        """Remember the lines of a group. A second group of the same name is an error."""
        if name in self._groups:
            first = self._groups[name][""]
            message = f"group {name!r} was defined on {self.sources.where(first)} already"
            self.problems.error(line, message, "rename one")
        else:
            self._groups[name] = {"": line} | fields

    def line_of_group(self, group: Group, field: str = "") -> int:
        """The line of a group's field; without the field, the line of the group."""
        lines = self._groups[group.name]
        return lines.get(field, lines[""])

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
    groups = {group.name: group for group in file.groups}
    misplaced = [group for group in file.groups if not _check_parent(group, groups, located)]
    for entitlement in file.entitlements:
        _check_entitlement(entitlement, file, located, reach)
        _check_flex(entitlement, by_name, located)
        _check_group_of(entitlement, groups, located)
    with_members = {each.group for each in file.entitlements} | {group.parent for group in file.groups}
    for pool in file.pools:
        if not misplaced:
            sums = promises(file.entitlements_of(pool.name), file.groups_of(pool.name))
            _check_promises(pool, sums, located)
            for group in file.groups_of(pool.name):
                _check_group(group, sums, with_members, located)
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


def _check_group_of(entitlement: Entitlement, groups: Mapping[str, Group], located: Located) -> None:
    if entitlement.group is None:
        return
    line, name = located.line(entitlement, "group"), entitlement.name
    group = groups.get(entitlement.group)
    if group is None:
        known = ", ".join(sorted(groups)[:10]) or "none"
        located.problems.error(
            line,
            f"entitlement {name!r} is in group {entitlement.group!r}, which is not defined",
            f"define it under groups, or use one of: {known}",
        )
    elif group.pool != entitlement.pool:
        located.problems.error(
            line,
            f"entitlement {name!r} of pool {entitlement.pool!r} is in group {group.name!r} of pool"
            f" {group.pool!r}",
            "name a group of the same pool",
        )
    else:
        for dimension in Dimension:
            most = entitlement.ceiling.get(dimension)
            if group.ceiling.get(dimension) < most < float("inf"):
                located.problems.warn(
                    located.line(entitlement, "ceiling"),
                    f"entitlement {name!r} has a ceiling of {most:g} {dimension}, but its group"
                    f" {group.name!r} has {group.ceiling.get(dimension):g}",
                    "the ceiling of the group holds: lower this one, or raise that of the group",
                )


def _check_parent(group: Group, groups: Mapping[str, Group], located: Located) -> bool:
    """Check the place of a group among the others. Returns whether it has one."""
    problems, line = located.problems, located.line_of_group(group, "parent")
    above = chain(group.name, groups)
    top = above[-1]
    if group.pool not in located.pools:
        known = ", ".join(located.pools) or "none"
        problems.error(
            located.line_of_group(group, "pool"),
            f"group {group.name!r} is in pool {group.pool!r}, which is not defined",
            f"define it, or use one of: {known}",
        )
    if group.parent is None:
        return True
    parent = groups.get(group.parent)
    if parent is None:
        known = ", ".join(sorted(groups)[:10])
        problems.error(
            line,
            f"group {group.name!r} has the parent {group.parent!r}, which is not defined",
            f"define it under groups, or use one of: {known}",
        )
    elif parent.pool != group.pool:
        problems.error(
            line,
            f"group {group.name!r} of pool {group.pool!r} has a parent of pool {parent.pool!r}",
            "name a group of the same pool",
        )
    elif top.parent is not None and top.parent in groups:
        if top.parent == group.name:
            cycle = " in ".join(repr(each.name) for each in (*above, group))
            problems.error(line, f"groups form a cycle: {cycle}", "remove the parent of one of them")
        return False
    elif len(above) > MOST_GROUP_LEVELS:
        problems.error(
            line,
            f"group {group.name!r} has {len(above) - 1} groups above it",
            f"use at most {MOST_GROUP_LEVELS} levels of groups",
        )
    else:
        return True
    return False


def _check_group(group: Group, sums: Promises, with_members: Set[str | None], located: Located) -> None:
    """Check the guarantees of a group's members against its own, and its own against its ceiling."""
    problems, own, members = located.problems, group.guarantee, sums.members[group.name]
    if group.name not in with_members:
        problems.warn(
            located.line_of_group(group),
            f"group {group.name!r} has no members",
            "it promises capacity to nobody: let an entitlement name it, or remove it",
        )
    for dimension in Dimension:
        promised, most = members.get(dimension), group.ceiling.get(dimension)
        if own != NOTHING and promised > own.get(dimension) * (1 + _ROUNDING):
            problems.error(
                located.line_of_group(group, "guarantee"),
                f"the members of group {group.name!r} promise {promised:g} {dimension}, but the group"
                f" guarantees {own.get(dimension):g}",
                "raise the guarantee of the group, or lower those of its members",
            )
        elif sums.of(group).get(dimension) > most * (1 + _ROUNDING):
            problems.error(
                located.line_of_group(group, "ceiling"),
                f"group {group.name!r} has a ceiling of {most:g} {dimension} below its guarantee of"
                f" {sums.of(group).get(dimension):g}",
                "raise the ceiling or lower the guarantee",
            )


_ROUNDING = 1e-9
"""Sums of guarantees are sums of floats: a relative difference of this size is rounding."""


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


def _check_promises(pool: Pool, sums: Promises, located: Located) -> None:
    for dimension in Dimension:
        promised = sums.total.get(dimension)
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
    ids: dict[str, tuple[int, tuple[str, str]]] = {}
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
            line, known = (
                ids.setdefault(key.id, (key.line, _identity(key))) if key.id else (0, _identity(key))
            )
            if known != _identity(key):
                located.problems.error(
                    key.line,
                    f"the id {key.id!r} of a key of {name} is also used on {located.sources.where(line)}",
                    "give each key an id of its own",
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
