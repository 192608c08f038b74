"""Groups in the pool file: each mistake has its line and fix, and guarantees add up through the tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount
from tokenpool.entitlements import Entitlement, Group, Tier, chain, from_the_bottom, promises
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile import PoolFileError, explain, parse
from tokenpool.poolfile.reading import parse_all

GOOD = """\
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: auto, concurrency: 8}
    replicas: {min: 2, max: 2}
  - name: other
    models: [small]
groups:
  - name: acme
    pool: chat
    guarantee: {tokens_per_second: 800, concurrency: 6}
    ceiling: {concurrency: 12}
    weight: 2
  - name: research
    pool: chat
    parent: acme
    ceiling: {concurrency: 8}
  - {name: elsewhere, pool: other}
entitlements:
  - name: search
    pool: chat
    tier: guaranteed
    group: acme
    guarantee: {tokens_per_second: 500, kv_tokens: 0, concurrency: 4}
    api_keys: [{env: A}]
  - name: lab
    pool: chat
    tier: elastic
    group: research
    guarantee: {concurrency: 2}
    api_keys: [{env: B}]
  - name: rest
    pool: chat
    tier: spot
    api_keys: [{env: C}]
  - name: small
    pool: other
    tier: elastic
    group: elsewhere
    api_keys: [{env: D}]
"""


def test_groups_become_records() -> None:
    file = parse(GOOD).file
    acme, research, _ = file.groups
    assert acme == Group(
        "acme", "chat", None, Amount(800, 0, 6), Amount(UNBOUNDED.kv_tokens, UNBOUNDED.kv_tokens, 12), 2.0
    )
    assert (research.parent, research.guarantee, research.weight) == ("acme", NOTHING, 1.0)
    assert [each.group for each in file.entitlements] == ["acme", "research", None, "elsewhere"]
    assert file.groups_of("chat") == (acme, research)


def test_groups_are_published() -> None:
    file = parse(GOOD).file
    assert decode_file(encode_file(file)[1]).groups == file.groups
    assert encode_file(file)[0] != encode_file(parse(GOOD.replace("weight: 2", "weight: 3")).file)[0]


def test_groups_of_several_files_add_up() -> None:
    head, _, rest = GOOD.partition("groups:\n")
    groups, _, entitlements = rest.partition("entitlements:\n")

    parts = [
        ("a.yaml", head + "entitlements:\n" + entitlements),
        ("b.yaml", "groups:\n" + groups),
        ("c.yaml", "groups: [{name: late, pool: chat, parent: none}]\n"),
    ]
    assert len(parse_all(parts[:2]).file.groups) == 3
    with pytest.raises(PoolFileError, match=r"c\.yaml:1: group 'late' has the parent 'none'"):
        parse_all(parts)


def test_groups_are_explained() -> None:
    text = explain(parse(GOOD))
    assert "  group acme: weight 2, 1 entitlements" in text
    assert "guarantee  800 tokens_per_second, 6 concurrency" in text
    assert "of members 500 tokens_per_second, 6 concurrency" in text
    assert "  group research in group acme: weight 1, 1 entitlements" in text
    assert "  lab in group research: elastic" in text
    # The pool promises what the top groups guarantee, not what their members do.
    assert "tokens_per_second          1000       2000       2000        800 (40 % of max)" in text


# The old and the new text in the good file; then the line, words of the message, and words of the fix.
BAD = [
    ("group: research", "group: reserch", 29, "'reserch', which is not defined", "acme, elsewhere, research"),
    ("group: acme", "group: elsewhere", 23, "of pool 'chat' is in group 'elsewhere' of pool 'other'", "same"),
    ("parent: acme", "parent: acne", 16, "has the parent 'acne', which is not defined", "acme"),
    ("parent: acme", "parent: elsewhere", 16, "has a parent of pool 'other'", "same pool"),
    ("parent: acme", "parent: research", 16, "groups form a cycle: 'research' in 'research'", "remove"),
    ("weight: 2", "parent: research", 13, "a cycle: 'acme' in 'research' in 'acme'", "remove the parent"),
    ("name: elsewhere, pool: other", "name: acme, pool: other", 18, "'acme' was defined on line 9", "rename"),
    ("elsewhere, pool: other", "elsewhere, pool: odd", 18, "in pool 'odd', which is not defined", "chat"),
    ("weight: 2", "weight: 0", 13, "groups[0].weight is 0", "more than 0"),
    ("weight: 2", "tier: spot", 13, "groups[0].tier is not a known field", "name"),
    ("    pool: chat\n    guarantee", "    guarantee", 9, "groups[0] has no pool", "add 'pool:'"),
    (
        "guarantee: {tokens_per_second: 800, concurrency: 6}",
        "guarantee: {tokens_per_second: 800, concurrency: 5}",
        11,
        "the members of group 'acme' promise 6 concurrency, but the group guarantees 5",
        "raise the guarantee of the group",
    ),
    (
        "    ceiling: {concurrency: 12}",
        "    ceiling: {concurrency: 5}",
        12,
        "below its guarantee of 6",
        "lower",
    ),
    (
        "    ceiling: {concurrency: 8}",
        "    ceiling: {concurrency: 1}",
        17,
        "below its guarantee of 2",
        "raise",
    ),
    ("tokens_per_second: 800", "tokens_per_second: 8000", 2, "promises 8000 tokens_per_second", "lower"),
    ("groups:\n", "groups: []\nx:\n", 8, "groups is empty", "at least one"),
]


@pytest.mark.parametrize(("old", "new", "line", "message", "fix"), BAD)
def test_each_mistake_is_named_with_its_line_and_the_fix(
    old: str, new: str, line: int, message: str, fix: str
) -> None:
    assert old in GOOD
    with pytest.raises(PoolFileError) as caught:
        parse(GOOD.replace(old, new, 1))
    found = [(p.line, p.message, p.fix) for p in caught.value.problems]
    assert any(at == line and message in said and fix in solution for at, said, solution in found), found


def test_the_depth_of_groups_is_bounded() -> None:
    deeper = "".join(
        f"  - {{name: g{n}, pool: chat, parent: {f'g{n - 1}' if n else 'research'}}}\n" for n in range(3)
    )
    with pytest.raises(PoolFileError, match="group 'g2' has 4 groups above it; use at most 4 levels"):
        parse(GOOD.replace("entitlements:\n", deeper + "entitlements:\n", 1))


def test_probable_mistakes_are_warnings() -> None:
    text = GOOD.replace("tier: elastic\n    group: research", "tier: elastic\n    ceiling: {concurrency: 9}")
    found = {(w.line, w.message) for w in parse(text).warnings}
    assert (14, "group 'research' has no members") in found
    text = GOOD.replace("group: research", "group: research\n    ceiling: {concurrency: 9}")
    [warning] = [w for w in parse(text).warnings if "ceiling" in w.message]
    assert (warning.line, warning.fix) == (
        30,
        "the ceiling of the group holds: lower this one, or raise that of the group",
    )


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Entitlement], list[Group]]:
    amounts = st.builds(Amount, *[st.integers(0, 9).map(float)] * 3)
    groups: list[Group] = []
    for n in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from([None, *(g.name for g in groups)]))
        groups.append(Group(f"g{n}", "pool", parent, draw(st.just(NOTHING) | amounts)))
    names = [None, "unknown", *(g.name for g in groups)]
    entitlements = [
        Entitlement(
            f"e{n}", "pool", Tier.ELASTIC, guarantee=draw(amounts), group=draw(st.sampled_from(names))
        )
        for n in range(draw(st.integers(0, 6)))
    ]
    return entitlements, draw(st.permutations(groups))


@given(trees())
def test_guarantees_add_up_through_the_tree(tree: tuple[list[Entitlement], list[Group]]) -> None:
    entitlements, groups = tree
    by_name = {group.name: group for group in groups}
    sums = promises(entitlements, groups)

    order = [group.name for group in from_the_bottom(groups)]
    for group in groups:
        assert group.parent is None or order.index(group.name) < order.index(group.parent)
        expected = NOTHING
        for each in entitlements:
            if each.group == group.name:
                expected += each.guarantee
        for other in groups:
            if other.parent == group.name:
                expected += sums.of(other)
        assert sums.members[group.name] == expected
    if all(group.guarantee == NOTHING for group in groups):
        total = NOTHING
        for each in entitlements:
            total += each.guarantee
        assert sums.total == total
    assert all(chain(name, by_name)[-1].parent is None for name in by_name)
