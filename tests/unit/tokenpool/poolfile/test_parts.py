"""A pool file in several parts: lists add up, and each problem names its file and line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.poolfile import PoolFileError, explain, parse
from tokenpool.poolfile.problems import Sources
from tokenpool.poolfile.reading import parse_all

POOL = """\
pools:
  - {name: chat, models: [m], replica: {concurrency: 8}}
"""
TENANT = """\
entitlements:
  - name: NAME
    pool: chat
    tier: elastic
    api_keys: [KEY]
"""
DIGESTS = {name: "sha256:" + digit * 64 for name, digit in (("a", "1"), ("b", "2"), ("c", "3"))}


def tenant(name: str, key: str | None = None) -> str:
    return TENANT.replace("NAME", name).replace("KEY", key or DIGESTS[name])


def errors(*documents: tuple[str, str]) -> list[str]:
    with pytest.raises(PoolFileError) as raised:
        parse_all(documents)
    return str(raised.value).splitlines()


def test_pools_and_entitlements_add_up_in_the_order_of_the_parts() -> None:
    more = POOL.replace("chat", "embed")
    parsed = parse_all(
        [("0.yaml", POOL), ("a.yaml", tenant("a")), ("b.yaml", more + tenant("b") + "anonymous: a\n")]
    )
    assert [pool.name for pool in parsed.file.pools] == ["chat", "embed"]
    assert [each.name for each in parsed.file.entitlements] == ["a", "b"]
    assert parsed.file.anonymous == "a"


@given(st.lists(st.booleans(), min_size=2, max_size=2))
def test_parts_are_read_as_the_whole(cuts: list[bool]) -> None:
    items = [tenant(name).partition("\n")[2] for name in "abc"]
    whole = parse(POOL + "entitlements:\n" + "".join(items)).file
    documents, current = [("0.yaml", POOL)], "entitlements:\n" + items[0]
    for is_cut, item in zip(cuts, items[1:], strict=True):
        if is_cut:
            documents.append((f"{len(documents)}.yaml", current))
            current = "entitlements:\n"
        current += item
    documents.append((f"{len(documents)}.yaml", current))
    parts = parse_all(documents).file
    assert parts.pools == whole.pools
    assert [each.name for each in parts.entitlements] == [each.name for each in whole.entitlements]


def test_a_name_in_two_files_names_both_places() -> None:
    assert errors(
        ("0.yaml", POOL), ("a.yaml", tenant("a")), ("b.yaml", "\n" + tenant("a", DIGESTS["b"]))
    ) == ["b.yaml:3: entitlement 'a' was defined on a.yaml:2 already; rename one"]
    assert errors(("0.yaml", POOL), ("1.yaml", POOL + tenant("a"))) == [
        "1.yaml:2: pool 'chat' was defined on 0.yaml:2 already; rename one"
    ]


def test_a_key_in_two_files_names_both_places() -> None:
    [error] = errors(("0.yaml", POOL), ("a.yaml", tenant("a")), ("b.yaml", tenant("b", DIGESTS["a"])))
    assert error.startswith("b.yaml:5: a key of 'b' is also a key of 'a' on a.yaml:5; ")


@pytest.mark.parametrize("field", ["anonymous: a", f"administrator_keys: ['{DIGESTS['c']}']"])
def test_a_field_of_the_whole_file_is_given_once(field: str) -> None:
    name = field.partition(":")[0]
    assert errors(("0.yaml", f"{POOL}{field}\n"), ("a.yaml", f"{tenant('a')}{field}\n")) == [
        f"a.yaml:6: {name} is given on 0.yaml:3 already; keep one of the two"
    ]


def test_each_problem_is_found_in_its_file() -> None:
    bad = tenant("b").replace("elastic", "silver")
    assert errors(("0.yaml", POOL), ("a.yaml", tenant("a")), ("b.yaml", bad)) == [
        "b.yaml:4: entitlements[0].tier is 'silver', which is not one of guaranteed, elastic, spot;"
        " use one of guaranteed, elastic, spot"
    ]
    unknown = tenant("b").replace("chat", "embed")
    assert errors(("0.yaml", POOL), ("a.yaml", tenant("a")), ("b.yaml", unknown)) == [
        "b.yaml:3: entitlement 'b' is in pool 'embed', which is not defined; define it, or use one of: chat"
    ]
    assert errors(("0.yaml", POOL), ("a.yaml", tenant("a") + "speed: 3\n"))[0].startswith(
        "a.yaml:6: speed is"
    )


def test_a_part_that_is_no_yaml_is_the_only_problem() -> None:
    """Its entitlements and pools seem to be missing, and are not reported."""
    found = errors(("0.yaml", "pools: [\n"), ("a.yaml", tenant("a")), ("b.yaml", ""))
    assert [each.partition(": ")[0] for each in found] == ["0.yaml:2", "b.yaml:1"]


def test_a_list_that_no_part_has_is_named() -> None:
    assert errors(("a.yaml", tenant("a")), ("b.yaml", tenant("b")))[0] == (
        "a.yaml:1: no file has pools; add 'pools:' to one of the files"
    )


def test_warnings_name_the_file() -> None:
    parsed = parse_all([("0.yaml", POOL), ("a.yaml", tenant("a", "plain"))])
    assert [(each.file, each.line) for each in parsed.warnings] == [("a.yaml", 5)]
    assert "warning: a.yaml:5: a key of 'a' is in plain text; " in explain(parsed)


def test_places_of_lines() -> None:
    sources = Sources.of([("a", "1\n2"), ("b", ""), ("c", "1\n")])
    assert [sources.where(line) for line in range(1, 6)] == ["a:1", "a:2", "b:1", "c:1", "c:2"]
    assert Sources.of([("a", "1\n2")]).where(2) == "line 2"
