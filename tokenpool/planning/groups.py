"""The groups of one pool as a plan needs them: their places, and the sums over their members."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Group, chain, from_the_bottom
from tokenpool.planning.claims import FairShare, GroupClaim


class GroupTree:
    """The groups of one pool."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        by_name = {group.name: group for group in groups}
        self.upwards = from_the_bottom(sorted(groups, key=lambda group: group.name))
        """The groups, each before its parent."""
        self.names = by_name.keys()
        self._above = {group.name: chain(group.name, by_name) for group in groups}
        self.bounded = frozenset(
            group.name
            for group in groups
            if any(min(each.ceiling.values()) < math.inf for each in self._above[group.name])
        )
        """The groups with a ceiling, or below one with a ceiling."""

    def above(self, name: str) -> Sequence[Group]:
        """A group and the groups above it, from the bottom."""
        return self._above[name]

    def known(self, name: str | None) -> str | None:
        """The name of a group; ``None`` for an unknown one, whose members count as members of no group."""
        return name if name in self._above else None

    def claims(self) -> list[GroupClaim]:
        """The groups as the input of an allocation."""
        return [GroupClaim(g.name, g.parent, g.weight, g.guarantee, g.ceiling) for g in self.groups]

    def sums(self, amounts: Iterable[tuple[str | None, Amount, Amount]]) -> dict[str, tuple[Amount, Amount]]:
        """By group: the sums of its members' two amounts, given with the name of their group."""
        sums = {group.name: [0.0] * 6 for group in self.groups}
        for name, one, other in amounts:
            if name in sums:
                sum_ = sums[name]
                sum_[0] += one.tokens_per_second
                sum_[1] += one.kv_tokens
                sum_[2] += one.concurrency
                sum_[3] += other.tokens_per_second
                sum_[4] += other.kv_tokens
                sum_[5] += other.concurrency
        for group in self.upwards:
            if group.parent in sums:
                sum_, own = sums[group.parent], sums[group.name]
                for k in range(6):
                    sum_[k] += own[k]
        return {name: (Amount(*sum_[:3]), Amount(*sum_[3:])) for name, sum_ in sums.items()}


class Standing(NamedTuple):
    """One entitlement or group among its siblings, for its debt. Shares are dominant shares."""

    fair_share: float
    service: float
    """With the part of the fair share that all siblings together did not get."""
    has_unmet_demand: bool


def standings(
    tree: GroupTree,
    entitlements: Iterable[Entitlement],
    fair: Mapping[str, FairShare],
    service: Mapping[str, float],
) -> tuple[dict[str, Standing], dict[str, Standing]]:
    """Compare siblings: the entitlements and groups in one group, or those at the top. Both results by name.

    ``service`` is in dominant shares. A group has unmet demand if a member has, unless its own ceiling or one
    below it is the reason. An entitlement without a sibling with unmet demand has nobody to compare with: its
    group has the debt.
    """
    known = tree.names
    parents = {each.name: each.group if each.group in known else None for each in entitlements}
    compared: dict[str | None, _Siblings] = {None: _Siblings(least=1)}
    compared.update((group.name, _Siblings(least=2)) for group in tree.groups)
    wanting: set[str] = set()
    for name, share in fair.items():
        parent = parents[name]
        siblings = compared[parent]
        due, got = share.dominant_share, service[name]
        siblings.due += due
        siblings.got += got
        if not share.is_satisfied:
            siblings.want(due, got)
            if parent is None:
                continue
            for group in tree.above(parent):
                if group.name == share.bound_by:
                    break
                wanting.add(group.name)
    for group in tree.upwards:
        members, siblings = compared[group.name], compared[tree.known(group.parent)]
        siblings.due += members.due
        siblings.got += members.got
        if group.name in wanting:
            siblings.want(members.due, members.got)
    for siblings in compared.values():
        siblings.compare()
    standing = {}
    for name, share in fair.items():
        siblings, due = compared[parents[name]], share.dominant_share
        if share.is_satisfied:
            standing[name] = Standing(due, service[name], False)
        else:
            standing[name] = siblings.standing(due, service[name], wants=True)
    return (
        standing,
        {
            group.name: compared[tree.known(group.parent)].standing(
                compared[group.name].due, compared[group.name].got, wants=group.name in wanting
            )
            for group in tree.groups
        },
    )


class _Siblings:
    """The sums over the entitlements and groups of one group."""

    __slots__ = ("_due_to_wanting", "_got_by_wanting", "_least", "_missing", "_wanting", "due", "got")

    def __init__(self, least: int) -> None:
        self.due = self.got = 0.0
        self._due_to_wanting = self._got_by_wanting = 0.0
        self._missing = 0.0
        self._wanting = 0
        self._least = least
        """The fewest siblings with unmet demand for a comparison."""

    def want(self, due: float, got: float) -> None:
        """One of them has unmet demand."""
        self._due_to_wanting += due
        self._got_by_wanting += got
        self._wanting += 1

    def compare(self) -> None:
        """Compute the part of their fair shares that all with unmet demand together did not get.

        It is negative if they got more. At the top it is an error of the measured capacity, not a debt among
        tenants. If it counted, all debts would reach one end of their range and lose their meaning. With
        several engines, service was then 31 % from the fair share instead of 5 %. In a group it is the debt
        of the group.
        """
        due = self._due_to_wanting
        self._missing = (due - self._got_by_wanting) / due if due > 0 and self._wanting > 1 else 0.0

    def standing(self, due: float, got: float, *, wants: bool) -> Standing:
        """The standing of one of them."""
        return Standing(due, got + self._missing * due, wants and self._wanting >= self._least)
