"""The pool file: each mistake is reported with its line and fix, and no other error is raised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenpool.amounts import UNBOUNDED, Amount
from tokenpool.entitlements import KeyRef, KeySource, Prices, ReplicaCapacity, Tier
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse

ROOT = Path(__file__).parents[4]
GOOD = """\
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: auto, concurrency: 8}
    replicas: {min: 1, max: 2}
entitlements:
  - name: gold
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 500, kv_tokens: 1000, concurrency: 4}
    ceiling: {concurrency: 8}
    slo: {ttft_ms: 300}
    api_keys: [{env: GOLD_KEY}]
  - name: rest
    pool: chat
    tier: spot
    api_keys: [{file: /etc/keys/rest}]
anonymous: reject
"""


def test_a_good_file_becomes_records() -> None:
    file = parse(GOOD).file
    gold, rest = file.entitlements
    assert file.pool("chat").replica == ReplicaCapacity(1000, None, 8)
    assert (gold.tier, gold.guarantee) == (Tier.GUARANTEED, Amount(500, 1000, 4))
    assert (gold.ceiling.concurrency, rest.ceiling) == (8, UNBOUNDED)
    assert rest.api_keys == (KeyRef(KeySource.FILE, "/etc/keys/rest", 17),)
    assert file.anonymous is None
    with pytest.raises(KeyError):
        file.pool("other")


def test_prices_in_money_are_per_million_tokens_and_a_cached_token_costs_at_most_the_whole() -> None:
    text = GOOD.replace("    replicas:", "    prices: {currency: EUR, input: 2, output: 8}\n    replicas:")

    prices = parse(text).file.pool("chat").prices

    assert prices == Prices("EUR", input=2.0, cached_input=2.0, output=8.0)
    assert prices.cost(1_500_000, 500_000, 250_000) == 5.0
    assert parse(GOOD).file.pool("chat").prices is None


def test_administrators_have_keys_of_their_own() -> None:
    text = GOOD + "administrator_keys: [{env: ROOT}, 'sha256:" + "A" * 64 + "', root]\n"

    parsed = parse(text)

    first, second, third = parsed.file.administrator_keys
    assert (first, second) == (
        KeyRef(KeySource.ENV, "ROOT", 19),
        KeyRef(KeySource.SHA256, "a" * 64, 19),
    )
    assert third.source is KeySource.PLAIN
    assert "administrators: 3 keys" in explain(parsed)
    assert [w.message for w in parsed.warnings if "plain" in w.message] == [
        "a key of the administrators is in plain text"
    ]
    assert "root" not in encode_file(parsed.file)[1].decode("latin-1")
    assert decode_file(encode_file(parsed.file)[1]).administrator_keys[0] == KeyRef(KeySource.ENV, "ROOT")


LONG = "api_keys: [{env: GOLD_KEY, id: gold-1, expires: 2027-01-31T18:00:00+01:00, concurrency: 2}]"


def test_a_key_may_have_an_id_an_expiry_and_a_limit_of_its_own() -> None:
    parsed = parse(GOOD.replace("api_keys: [{env: GOLD_KEY}]", LONG))

    [key] = parsed.file.entitlements[0].api_keys

    assert key == KeyRef(KeySource.ENV, "GOLD_KEY", 13, "gold-1", 1801414800.0, 2)
    published = decode_file(encode_file(parsed.file)[1]).entitlements[0].api_keys
    assert published == (KeyRef(KeySource.ENV, "GOLD_KEY", 0, "gold-1", 1801414800.0, 2),)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("{id: a}", "must name one of sha256, env and file"),
        ("{env: A, file: b}", "must name one of sha256, env and file"),
        ("{sha256: abc}", "sha256 is not a SHA-256 digest"),
        ("{env: A, id: 'a b'}", "id is 'a b', which is not an id"),
        ("{env: A, expires: 2027-01-31}", "expires is not a point in time"),
        ("{env: A, expires: 2027-01-31T18:00:00}", "expires has no zone"),
        ("{env: A, expires: 2027-31-31T18:00:00Z}", "expires is not a point in time"),
        ("{env: A, expires: [1]}", "expires is not a point in time but a list"),
        ("{env: A, expires: soon}", "expires is not a point in time but 'soon'"),
        ("{env: A, concurrency: 0}", "concurrency is 0"),
        ("{env: A, concurrency: 1.5}", "concurrency is 1.5"),
        ("{env: A, id: one}, {env: B, id: one}, {env: C, id: two}", "the id 'one' of a key of 'gold'"),
    ],
)
def test_a_wrong_key_is_an_error(key: str, words: str) -> None:
    text = GOOD.replace("{env: GOLD_KEY}", key.replace("}, {", "}\n      , {"))
    with pytest.raises(PoolFileError, match=re.escape(words)):
        parse(text)


def test_the_documented_example_is_valid_and_explained() -> None:
    text = explain(parse((ROOT / "docs/examples/pool.yaml").read_text()))
    assert "checkout: guaranteed, weight 1, 1 keys" in text
    assert "ceiling    6 concurrency" in text


@pytest.mark.parametrize(
    ("tier", "field", "is_preemptible"),
    [
        ("spot", "", True),
        ("spot", "preemptible: true", True),
        ("spot", "preemptible: no", False),
        ("elastic", "", False),
        ("elastic", "preemptible: false", False),
    ],
)
def test_spot_is_preemptible_unless_the_file_says_otherwise(
    tier: str, field: str, is_preemptible: bool
) -> None:
    parsed = parse(GOOD.replace("tier: spot", f"tier: {tier}\n    {field}"))
    rest = parsed.file.entitlements[1]
    assert rest.is_preemptible is is_preemptible
    if tier == "spot":
        assert f"requests {'may be' if is_preemptible else 'are never'} ended for a guarantee" in explain(
            parsed
        )


DIGEST = "0" * 63
# The old and the new text in the good file; then the line, words of the message, and words of the fix.
BAD: list[tuple[str, str, int, str, str]] = [
    ("tier: spot", "tire: spot", 16, "entitlements[1].tire is not a known field", "did you mean 'tier'?"),
    ("tier: spot", "tire: spot", 14, "entitlements[1] has no tier", "add 'tier:'"),
    ("tier: spot", "tier: sport", 16, "is 'sport', which is not one of", "did you mean 'spot'?"),
    ("tier: spot", "tier: 3", 16, "is not a text but '3'", "in quotes"),
    ("tier: spot", "tier: spot\n    tier: spot", 17, "is given twice", "keep one"),
    ("anonymous: reject", "anonymous: who", 18, "is 'who', which is no entitlement", "gold, rest"),
    ("anonymous: reject", "anonimous: x", 18, "anonimous is not a known field", "'anonymous'"),
    ("name: rest", "name: gold", 14, "'gold' was defined on line 7 already", "rename"),
    ("name: rest", "name: Big Co", 14, "is 'Big Co'", "up to 63 of a-z"),
    ("pool: chat\n    tier: spot", "pool: chap\n    tier: spot", 15, "which is not defined", "chat"),
    ("models: [tiny]", "models: []", 3, "names no model", "any"),
    ("models: [tiny]", "models: tiny", 3, "is not a list but 'tiny'", "'- '"),
    ("kv_tokens: auto", "kv_tokens: 10GB", 4, "not a number but '10GB'", "without a unit"),
    ("tokens_per_second: 1000", "tokens_per_second: 0", 4, "is 0", "more than 0 tokens per second"),
    ("concurrency: 8}\n    replicas", "concurrency: .inf}\n    replicas", 4, "not a number", "plain"),
    ("{min: 1, max: 2}", "{min: 3, max: 2}", 5, "has min 3 above max 2", "at least min"),
    ("{min: 1, max: 2}", "{min: 0.5}", 5, "is 0.5", "at least 1"),
    ("{min: 1, max: 2}", "{min: 1.5}", 5, "is 1.5", "whole number of replicas"),
    ("{min: 1, max: 2}", "4", 5, "is not a mapping but '4'", "give it fields: min, max"),
    ("tokens_per_second: 500", "tokens_per_second: 5000", 2, "provide at most 2000", "lower guarantees"),
    ("ceiling: {concurrency: 8}", "ceiling: {concurrency: 2}", 11, "below its guarantee", "raise"),
    ("ceiling: {concurrency: 8}", "ceiling: {}", 11, "names no dimension", "leave the field out"),
    ("slo: {ttft_ms: 300}", "slo: {ttft_ms: -1}", 12, "is -1", "more than 0 milliseconds"),
    ("slo: {ttft_ms: 300}", "weight: 0", 12, "is 0", "more than 0"),
    ("slo: {ttft_ms: 300}", "output_estimate: 1.5", 12, "is 1.5", "below 1, or max"),
    ("slo: {ttft_ms: 300}", "output_estimate: most", 12, "not a number but 'most'", "or max"),
    ("[{env: GOLD_KEY}]", "['sha256:" + DIGEST + "']", 13, "is not a SHA-256 digest", "64 hex digits"),
    ("[{env: GOLD_KEY}]", "[{env: A, file: b}]", 13, "must name one of", "{env: VARIABLE}"),
    ("[{env: GOLD_KEY}]", "[{env: 7}]", 13, "is not a text but '7'", "quotes"),
    ("[{env: GOLD_KEY}]", "[12]", 13, "is not a text but '12'", "quotes"),
    ("[{env: GOLD_KEY}]", "[{file: /etc/keys/rest}]", 17, "is also a key of 'gold' on line 13", "own"),
    ("tier: spot", "tier: spot\n    guarantee: {concurrency: 1}", 17, "has a guarantee", "elastic"),
    ("slo: {ttft_ms: 300}", "preemptible: true", 12, "guaranteed requests are never preempted", "make the"),
    ("tier: spot", "tier: elastic\n    preemptible: true", 17, "elastic requests are never", "remove it"),
    ("tier: spot", "tier: spot\n    preemptible: 'yes'", 17, "neither true nor false but", "without quotes"),
    ("tier: spot", "tier: spot\n    preemptible: 1", 17, "neither true nor false but '1'", "true or false"),
    (
        "tier: spot",
        "tier: spot\n    preemptable: no",
        17,
        "is not a known field",
        "did you mean 'preemptible'?",
    ),
    ("tier: spot", "tier: guaranteed", 14, "has no guarantee", "make it elastic"),
    ("    replicas", "    pricing: {image_tokens: 0.5}\n    replicas", 5, "is 0.5", "whole number"),
    ("    replicas", "    pricing: {output_weight: no}\n    replicas", 5, "not a number", "token"),
    ("    replicas", "    prices: {input: 1}\n    replicas", 5, "has no currency", "currency:"),
    ("    replicas", "    prices: {currency: euro}\n    replicas", 5, "is 'euro'", "ISO 4217"),
    ("    replicas", "    prices: {currency: EUR, output: -1}\n    replicas", 5, "is -1", "at least 0"),
    ("    replicas", "    prices: {currency: EUR, inputs: 1}\n    replicas", 5, "inputs", "input"),
    ("pools:", "pools: &p", 0, "", ""),  # an anchor alone is no mistake
    ("anonymous: reject", "anonymous: *p", 18, "aliases", "write the value out"),
    ("anonymous: reject", "anonymous: [", 19, "not YAML", "syntax"),
    ("anonymous: reject\n", "anonymous: [", 18, "not YAML", "syntax"),
    (
        "anonymous: reject",
        "administrator_keys: [{env: GOLD_KEY}]",
        18,
        "a key of the administrators is also a key of 'gold' on line 13",
        "their own keys",
    ),
    ("anonymous: reject", "administrator_keys: root", 18, "is not a list but 'root'", "'- '"),
    ("anonymous: reject", "anonymous: \x00", 1, "not YAML", "not text"),
]


@pytest.mark.parametrize(("old", "new", "line", "message", "fix"), BAD)
def test_each_mistake_is_named_with_its_line_and_the_fix(
    old: str, new: str, line: int, message: str, fix: str
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if not line:
        parse(text)
        return
    with pytest.raises(PoolFileError) as caught:
        parse(text, name="p.yaml")
    found = [(p.line, p.message, p.fix) for p in caught.value.problems]
    assert any(at == line and message in said and fix in solution for at, said, solution in found), found
    assert f"p.yaml:{line}: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("a string", "is not a mapping"),
        ("pools: []\nentitlements: []", "pools is empty"),
        ("pools:\n  - {name: a, models: [b]}", "file has no entitlements"),
        ("#" * (17 << 20), "more than 16777216 characters"),
        ("[" * 1500 + "]" * 1500, "nested too deeply"),
        ("[" * 500_000, "nested too deeply"),
        ("- " * 21 + "x", "nested too deeply"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("b: *x", "aliases"),
    ],
)
def test_other_files_are_rejected(text: str, words: str) -> None:
    with pytest.raises(PoolFileError, match=re.escape(words)):
        parse(text)


def test_all_mistakes_are_reported_at_once() -> None:
    text = GOOD.replace("tier: spot", "tier: sport").replace("[tiny]", "[]").replace("300", "x")
    with pytest.raises(PoolFileError) as caught:
        parse(text)
    assert [p.line for p in caught.value.problems] == [3, 12, 16]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[{env: GOLD_KEY}]", "[secret]", 13, "plain text"),
        ("concurrency: 4}", "concurrency: 9}", 2, "1 replicas of 8 provide 8"),
        (", kv_tokens: 1000", "", 10, "does not name kv_tokens"),
        ("kv_tokens: 1000", "kv_tokens: 1000", 2, "a replica has auto"),
        ("\n    api_keys: [{file: /etc/keys/rest}]", "", 14, "has no api_keys"),
        ("entitlements:", "  - {name: idle, models: [x]}\nentitlements:", 6, "has no entitlement"),
    ],
)
def test_probable_mistakes_are_warnings(old: str, new: str, line: int, words: str) -> None:
    text = GOOD.replace("ceiling: {concurrency: 8}", "weight: 1").replace(old, new, 1)
    parsed = parse(text)
    assert any(w.line == line and words in w.message for w in parsed.warnings), parsed.warnings
    assert "secret" not in explain(parsed)


def test_promises_beyond_the_smallest_pool_are_a_warning() -> None:
    text = GOOD.replace("ceiling: {concurrency: 8}", "ceiling: {concurrency: 12}").replace(
        "concurrency: 4}", "concurrency: 12}"
    )
    assert any("until the pool has more replicas" in w.fix for w in parse(text).warnings)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "pools", "entitlements", "tier", "guarantee", "api_keys", "x"]), inner
        )
    ),
    max_leaves=15,
)


@given(st.text(max_size=200) | documents.map(repr))
@example("!!python/object:os.system {}")
@example("? [a]\n: b")
@example("pools: 2001-01-01\nentitlements: !!binary x")
def test_no_text_raises_another_error_than_a_pool_file_error(text: str) -> None:
    try:
        explain(parse(text))
    except PoolFileError as error:
        assert error.problems
        assert all(p.line >= 1 and p.message and p.fix for p in error.problems)


@given(st.data())
def test_no_damaged_file_raises_another_error(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        at = data.draw(st.integers(0, len(lines[index])))
        lines[index] = lines[index][:at] + data.draw(st.text(max_size=5)) + lines[index][at + 1 :]
    try:
        parse("\n".join(lines))
    except PoolFileError as error:
        assert error.problems
