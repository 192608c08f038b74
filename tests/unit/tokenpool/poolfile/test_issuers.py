"""Issuers in the pool file: each mistake is reported with its line and fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tokenpool.entitlements import ClaimRule, Issuer
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse, parse_all

BASE = """\
pools:
  - {name: chat, models: [tiny]}
entitlements:
  - {name: gold, pool: chat, tier: elastic}
  - {name: rest, pool: chat, tier: spot}
"""
GOOD = """\
issuers:
  - name: corp
    issuer: https://login.example.com/realms/ai
    audience: tokenpool
    entitlements:
      - {claim: groups, value: ml, entitlement: gold}
      - {claim: [realm_access, roles], value: spot, entitlement: rest}
      - {claim: tenant}
  - name: cluster
    issuer: https://kubernetes.default.svc.cluster.local
    jwks_url: https://kubernetes.default.svc/openid/v1/jwks
    ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    token_file: /var/run/secrets/kubernetes.io/serviceaccount/token
    audience: [tokenpool, "https://tokenpool.example"]
    algorithms: [RS256, ES256, PS512]
    clock_skew_s: 0
    subject_claim: [kubernetes.io, serviceaccount, uid]
    entitlements: [{entitlement: rest}]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(PoolFileError) as caught:
        parse(BASE + text)
    return [problem.render("p") for problem in caught.value.problems]


def test_issuers_become_records() -> None:
    parsed = parse(BASE + GOOD)
    corp, cluster = parsed.file.issuers

    assert not parsed.warnings
    assert corp.rules == (
        ClaimRule(("groups",), "ml", "gold", 11),
        ClaimRule(("realm_access", "roles"), "spot", "rest", 12),
        ClaimRule(("tenant",), None, None, 13),
    )
    assert (corp.audiences, corp.algorithms, corp.clock_skew_s) == (("tokenpool",), ("RS256", "ES256"), 30.0)
    assert (corp.subject, corp.jwks_url, corp.jwks_file) == (("sub",), None, None)
    assert cluster == Issuer(
        "cluster",
        "https://kubernetes.default.svc.cluster.local",
        ("tokenpool", "https://tokenpool.example"),
        (ClaimRule((), None, "rest", 23),),
        "https://kubernetes.default.svc/openid/v1/jwks",
        None,
        "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        ("RS256", "ES256", "PS512"),
        0.0,
        ("kubernetes.io", "serviceaccount", "uid"),
    )


def test_the_published_file_has_the_issuers_without_lines() -> None:
    file = parse(BASE + GOOD).file

    version, content = encode_file(file)

    assert [rule.line for issuer in decode_file(content).issuers for rule in issuer.rules] == [0] * 4
    assert decode_file(content).issuers[1].audiences == file.issuers[1].audiences
    assert encode_file(parse(BASE + "# a comment\n" + GOOD).file)[0] == version


def test_issuers_are_explained() -> None:
    text = explain(parse(BASE + GOOD))

    assert "issuer corp: https://login.example.com/realms/ai, audience tokenpool\n" in text
    assert "identifies gold: claim groups is or contains 'ml'" in text
    assert "identifies the entitlement that claim tenant names" in text
    assert "identifies rest: every JWT" in text


def test_an_entitlement_without_keys_is_reached_by_a_rule() -> None:
    one = (
        "issuers: [{name: a, issuer: https://a.example, audience: x, entitlements: [{entitlement: gold}]}]\n"
    )

    warned = [each.message for each in parse(BASE + one).warnings]

    assert warned == ["entitlement 'rest' has no api_keys"]


def test_issuers_of_several_files_add_up() -> None:
    corp, _, cluster = GOOD.partition("  - name: cluster")

    parsed = parse_all([("a.yaml", BASE + corp), ("b.yaml", "issuers:\n  - name: cluster" + cluster)])

    assert [each.name for each in parsed.file.issuers] == ["corp", "cluster"]


def with_fields(fields: str) -> str:
    return f"""\
issuers:
  - name: corp
    issuer: https://login.example.com
    audience: tokenpool
    entitlements: [{{entitlement: gold}}]
    {fields}
"""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            "jwks_url: http://login.example.com/keys",
            "jwks_url is 'http://login.example.com/keys'; use an https://",
        ),
        ("jwks_url: ftp://login.example.com/keys", "use an https://"),
        ("jwks_url: https://user:pass@login.example.com/keys", "use an https://"),
        ("jwks_url: https://login.example.com/keys#a", "use an https://"),
        ("jwks_url: http://127.0.0.1.evil.example/", "use an https://"),
        ("jwks_url: http://localhost@evil.example/", "use an https://"),
        ("jwks_url: ''", "is not a text"),
        ("jwks_url: https://a.example\n    jwks_file: /k", "issuers[0].jwks_file is given beside jwks_url"),
        ("jwks_file: /k\n    ca_file: /c", "issuers[0].ca_file is given beside jwks_file"),
        ("jwks_file: /k\n    token_file: /c", "issuers[0].token_file is given beside jwks_file"),
        ("algorithms: [HS256]", "issuers[0].algorithms[0] is 'HS256', which is not one of RS256"),
        ("algorithms: [none]", "which is not one of"),
        ("algorithms: []", "accepts no algorithm"),
        ("algorithms: RS256", "is not a list"),
        ("clock_skew_s: -1", "write at least 0 seconds"),
        ("clock_skew_s: 301", "write at most 300 seconds"),
        ("clock_skew_s: long", "is not a number"),
        ("subject_claim: []", "names no claim"),
        ("subject_claim: 7", "is not a text"),
        ("group_claim: []", "names no claim"),
        ("jwks: https://a.example", "issuers[0].jwks is not a known field; did you mean 'jwks_"),
    ],
)
def test_a_wrong_field_is_reported_with_its_line(fields: str, expected: str) -> None:
    [found] = problems(with_fields(fields))

    assert found.startswith(("p:11: ", "p:12: "))
    assert expected in found


def test_local_keys_need_no_tls() -> None:
    for url in ("http://127.0.0.1:8200/k", "http://localhost/k", "http://[::1]:1/k"):
        assert parse(BASE + with_fields(f"jwks_url: {url}")).file.issuers[0].jwks_url == url


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[]", "p:10: issuers[0].entitlements has no rule"),
        ("gold", "p:10: issuers[0].entitlements is not a list"),
        ("[gold]", "is not a mapping"),
        ("[{}]", "has no field; write {claim, value, entitlement}"),
        ("[{claim: a, entitlement: gold}]", "has claim and entitlement; write"),
        ("[{claim: a, value: b}]", "has claim and value; write"),
        ("[{value: b, entitlement: gold}]", "has entitlement and value; write"),
        ("[{entitlement: gold}, {claim: a}]", "matches every JWT, so the rules after it are never used"),
        ("[{claim: a, value: 7, entitlement: gold}]", "value is not a text but '7'"),
        ("[{claim: [], value: a, entitlement: gold}]", "names no claim"),
        (
            "[{entitlement: silver}]",
            "p:10: issuer 'corp' leads to 'silver', which is no entitlement; use one of: gold",
        ),
    ],
)
def test_a_wrong_rule_is_reported_with_its_line(rules: str, expected: str) -> None:
    text = with_fields("clock_skew_s: 1").replace("[{entitlement: gold}]", rules)

    assert any(expected in found for found in problems(text))


def test_names_and_issuers_are_unique() -> None:
    again = GOOD.replace("name: cluster", "name: corp")
    assert problems(again) == ["p:14: the name 'corp' is that of another issuer on line 7; rename one"]

    same = GOOD.replace("https://kubernetes.default.svc.cluster.local", "https://login.example.com/realms/ai")
    [found] = problems(same)
    assert "is that of another issuer on line 7; give both one entry" in found


def test_an_issuer_that_is_no_url_needs_a_place_for_its_keys() -> None:
    text = with_fields("clock_skew_s: 1").replace("https://login.example.com", "kubernetes/serviceaccount")

    [found] = problems(text)
    assert (
        "p:7: issuers[0] has no jwks_url, and its issuer 'kubernetes/serviceaccount' is no https:// URL"
        in found
    )
    assert parse(BASE + text + "    jwks_file: /keys.json\n").file.issuers


def test_the_required_fields_are_named() -> None:
    found = problems("issuers: [{name: a}]\n")

    assert [each.split(" has no ")[1].split(";")[0] for each in found] == [
        "audience",
        "entitlements",
        "issuer",
    ]
    assert problems("issuers: []\n") == ["p:6: issuers is empty; list at least one of the issuers"]


def test_a_group_claim_needs_groups() -> None:
    text = with_fields("group_claim: [org, id]")

    assert problems(text) == [
        "p:7: issuer 'corp' has a group_claim, but there are no groups; remove it, or add groups"
    ]
    parsed = parse(BASE + text + "groups: [{name: acme, pool: chat}]\n")
    assert parsed.file.issuers[0].group == ("org", "id")
    assert "claim org.id must name the group of the entitlement" in explain(parsed)


def test_the_examples_of_the_documentation_are_valid() -> None:
    page = (Path(__file__).parents[4] / "docs" / "identity.md").read_text()
    examples = re.findall(r"^```yaml\n(issuers:.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = ("checkout", "batch", "shop")
    base = "pools: [{name: chat, models: [m]}]\nentitlements:\n" + "".join(
        f"  - {{name: {name}, pool: chat, tier: spot}}\n" for name in names
    )

    assert [parse(base + example).file.issuers[0].name for example in examples] == ["corp", "cluster"]
