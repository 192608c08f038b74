"""Merging: the pool file and all resources become one pool file, and each resource gets its verdict.

The rules:

- The pool file wins. A resource cannot take the name of a record in the file, nor one of its keys.
- Entitlements of one namespace may have a common key if their models have none in common.
- A resource is accepted alone. If it is not valid, takes a name, or promises more than its pool can carry,
  the others go on. **Its last accepted version stays in force**: a wrong edit takes no capacity away.
- What is in force has precedence over what changes. A change is tried against all that is in force, so no
  resource can displace another one. Between new resources the older one is accepted first.
- A missing key affects itself alone. A Secret that does not exist has no keys, so deleting a Secret revokes
  its keys. A Secret that cannot be read keeps the keys that were read last.
- Deleting an object ends its entitlement at once.

The merge keeps its state, so that a change costs the work of one resource, not of ten thousand.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from coordinator.resources.fields import KEYS, camel
from coordinator.resources.reading import Key, Kind, Resource, SecretKey, SecretName
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Entitlement, KeyRef, KeySource, Pool, PoolFile, chain

PER_STEP = 50
"""Resources between two pauses of an update: about 2 ms."""
_ROUNDING = 1e-9
"""Sums of promises change by additions and subtractions. A difference of this part is rounding."""


class Reason(StrEnum):
    """The reasons of the conditions Accepted and ResolvedRefs."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    NAME_TAKEN = "NameTaken"
    POOL_NOT_FOUND = "PoolNotFound"
    GROUP_NOT_FOUND = "GroupNotFound"
    OVERCOMMITTED = "Overcommitted"
    RESOLVED = "ResolvedRefs"
    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_UNREADABLE = "SecretUnreadable"
    SECRET_KEY_MISSING = "SecretKeyMissing"
    KEY_TAKEN = "KeyTaken"


class Verdict(NamedTuple):
    """Whether something holds, and why."""

    holds: bool
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class SecretState:
    """A Secret as it was read last: the digests of its values by key, never the values."""

    digests: Mapping[str, str]
    exists: bool = True
    problem: str = ""
    """The reason that it cannot be read now; the digests are then those that were read last."""
    is_unread: bool = False
    """Whether it has never been read."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The accepted version of a resource."""

    record: Pool | Entitlement
    """The record, for an entitlement with its keys."""
    generation: int
    """The object's generation; 0 for a version from the published file of a former leader."""
    keys: tuple[str | SecretKey, ...] = ()


class Changes(NamedTuple):
    """The resources that changed."""

    moved: set[Key]
    """Another record is in force, or none."""
    judged: set[Key]
    """These, and the resources with another verdict."""


_ACCEPTED = Verdict(True, Reason.ACCEPTED, "the resource is part of the pool file")
_RESOLVED = Verdict(True, Reason.RESOLVED, "all keys are known")
_UNREAD = SecretState({}, problem="it has not been read yet", is_unread=True)


def capacity(pool: Pool) -> tuple[float, ...]:
    """The most that a pool can promise in each dimension, with all its replicas."""
    one = (getattr(pool.replica, dimension.value) for dimension in Dimension)
    return tuple(float("inf") if each is None else each * pool.max_replicas for each in one)


class Merge:
    """The merged pool file, and the verdict on each resource."""

    def __init__(
        self, base: PoolFile | None, last: PoolFile | None = None, holders: Iterable[Key] = ()
    ) -> None:
        """``base`` is the pool file on disk. ``last`` is the published one: it has accepted versions.

        ``holders`` are the resources that were in force until now, if this process knows them.
        """
        self._holders = frozenset(holders)
        self._base = base or PoolFile((), ())
        self._last: dict[tuple[Kind, str], Pool | Entitlement] = {}
        if last is not None:
            self._last |= {(Kind.POOL, each.name): each for each in last.pools}
            self._last |= {(Kind.ENTITLEMENT, each.name): each for each in last.entitlements}
        self.resources: dict[Key, Resource] = {}
        self.in_force: dict[Key, InForce] = {}
        """The accepted versions. A rejected resource may have an earlier one, or none."""
        self.accepted: dict[Key, Verdict] = {}
        self.resolved: dict[Key, Verdict] = {}
        """Whether the keys of an entitlement in force are known."""
        self.promised: dict[str, Amount] = {}
        """The sum of the guarantees of each pool."""
        self.members: dict[str, Amount] = {}
        """The sum of the guarantees of each group's members."""
        self.pools: dict[str, Pool] = {}
        self._secrets: dict[SecretName, SecretState] = {}
        self._users: dict[SecretName, set[Key]] = {}
        """The entitlements that name a Secret."""
        self._owners: dict[tuple[Kind, str], Key | None] = {}
        """The resource of each name in force; ``None`` for the file's."""
        self._digests: dict[str, list[Key | None]] = {}
        """The entitlements of each key; ``None`` for the file's."""
        self._named: dict[Key, set[SecretName]] = {}
        """The Secrets of each entitlement."""
        self._recovered: dict[Key, tuple[str, ...]] = {}
        """The published digests of entitlements, until all their Secrets have been read."""
        self._rejected: set[Key] = set()
        self._without_key: set[Key] = set()
        """The entitlements with a key that another one has."""
        self._moves: set[Key] = set()
        self._changed: set[Key] = set()
        self.revision = 0
        """A number that rises with each change of the merged pool file."""
        for pool in self._base.pools:
            self._owners[Kind.POOL, pool.name] = None
            self.pools[pool.name] = pool
        self._groups = {group.name: group for group in self._base.groups}
        """Groups are in the pool file only; resources may name them."""
        for group in self._base.groups:
            self._promise(group.pool, group.parent, group.guarantee)
        for entitlement in self._base.entitlements:
            self._owners[Kind.ENTITLEMENT, entitlement.name] = None
            self._promise(entitlement.pool, entitlement.group, entitlement.guarantee)
        for ref in (
            *self._base.administrator_keys,
            *(k for e in self._base.entitlements for k in e.api_keys),
        ):
            digest = _digest(ref)
            if digest:
                self._digests[digest] = [None]

    @property
    def secrets(self) -> set[SecretName]:
        """The Secrets that entitlements name."""
        return set(self._users)

    def file(self) -> PoolFile:
        """The merged pool file. Its order depends on names alone, so every coordinator makes the same."""
        pools = [each.record for each in self.in_force.values() if isinstance(each.record, Pool)]
        others = [each.record for each in self.in_force.values() if isinstance(each.record, Entitlement)]
        base = self._base
        return replace(
            base,
            pools=(*base.pools, *sorted(pools, key=lambda each: each.name)),
            entitlements=(*base.entitlements, *sorted(others, key=lambda each: each.name)),
        )

    def update(
        self,
        changed: Mapping[Key, Resource | None],
        secrets: Mapping[SecretName, SecretState | None] | None = None,
    ) -> Iterator[None]:
        """Use changed resources (``None``: deleted) and Secrets (``None``: no longer read), in short steps.

        ``taken`` returns the resources with another record or verdict afterwards.
        """
        touched = self._use_secrets(secrets or {})
        gone = [key for key, resource in changed.items() if resource is None]
        new = [resource for resource in changed.values() if resource is not None]
        # An object of the same name with another uid is another object: the one before it was deleted.
        gone += [each.key for each in new if self._is_another(each)]
        for key in sorted(gone, key=lambda each: each.kind is Kind.POOL):
            self._forget(key)
        yield
        for resource in new:
            self._know(resource)
        yield
        new.sort(key=_order)
        for number, each in enumerate(self._by_claim(new), 1):
            self._recover(each)
            if number % PER_STEP == 0:
                yield
        touched |= {each.key for each in new}
        yield from self._settle(touched)

    def taken(self) -> Changes:
        """The changes since the last call, also of deleted resources."""
        made = Changes(self._moves, self._changed)
        self._moves, self._changed = set(), set()
        return made

    # --- what is known ---
    def _use_secrets(self, secrets: Mapping[SecretName, SecretState | None]) -> set[Key]:
        touched: set[Key] = set()
        for name, state in secrets.items():
            if state is None:
                self._secrets.pop(name, None)
            elif self._secrets.get(name) != state:
                self._secrets[name] = state
                touched |= self._users.get(name, set())
        return touched

    def _know(self, resource: Resource) -> None:
        before = self.resources.get(resource.key)
        self.resources[resource.key] = resource
        if before is None or before.keys != resource.keys:
            self._name_secrets(resource.key)

    def _name_secrets(self, key: Key) -> None:
        """Note the Secrets of a resource, and of its version in force."""
        resource, kept = self.resources.get(key), self.in_force.get(key)
        refs = (*(resource.keys if resource else ()), *(kept.keys if kept else ()))
        named = {ref.secret for ref in refs if isinstance(ref, SecretKey)}
        before = self._named.pop(key, set())
        if named:
            self._named[key] = named
        for name in before - named:
            self._users[name].discard(key)
            if not self._users[name]:
                del self._users[name]
        for name in named - before:
            self._users.setdefault(name, set()).add(key)

    def _forget(self, key: Key) -> None:
        if self.resources.pop(key, None) is None:
            return
        self._changed.add(key)
        self.accepted.pop(key, None)
        self._rejected.discard(key)
        self._drop(key)
        self._name_secrets(key)

    def _is_another(self, resource: Resource) -> bool:
        known = self.resources.get(resource.key)
        return known is not None and known.uid != resource.uid

    def _by_claim(self, new: list[Resource]) -> list[Resource]:
        """Resources in the order in which they recover published versions.

        Objects of several namespaces may have one name, and the published file has no namespaces. Of these,
        the one that was in force comes first. Otherwise an older one that was refused would displace it.
        """
        claims = Counter((each.key.kind, each.key.name) for each in new) if self._last else Counter()

        def rank(each: Resource) -> tuple[bool, bool, bool]:
            is_contested = claims[each.key.kind, each.key.name] > 1
            return (
                each.key.kind is not Kind.POOL,
                is_contested and each.key not in self._holders,
                is_contested and not each.was_in_force,
            )

        return sorted(new, key=rank)

    def _recover(self, resource: Resource) -> None:
        """Put a resource's version of the published file in force, if it has none yet."""
        last = self._last.pop((resource.key.kind, resource.key.name), None)
        if last is None or resource.key in self.in_force:
            return
        keys: tuple[str, ...] = ()
        if isinstance(last, Entitlement):
            # Keys of Secrets are in the published file as digests. They count until the Secret is read.
            keys = tuple(ref.value for ref in last.api_keys if ref.source is KeySource.SHA256)
            last = replace(last, api_keys=())
        version = replace(resource, record=last, keys=keys, generation=0, problem="")
        if self._objection(version) is None:
            self._enforce(version)
            self._recovered[resource.key] = keys

    # --- verdicts ---
    def _settle(self, touched: set[Key]) -> Iterator[None]:
        """Judge the touched resources, and again all that wait for something, until nothing moves."""
        judged = touched | self._rejected | self._without_key
        while judged:
            before = self.revision
            waiting = [self.resources[key] for key in judged if key in self.resources]
            for number, each in enumerate(sorted(waiting, key=_order), 1):
                self._judge(each)
                if number % PER_STEP == 0:
                    yield
            judged = set() if self.revision == before else self._rejected | self._without_key

    def _judge(self, resource: Resource) -> None:
        key = resource.key
        said = self._objection(resource)
        if said is None:
            self._enforce(resource)
            verdict = _ACCEPTED
        else:
            kept = self.in_force.get(key)
            if kept is not None and self._is_void(kept):
                self._drop(key)
                kept = None
            if kept is not None and isinstance(kept.record, Entitlement):
                self._resolve(key, kept.keys)
            verdict = Verdict(False, said[0], said[1] + _fallback(kept))
        (self._rejected.discard if verdict.holds else self._rejected.add)(key)
        if self.accepted.get(key) != verdict:
            self.accepted[key] = verdict
            self._changed.add(key)

    def _is_void(self, kept: InForce) -> bool:
        """Whether a version in force has lost its pool."""
        return isinstance(kept.record, Entitlement) and kept.record.pool not in self.pools

    def _objection(self, resource: Resource) -> tuple[Reason, str] | None:
        """The reason against a version of a resource, and the fix."""
        record, key = resource.record, resource.key
        if record is None:
            return Reason.INVALID, resource.problem
        owner = self._owners.get((key.kind, key.name), key)
        if owner != key:
            by = "the pool file" if owner is None else str(owner)
            return Reason.NAME_TAKEN, f"metadata.name is the name of {by}; choose another name"
        if isinstance(record, Pool):
            return self._beyond(record, self.promised.get(record.name, NOTHING), "lower guarantees, or raise")
        pool = self.pools.get(record.pool)
        if pool is None:
            known = ", ".join(sorted(self.pools)[:10]) or "none"
            said = f"spec.pool is {record.pool!r}, which does not exist; create it, or use one of: {known}"
            return Reason.POOL_NOT_FOUND, said
        foreign = [model for model in record.models if not pool.serves(model)]
        if foreign:
            said = (
                f"spec.models has {foreign[0]!r}, which pool {pool.name!r} does not serve; add it to the"
                " models of the pool, or remove it"
            )
            return Reason.INVALID, said
        return self._objection_to_group(record) or self._objection_to_guarantee(key, record, pool)

    def _objection_to_group(self, record: Entitlement) -> tuple[Reason, str] | None:
        group = self._groups.get(record.group or "")
        if record.group is None or (group is not None and group.pool == record.pool):
            return None
        known = ", ".join(sorted(each.name for each in self._base.groups_of(record.pool))[:10])
        said = (
            f"spec.group is {record.group!r}, which is no group of pool {record.pool!r} in the pool file;"
            f" define it there, or use one of: {known or 'none'}"
        )
        return Reason.GROUP_NOT_FOUND, said

    def _objection_to_guarantee(self, key: Key, record: Entitlement, pool: Pool) -> tuple[Reason, str] | None:
        """Check the sums of guarantees in the groups above, and in the pool."""
        kept = self.in_force.get(key)
        before = kept.record if kept is not None and isinstance(kept.record, Entitlement) else None
        if not any(record.guarantee.values()):
            return None
        if (
            before is not None
            and (before.pool, before.group) == (record.pool, record.group)
            and all(new <= old for new, old in _pairs(record.guarantee, before.guarantee))
        ):
            return None  # less is always acceptable, also in a pool that promises too much
        if before is None:
            return self._beyond_groups(record, pool)
        self._promise(before.pool, before.group, NOTHING - before.guarantee)
        try:
            return self._beyond_groups(record, pool)
        finally:
            self._promise(before.pool, before.group, before.guarantee)

    def _beyond_groups(self, record: Entitlement, pool: Pool) -> tuple[Reason, str] | None:
        """The objection if the guarantee of an entitlement is added to all sums."""
        more = record.guarantee
        for group in chain(record.group, self._groups):
            most = group.guarantee if group.guarantee != NOTHING else group.ceiling
            sums = self.members.get(group.name, NOTHING) + more
            for dimension in Dimension:
                if sums.get(dimension) > most.get(dimension) * (1 + _ROUNDING):
                    said = (
                        f"the members of group {group.name!r} would promise {sums.get(dimension):g}"
                        f" {camel(dimension.value)}, but the group has {most.get(dimension):g};"
                        " lower spec.guarantee, or raise that of the group"
                    )
                    return Reason.OVERCOMMITTED, said
            if group.guarantee != NOTHING:
                return None  # the pool carries the guarantee of the group already
        promised = self.promised.get(record.pool, NOTHING) + more
        return self._beyond(pool, promised, "lower spec.guarantee, or raise")

    @staticmethod
    def _beyond(pool: Pool, promised: Amount, fix: str) -> tuple[Reason, str] | None:
        for dimension, most, sum_ in zip(Dimension, capacity(pool), promised.values(), strict=True):
            if sum_ > most * (1 + _ROUNDING):
                name = camel(dimension.value)
                said = (
                    f"pool {pool.name!r} would promise {sum_:g} {name}, but {pool.max_replicas} replicas"
                    f" provide at most {most:g}; {fix} replicas.max of the pool"
                )
                return Reason.OVERCOMMITTED, said
        return None

    # --- what is in force ---
    def _enforce(self, resource: Resource) -> None:
        key, record = resource.key, resource.record
        kept = self.in_force.get(key)
        self._owners[key.kind, key.name] = key
        if isinstance(record, Pool):
            self.in_force[key] = InForce(record, resource.generation)
            self.pools[record.name] = record
            if kept is None or kept.record != record:
                self._moved(key)
            return
        assert record is not None
        refs: tuple[KeyRef, ...] = ()
        if kept is not None and isinstance(kept.record, Entitlement):
            refs = kept.record.api_keys
            self._promise(kept.record.pool, kept.record.group, NOTHING - kept.record.guarantee)
        self._promise(record.pool, record.group, record.guarantee)
        record = replace(record, api_keys=refs)
        self.in_force[key] = InForce(record, resource.generation, resource.keys)
        if kept is None or kept.record != record:
            self._moved(key)
        if kept is None or kept.keys != resource.keys:
            self._name_secrets(key)
        self._resolve(key, resource.keys)

    def _moved(self, key: Key) -> None:
        self._moves.add(key)
        self._changed.add(key)
        self.revision += 1

    def _resolve(self, key: Key, keys: Iterable[str | SecretKey]) -> None:
        """Find the digests of an entitlement's keys, and put them in force."""
        kept = self.in_force[key]
        assert isinstance(kept.record, Entitlement)
        before = [ref.value for ref in kept.record.api_keys]
        wanted, verdict, is_unread = self._found(keys)
        if is_unread:
            wanted = dict.fromkeys(self._recovered.get(key, ()), -1) | wanted
        else:
            self._recovered.pop(key, None)
        mine = []
        for digest, number in wanted.items():
            owners = self._digests.get(digest, [])
            clash = [owner for owner in owners if not self._may_share(owner, key)]
            if not clash:
                mine.append(digest)
            elif number >= 0:
                by = "the pool file" if clash[0] is None else str(clash[0])
                said = (
                    f"spec.{camel(KEYS)}[{number}] is also a key of {by}; give each entitlement its own keys,"
                    " or models of which none is in both"
                )
                verdict = Verdict(False, Reason.KEY_TAKEN, said)
        for digest in before:
            if digest not in mine:
                self._free(digest, key)
        for digest in mine:
            owners = self._digests.setdefault(digest, [])
            if key not in owners:
                owners.append(key)
        if mine != before:
            refs = tuple(KeyRef(KeySource.SHA256, digest) for digest in mine)
            self.in_force[key] = replace(kept, record=replace(kept.record, api_keys=refs))
            self._moved(key)
        is_taken = verdict.reason is Reason.KEY_TAKEN
        (self._without_key.add if is_taken else self._without_key.discard)(key)
        if self.resolved.get(key) != verdict:
            self.resolved[key] = verdict
            self._changed.add(key)

    def _free(self, digest: str, key: Key) -> None:
        """An entitlement has no longer this key."""
        owners = self._digests[digest]
        owners.remove(key)
        if not owners:
            del self._digests[digest]

    def _may_share(self, owner: Key | None, key: Key) -> bool:
        """Whether an entitlement in force may have the key of another owner, or is that owner."""
        if owner is None or owner == key:
            return owner == key
        kept, other = self.in_force[key].record, self.in_force[owner].record
        return (
            owner.namespace == key.namespace
            and isinstance(kept, Entitlement)
            and isinstance(other, Entitlement)
            and kept.may_share_key(other)
        )

    def _found(self, keys: Iterable[str | SecretKey]) -> tuple[dict[str, int], Verdict, bool]:
        """The number of each known digest, the first problem, and whether a Secret has not been read yet."""
        found: dict[str, int] = {}
        verdict, is_unread = _RESOLVED, False
        for number, ref in enumerate(keys):
            if isinstance(ref, str):
                found.setdefault(ref, number)
                continue
            state = self._secrets.get(ref.secret, _UNREAD)
            digest = state.digests.get(ref.key)
            if digest is not None:
                found.setdefault(digest, number)
            is_unread = is_unread or state.is_unread
            problem = _secret_problem(ref, state, number, digest)
            if problem is not None and verdict.holds:
                verdict = problem
        return found, verdict, is_unread

    def _drop(self, key: Key) -> None:
        """Take a resource out of force."""
        kept = self.in_force.pop(key, None)
        self.resolved.pop(key, None)
        self._recovered.pop(key, None)
        self._without_key.discard(key)
        if kept is None:
            return
        self._moved(key)
        del self._owners[key.kind, key.name]
        if isinstance(kept.record, Entitlement):
            self._promise(kept.record.pool, kept.record.group, NOTHING - kept.record.guarantee)
            for ref in kept.record.api_keys:
                self._free(ref.value, key)
            return
        del self.pools[key.name]
        for other in [other for other, each in self.in_force.items() if self._is_void(each)]:
            self._judge(self.resources[other])

    def _promise(self, pool: str, group: str | None, more: Amount) -> None:
        """Count a guarantee into its groups, up to the first one with its own, or into the pool."""
        for each in chain(group, self._groups):
            self.members[each.name] = self.members.get(each.name, NOTHING) + more
            if each.guarantee != NOTHING:
                return
        self.promised[pool] = self.promised.get(pool, NOTHING) + more


def _order(resource: Resource) -> tuple[bool, tuple[str, Key]]:
    """Pools come first, because entitlements need them."""
    return resource.key.kind is not Kind.POOL, resource.order


def _pairs(one: Amount, other: Amount) -> Iterator[tuple[float, float]]:
    return zip(one.values(), other.values(), strict=True)


def _fallback(kept: InForce | None) -> str:
    if kept is None:
        return ""
    which = f"generation {kept.generation}" if kept.generation else "the published one"
    return f" (the last accepted version stays in force: {which})"


def _secret_problem(ref: SecretKey, state: SecretState, number: int, digest: str | None) -> Verdict | None:
    field, name = f"spec.{camel(KEYS)}[{number}].secretRef", ref.secret.name
    if not state.exists:
        said = f"{field}: there is no Secret {name!r} in this namespace; create it, or remove the key"
        return Verdict(False, Reason.SECRET_NOT_FOUND, said)
    if state.problem:
        said = f"{field}: Secret {name!r} cannot be read: {state.problem}"
        return Verdict(False, Reason.SECRET_UNREADABLE, said)
    if digest is None:
        said = f"{field}: Secret {name!r} has no key {ref.key!r} with a text; add it, or correct the name"
        return Verdict(False, Reason.SECRET_KEY_MISSING, said)
    return None


def _digest(ref: KeyRef) -> str:
    """The SHA-256 of a key of the pool file; empty if only the sidecars can read it."""
    if ref.source is KeySource.SHA256:
        return ref.value
    return hashlib.sha256(ref.value.strip().encode()).hexdigest() if ref.source is KeySource.PLAIN else ""
