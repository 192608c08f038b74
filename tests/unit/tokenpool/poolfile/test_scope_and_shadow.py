"""The fields ``enforce``, ``models`` and ``flex``: what they accept, and what they say otherwise."""

from __future__ import annotations

import pytest

from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile import PoolFileError, explain, parse

POOL = """\
pools:
  - {{name: chat, models: [base, adapter, other], replica: {{concurrency: 8}}{pool}}}
  - {{name: second, models: [base], replica: {{concurrency: 8}}}}
entitlements:
  - {{name: one, pool: chat, tier: elastic, api_keys: [{{env: ONE}}]{one}}}
  - {{name: two, pool: chat, tier: elastic, api_keys: [{{env: {key}}}]{two}}}
  - {{name: batch, pool: chat, tier: spot{batch}}}
  - {{name: third, pool: second, tier: spot, api_keys: [{{env: THIRD}}]}}
"""


def text(*, pool: str = "", one: str = "", two: str = "", batch: str = "", key: str = "TWO") -> str:
    """The pool file with more fields. ``key`` is the key of the second entitlement."""
    return POOL.format(pool=pool, one=one, two=two, batch=batch, key=key)


def errors(source: str) -> list[str]:
    with pytest.raises(PoolFileError) as raised:
        parse(source)
    return str(raised.value).splitlines()


def test_enforce_is_on_unless_the_pool_or_the_entitlement_turns_it_off() -> None:
    file = parse(text(pool=", enforce: false", one=", enforce: false")).file

    assert (file.pools[0].enforce, file.pools[1].enforce) == (False, True)
    assert [each.enforce for each in file.entitlements] == [False, True, True, True]
    assert decode_file(encode_file(file)[1]).pools == file.pools
    assert decode_file(encode_file(file)[1]).entitlements[0].enforce is False
    assert "2: pools[0].enforce is neither" in errors(text(pool=", enforce: 'no'"))[0]


def test_a_pool_that_is_not_enforced_and_refuses_callers_is_a_warning() -> None:
    source = text(pool=", enforce: false")

    said = [each for each in parse(source).warnings if "enforce: false" in each.message]

    assert [each.line for each in said] == [2]
    assert "anonymous" in said[0].fix
    named = parse(source + "anonymous: batch\n")
    assert not any("enforce: false" in each.message for each in named.warnings)
    elsewhere = parse(source + "anonymous: third\n")
    assert any("enforce: false" in each.message for each in elsewhere.warnings)


def test_a_key_may_belong_to_entitlements_of_one_pool_with_disjoint_models() -> None:
    file = parse(text(one=", models: [base]", two=", models: [adapter, other]", key="ONE")).file

    assert [each.models for each in file.entitlements[:2]] == [("base",), ("adapter", "other")]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("", ""),
        (", models: [base]", ""),
        ("", ", models: [base]"),
        (", models: [base, adapter]", ", models: [adapter, other]"),
    ],
)
def test_any_other_common_key_is_an_error_with_its_line(one: str, two: str) -> None:
    (said,) = errors(text(one=one, two=two, key="ONE"))

    assert said.startswith("pool.yaml:6:")
    assert "a key of 'two' is also a key of 'one' on line 5" in said
    assert "if their models have none in common" in said


def test_a_key_of_entitlements_in_two_pools_is_an_error() -> None:
    source = text(one=", models: [adapter]").replace("{env: THIRD}]", "{env: ONE}], models: [base]")

    assert any("'third' is also a key of 'one'" in each for each in errors(source))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (", models: [missing]", "names model 'missing', which pool 'chat' does not serve"),
        (", models: []", "names no model"),
        (", models: ['*']", "names '*'"),
        (", models: base", "entitlements[0].models"),
        (", flex: nobody", "which is no spot entitlement of its pool; add one, or use one of: batch"),
        (", flex: two", "which is no spot entitlement of its pool"),
        (", flex: third", "which is no spot entitlement of its pool"),
    ],
)
def test_a_wrong_scope_is_an_error_with_its_line(one: str, said: str) -> None:
    found = errors(text(one=one))

    assert all(each.startswith("pool.yaml:5:") for each in found)
    assert any(said in each for each in found)


def test_flex_names_a_spot_entitlement_with_at_least_the_same_models() -> None:
    good = text(one=", flex: batch, models: [base]", batch=", models: [base, other]")
    assert parse(good).file.entitlements[0].flex == "batch"
    assert not any("'batch' has no api_keys" in each.message for each in parse(good).warnings)

    for one in (", flex: batch", ", flex: batch, models: [adapter]"):
        (said,) = errors(text(one=one, batch=", models: [base, other]"))
        assert "may not use all of its models" in said
    assert "no tier is lower than spot" in errors(text(batch=", flex: third"))[0]


def test_the_explanation_shows_the_fields() -> None:
    said = explain(
        parse(text(pool=", enforce: false", one=", models: [base], flex: batch, enforce: false"))
    ).splitlines()

    assert "  not enforced: decisions are only counted and shown" in said
    assert "    models     base" in said
    assert "    flex       batch serves requests with service_tier: flex" in said
    assert "    enforced   no: decisions are only counted and shown" in said
