"""Merging resources with the pool file: each resource affects itself alone, whatever happens to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.resources.merge import Merge, Reason, SecretState, capacity
from coordinator.resources.reading import Key, Kind, Resource
from tests.support.resources import (
    digest,
    entitlement,
    guaranteed,
    key,
    resource,
    secret,
    token_pool,
    update,
)
from tokenpool.amounts import NOTHING, Dimension
from tokenpool.entitlements import Entitlement, KeyRef, KeySource, PoolFile
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile.reading import parse

BASE = parse(
    """
pools:
  - {name: filed, models: [tiny], replica: {concurrency: 8}, replicas: {max: 2}}
entitlements:
  - {name: first, pool: filed, tier: guaranteed, guarantee: {concurrency: 4}, api_keys: [first-key]}
"""
).file


def made(*resources: Resource, base: PoolFile | None = None, last: PoolFile | None = None) -> Merge:
    merge = Merge(base, last)
    update(merge, *resources)
    return merge


def by_name(merge: Merge) -> dict[str, Entitlement]:
    return {each.name: each for each in merge.file().entitlements}


def refusal(merge: Merge, name: str, kind: Kind = Kind.ENTITLEMENT) -> tuple[Reason, str]:
    verdict = merge.accepted[key(name, kind)]
    assert not verdict.holds
    return verdict.reason, verdict.message


def keys_of(merge: Merge, name: str) -> set[str]:
    return {ref.value for ref in by_name(merge)[name].api_keys}


# --- what is accepted ---
def test_resources_join_the_records_of_the_file() -> None:
    merge = made(token_pool(), entitlement("a"), entitlement("b", pool="filed"), base=BASE)
    file = merge.file()
    assert [pool.name for pool in file.pools] == ["filed", "chat"]
    assert [(each.name, each.pool) for each in file.entitlements] == [
        ("first", "filed"),
        ("a", "chat"),
        ("b", "filed"),
    ]
    assert all(verdict.holds for verdict in merge.accepted.values())
    assert decode_file(encode_file(file)[1]).entitlements[1] == file.entitlements[1]


def test_the_files_administrators_and_anonymous_callers_remain() -> None:
    base = replace(BASE, anonymous="first", administrator_keys=(KeyRef(KeySource.PLAIN, "root-key"),))
    file = made(token_pool(), entitlement("a"), base=base).file()
    assert (file.anonymous, file.administrator_keys) == ("first", base.administrator_keys)


def test_the_order_of_arrival_does_not_matter() -> None:
    one, other = made(entitlement("a"), token_pool(), entitlement("b")), made(token_pool(), entitlement("b"))
    update(other, entitlement("a"))
    assert encode_file(one.file()) == encode_file(other.file())


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (entitlement("x", weight=-1), Reason.INVALID, "spec.weight is -1; write more than 0"),
        (entitlement("x", pool="other"), Reason.POOL_NOT_FOUND, "spec.pool is 'other', which does not exist"),
        (entitlement("first"), Reason.NAME_TAKEN, "metadata.name is the name of the pool file"),
        (guaranteed("x", 9), Reason.OVERCOMMITTED, "would promise 9 concurrency, but 1 replicas provide"),
        (entitlement("x", apiKeys=["plain-1"]), Reason.INVALID, "spec.apiKeys[0] is no key; write {sha256"),
        (resource(Kind.ENTITLEMENT, "x", None), Reason.INVALID, "spec is missing; add 'spec:'"),
        (resource(Kind.ENTITLEMENT, "x", {"tier": 3}), Reason.INVALID, "spec has no pool; add 'pool:'"),
    ],
)  # fmt: skip
def test_a_bad_resource_is_refused_alone(bad: Resource, reason: Reason, message: str) -> None:
    merge = made(token_pool(), entitlement("a"), bad, entitlement("b"), base=BASE)
    said = refusal(merge, bad.key.name)
    assert said[0] is reason
    assert message in said[1]
    assert set(by_name(merge)) == {"first", "a", "b"}
    assert "plain-1" not in said[1]


def test_several_problems_are_counted() -> None:
    spec = {"weight": 0, "slo": {"ttftMs": 0, "tpotMs": 0}, "ceiling": {"kvTokens": -1}, "preemptible": 1}
    _, said = refusal(made(token_pool(), entitlement("x", **spec)), "x")
    assert said.startswith("(1) spec.weight is 0")
    assert said.endswith("(4) 2 more problems")


# --- the last accepted version ---
@pytest.mark.parametrize(
    "worse",
    [guaranteed("a", 99, 2), entitlement("a", 2, weight=0), entitlement("a", 2, tier="gold")],
)
def test_the_last_accepted_version_stays_in_force(worse: Resource) -> None:
    merge = made(token_pool(), guaranteed("a", 4), guaranteed("b", 2))
    update(merge, worse)
    assert by_name(merge)["a"].guarantee.concurrency == 4
    assert "(the last accepted version stays in force: generation 1)" in refusal(merge, "a")[1]
    assert merge.in_force[key("a")].generation == 1
    update(merge, guaranteed("a", 6, 3))
    assert by_name(merge)["a"].guarantee.concurrency == 6
    assert merge.accepted[key("a")].holds


def test_a_wrong_pool_keeps_its_last_version_with_its_entitlements() -> None:
    merge = made(token_pool(), guaranteed("a", 8))
    update(merge, token_pool(sequences=4, generation=2))
    assert "would promise 8 concurrency" in refusal(merge, "chat", Kind.POOL)[1]
    assert merge.pools["chat"].replica.concurrency == 8
    assert set(by_name(merge)) == {"a"}
    # It is accepted as soon as the guarantees fit.
    update(merge, guaranteed("a", 3, 2))
    assert merge.accepted[key("chat", Kind.POOL)].holds
    assert merge.pools["chat"].replica.concurrency == 4


def test_what_is_in_force_is_not_displaced_by_a_change_of_an_older_resource() -> None:
    merge = made(token_pool(), guaranteed("old", 4, created=1), guaranteed("new", 4, created=2))
    update(merge, guaranteed("old", 8, 2, created=1))
    assert refusal(merge, "old")[0] is Reason.OVERCOMMITTED
    assert [each.guarantee.concurrency for each in by_name(merge).values()] == [4, 4]


def test_between_new_resources_the_older_one_is_accepted() -> None:
    merge = made(token_pool(), guaranteed("new", 8, created=2), guaranteed("old", 8, created=1))
    assert set(by_name(merge)) == {"old"}
    update(merge, key("old"))
    assert set(by_name(merge)) == {"new"}


def test_a_new_leader_starts_with_the_versions_that_were_published() -> None:
    before = made(token_pool(), guaranteed("a", 4, created=1), guaranteed("b", 4, created=2))
    update(before, guaranteed("a", 8, 2, created=1), entitlement("c", weight=0))
    resources = [token_pool(), guaranteed("a", 8, 2, created=1), guaranteed("b", 4, created=2)]
    after = made(*resources, entitlement("c", weight=0), last=decode_file(encode_file(before.file())[1]))
    assert after.file() == before.file()
    assert "the published one" in refusal(after, "a")[1]


def test_a_published_version_without_an_object_is_not_taken_over() -> None:
    before = made(token_pool(), entitlement("a"), entitlement("b"))
    after = made(token_pool(), entitlement("b"), last=before.file())
    assert set(by_name(after)) == {"b"}


def test_a_deleted_object_is_gone_at_once() -> None:
    merge = made(token_pool(), entitlement("a", 2), guaranteed("b", 8))
    update(merge, entitlement("a", 3, weight=0))
    update(merge, key("a"), key("b"))
    assert by_name(merge) == {}
    assert merge.promised["chat"] == NOTHING
    assert key("a") not in merge.accepted


def test_without_its_pool_an_entitlement_waits() -> None:
    merge = made(token_pool(), guaranteed("a", 2))
    update(merge, key("chat", Kind.POOL))
    assert refusal(merge, "a")[0] is Reason.POOL_NOT_FOUND
    assert merge.file() == PoolFile((), ())
    update(merge, token_pool())
    assert set(by_name(merge)) == {"a"}


def test_a_smaller_guarantee_is_accepted_in_a_pool_that_promises_too_much() -> None:
    merge = made(token_pool(sequences=8), guaranteed("a", 4), guaranteed("b", 4))
    merge.pools["chat"] = merge.pools["chat"].__class__("chat")
    update(merge, guaranteed("a", 3, 2))
    assert by_name(merge)["a"].guarantee.concurrency == 3


def of_another_team(name: str, *, accepted: int | None = None, created: int = 0, **spec: Any) -> Resource:
    """An entitlement of the same name in another namespace; ``accepted`` is its accepted generation."""
    made_ = entitlement(name, created=created, **spec)
    status = b"{}" if accepted is None else b'{"acceptedGeneration": %d}' % accepted
    return replace(made_, key=made_.key._replace(namespace="others"), uid="other", status=status)


@pytest.mark.parametrize("spec", [{}, {"weight": 0}])
@pytest.mark.parametrize("is_restart", [True, False])
def test_an_older_object_of_the_same_name_does_not_displace_the_one_in_force(
    spec: dict[str, Any], *, is_restart: bool
) -> None:
    refused, used = of_another_team("a", **spec), entitlement("a", created=1, apiKeys=[{"sha256": "a" * 64}])
    before = made(token_pool(), used)
    update(before, refused)
    if is_restart:
        known = replace(used, status=b'{"acceptedGeneration": 1}')
        after = made(token_pool(), refused, known, last=before.file())
    else:  # the pool file on disk changed, and the statuses are older than what is in force
        after = Merge(BASE, before.file(), before.in_force)
        update(after, token_pool(), replace(refused, status=b'{"acceptedGeneration": 1}'), used)
    assert set(after.in_force) == {key("chat", Kind.POOL), key("a")}
    assert keys_of(after, "a") == {"a" * 64}
    assert after.accepted[key("a")].holds
    assert not after.accepted[refused.key].holds


def test_an_object_that_replaces_a_deleted_one_inherits_nothing() -> None:
    merge = made(token_pool(), entitlement("a", apiKeys=[{"sha256": "a" * 64}]))
    update(merge, replace(entitlement("a", weight=0), uid="new"))
    assert by_name(merge) == {}
    update(merge, replace(entitlement("a", 2), uid="new"))
    assert keys_of(merge, "a") == set()


def test_entitlements_stay_in_a_pool_that_is_deleted_and_made_again() -> None:
    merge = made(token_pool(), guaranteed("a", 2))
    update(merge, replace(token_pool(sequences=4), uid="new"))
    assert by_name(merge)["a"].guarantee.concurrency == 2
    assert merge.promised["chat"].concurrency == 2


# --- keys ---
REF = {"secretRef": {"name": "keys", "key": "a"}}


def test_a_key_of_a_secret_is_hashed_and_follows_the_secret() -> None:
    merge = made(token_pool(), entitlement("a", apiKeys=[REF, {"sha256": digest("inline")}]))
    assert merge.secrets == {secret()}
    assert merge.resolved[key("a")].reason is Reason.SECRET_UNREADABLE
    assert keys_of(merge, "a") == {digest("inline")}
    update(merge, secrets={secret(): SecretState({"a": digest("one"), "b": digest("other")})})
    assert keys_of(merge, "a") == {digest("inline"), digest("one")}
    assert merge.resolved[key("a")].holds
    update(merge, secrets={secret(): SecretState({"a": digest("two")})})
    assert keys_of(merge, "a") == {digest("inline"), digest("two")}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (SecretState({}, exists=False), Reason.SECRET_NOT_FOUND),
        (SecretState({"b": digest("one")}), Reason.SECRET_KEY_MISSING),
    ],
)
def test_a_key_that_is_gone_is_revoked_alone(state: SecretState, reason: Reason) -> None:
    merge = made(token_pool(), entitlement("a", apiKeys=[REF, {"sha256": digest("inline")}]))
    update(merge, secrets={secret(): SecretState({"a": digest("one")})})
    update(merge, secrets={secret(): state})
    assert keys_of(merge, "a") == {digest("inline")}
    assert merge.accepted[key("a")].holds
    assert merge.resolved[key("a")].reason is reason
    assert "spec.apiKeys[0].secretRef" in merge.resolved[key("a")].message


def test_a_secret_that_cannot_be_read_keeps_its_keys() -> None:
    merge = made(token_pool(), entitlement("a", apiKeys=[REF]))
    update(merge, secrets={secret(): SecretState({"a": digest("one")})})
    update(merge, secrets={secret(): SecretState({"a": digest("one")}, problem="403 forbidden")})
    assert keys_of(merge, "a") == {digest("one")}
    assert "403 forbidden" in merge.resolved[key("a")].message


def test_a_new_leader_keeps_published_keys_until_it_has_read_the_secrets() -> None:
    before = made(token_pool(), entitlement("a", apiKeys=[REF]))
    update(before, secrets={secret(): SecretState({"a": digest("one")})})
    after = made(token_pool(), entitlement("a", apiKeys=[REF]), last=before.file())
    assert keys_of(after, "a") == {digest("one")}
    update(after, secrets={secret(): SecretState({}, problem="403", is_unread=True)})
    assert keys_of(after, "a") == {digest("one")}
    update(after, secrets={secret(): SecretState({}, exists=False)})
    assert keys_of(after, "a") == set()


def test_a_key_belongs_to_one_entitlement() -> None:
    shared = [{"sha256": digest("shared")}]
    merge = made(
        token_pool(), entitlement("a", apiKeys=shared, created=1), entitlement("b", apiKeys=shared, created=2)
    )
    assert (keys_of(merge, "a"), keys_of(merge, "b")) == ({digest("shared")}, set())
    verdict = merge.resolved[key("b")]
    assert verdict.reason is Reason.KEY_TAKEN
    assert verdict.message.startswith("spec.apiKeys[0] is also a key of Entitlement tenants/a; give each")
    update(merge, key("a"))
    assert keys_of(merge, "b") == {digest("shared")}
    assert merge.resolved[key("b")].holds


def test_entitlements_of_one_namespace_with_different_models_may_have_a_common_key() -> None:
    spec = {"pool": "filed", "tier": "elastic", "apiKeys": [{"sha256": digest("common")}]}
    base = replace(BASE, pools=(replace(BASE.pools[0], models=("*",)),))
    one = entitlement("one", **spec, models=["base"])
    two = entitlement("two", created=1, **spec, models=["adapter"])
    merge = made(one, two, base=base)

    assert keys_of(merge, "one") == keys_of(merge, "two") == {digest("common")}

    update(merge, entitlement("two", 2, created=1, **spec, models=["adapter", "base"]))
    assert keys_of(merge, "one") == {digest("common")}
    assert keys_of(merge, "two") == set()
    assert merge.resolved[two.key].reason is Reason.KEY_TAKEN
    assert "models of which none is in both" in merge.resolved[two.key].message

    update(merge, entitlement("one", 2, **spec, models=["other"]))
    assert keys_of(merge, "one") == keys_of(merge, "two") == {digest("common")}


def test_entitlements_of_two_namespaces_have_no_common_key() -> None:
    spec = {"pool": "filed", "tier": "elastic", "apiKeys": [{"sha256": digest("common")}]}
    base = replace(BASE, pools=(replace(BASE.pools[0], models=("*",)),))
    mine = entitlement("one", **spec, models=["base"])
    theirs = entitlement("two", created=1, **spec, models=["adapter"])
    theirs = replace(theirs, key=Key(Kind.ENTITLEMENT, "elsewhere", "two"))

    merge = made(mine, theirs, base=base)

    assert keys_of(merge, "one") == {digest("common")}
    assert keys_of(merge, "two") == set()


def test_a_model_that_the_pool_does_not_serve_is_refused() -> None:
    reason, said = refusal(
        made(entitlement("one", pool="filed", tier="elastic", models=["missing"]), base=BASE), "one"
    )

    assert reason is Reason.INVALID
    assert "spec.models has 'missing', which pool 'filed' does not serve" in said


def test_a_key_of_the_pool_file_cannot_be_taken() -> None:
    merge = made(entitlement("x", pool="filed", apiKeys=[{"sha256": digest("first-key")}]), base=BASE)
    assert keys_of(merge, "x") == set()
    assert "is also a key of the pool file" in merge.resolved[key("x")].message


def test_secrets_that_no_entitlement_names_are_not_read() -> None:
    merge = made(token_pool(), entitlement("a", apiKeys=[REF]), entitlement("b", apiKeys=[REF]))
    update(merge, entitlement("a", 2))
    assert merge.secrets == {secret()}
    update(merge, key("b"))
    assert merge.secrets == set()


def test_changes_name_the_resources_that_changed() -> None:
    merge = made(token_pool(), entitlement("a"), entitlement("b"))
    merge.taken()
    revision = merge.revision
    update(merge, entitlement("a", 2, weight=0))
    assert merge.taken() == (set(), {key("a")})
    assert merge.revision == revision
    update(merge, entitlement("a", 3, weight=2))
    assert merge.taken() == ({key("a")}, {key("a")})
    assert merge.revision > revision


# --- any history ---
names = st.sampled_from("abcd")
specs = st.one_of(
    st.builds(
        lambda sequences, pool, number: {
            "pool": pool,
            "tier": "guaranteed",
            "guarantee": {"concurrency": sequences},
            "apiKeys": [{"sha256": digest(str(number))}],
        },
        st.integers(1, 9),
        st.sampled_from(["chat", "filed", "none"]),
        st.integers(1, 3),
    ),
    st.just({"pool": "chat", "tier": "elastic", "apiKeys": [REF]}),
    st.just({"pool": "chat", "tier": "elastic", "weight": 0}),
)
steps = st.one_of(
    st.tuples(st.just("put"), names, specs),
    st.tuples(st.just("delete"), names, st.none()),
    st.tuples(st.just("pool"), st.just("chat"), st.integers(0, 12)),
    st.tuples(st.just("secret"), st.just("keys"), st.sampled_from(["1", "2", ""])),
)


def play(merge: Merge, history: list[Any], check: Callable[[str], None]) -> dict[str, Resource]:
    objects: dict[str, Resource] = {}
    for number, (what, name, value) in enumerate(history, 1):
        if what == "put":
            objects[name] = resource(Kind.ENTITLEMENT, name, value, number, ord(name))
            update(merge, objects[name])
        elif what == "delete":
            objects.pop(name, None)
            update(merge, key(name))
        elif what == "pool":
            gone = key("chat", Kind.POOL)
            update(merge, token_pool(sequences=value, generation=number) if value else gone)
        else:
            state = SecretState({"a": digest(value)}) if value else SecretState({}, exists=False)
            update(merge, secrets={secret(): state})
        check(name)
    return objects


@given(st.lists(steps, max_size=25))
@settings(max_examples=200)
def test_a_merged_file_is_always_valid_and_a_step_changes_one_resource(history: list[Any]) -> None:
    merge = Merge(BASE)
    before: dict[Key, Any] = {}

    def check(name: str) -> None:
        file = merge.file()
        assert len({each.name for each in file.entitlements}) == len(file.entitlements)
        for pool in file.pools:
            promised = sum((e.guarantee for e in file.entitlements_of(pool.name)), NOTHING)
            assert all(
                promised.get(d) <= most * 1.001 for d, most in zip(Dimension, capacity(pool), strict=True)
            )
            assert merge.promised.get(pool.name, NOTHING).concurrency == pytest.approx(promised.concurrency)
        assert {each.pool for each in file.entitlements} <= {each.name for each in file.pools}
        digests = [
            hashlib.sha256(b"first-key").hexdigest() if ref.value == "first-key" else ref.value
            for each in file.entitlements
            for ref in each.api_keys
        ]
        assert len(set(digests)) == len(digests)
        if name in "abcd":
            # Another one in force may only gain: a key, or a version that waited for room.
            for other, kept in before.items():
                now = merge.in_force.get(other)
                if other.name != name and other in merge.in_force and kept.generation == now.generation:  # type: ignore[union-attr]
                    assert now.record.name == kept.record.name  # type: ignore[union-attr]
                assert other.name == name or other in merge.in_force
        before.clear()
        before.update(merge.in_force)

    objects = play(merge, history, check)
    assert {each.key for each in objects.values()} == {
        k for k in merge.resources if k.kind is Kind.ENTITLEMENT
    }
    update(merge, *[each.key for each in objects.values()])
    assert [each.name for each in merge.file().entitlements] == ["first"]
    assert merge.promised.get("chat", NOTHING).concurrency == pytest.approx(0)


# --- groups ---
GROUPED = parse(
    """
pools:
  - {name: filed, models: [tiny], replica: {concurrency: 8}, replicas: {max: 2}}
  - {name: other, models: [tiny], replica: {concurrency: 8}}
groups:
  - {name: acme, pool: filed, guarantee: {concurrency: 12}}
  - {name: lab, pool: filed, parent: acme, ceiling: {concurrency: 4}}
  - {name: small, pool: filed}
entitlements:
  - {name: first, pool: filed, group: acme, tier: guaranteed, guarantee: {concurrency: 4}, api_keys: [k]}
"""
).file


def member(name: str, sequences: int, group: str, generation: int = 1, **values: Any) -> Resource:
    spec = {"pool": "filed", "group": group, "guarantee": {"concurrency": sequences}, "tier": "guaranteed"}
    return entitlement(name, generation=generation, **(spec | values))


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (member("x", 1, "acne"), Reason.GROUP_NOT_FOUND, "use one of: acme, lab, small"),
        (member("x", 1, "acme", pool="other"), Reason.GROUP_NOT_FOUND, "no group of pool 'other'"),
        (member("x", 9, "acme"), Reason.OVERCOMMITTED, "of group 'acme' would promise 13 concurrency"),
        (member("x", 5, "lab"), Reason.OVERCOMMITTED, "of group 'lab' would promise 5 concurrency, but the"),
        (member("x", 5, "small"), Reason.OVERCOMMITTED, "pool 'filed' would promise 17 concurrency"),
    ],
)
def test_a_resource_in_a_group_is_checked_against_the_group(
    bad: Resource, reason: Reason, message: str
) -> None:
    merge = made(bad, base=GROUPED)
    assert refusal(merge, "x")[0] is reason
    assert message in refusal(merge, "x")[1]


def test_the_guarantee_of_a_group_counts_into_the_pool_once() -> None:
    merge = made(member("a", 8, "acme"), member("b", 4, "small"), base=GROUPED)
    assert merge.promised["filed"].concurrency == 16
    assert merge.members["acme"].concurrency == 12
    assert {"a", "b"} <= set(by_name(merge))
    # Within its group a guarantee may move, although the pool promises all it has.
    update(merge, member("a", 4, "lab", 2))
    assert by_name(merge)["a"].group == "lab"
    assert (merge.members["lab"].concurrency, merge.members["acme"].concurrency) == (4, 8)
    update(merge, member("a", 4, "small", 3))
    assert refusal(merge, "a")[0] is Reason.OVERCOMMITTED
    assert by_name(merge)["a"].group == "lab"
    assert merge.promised["filed"].concurrency == 16
    assert merge.file().groups == GROUPED.groups
