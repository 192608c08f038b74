"""Reading the issuers of JWTs, and the rules between them and the entitlements."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenpool.entitlements import ClaimRule, Issuer, PoolFile
from tokenpool.poolfile.names import name_of
from tokenpool.poolfile.problems import Sources
from tokenpool.yaml_nodes import Node, Problems

FIELDS = (
    "name",
    "issuer",
    "audience",
    "jwks_url",
    "jwks_file",
    "ca_file",
    "token_file",
    "algorithms",
    "clock_skew_s",
    "subject_claim",
    "group_claim",
    "entitlements",
)
RULE_FIELDS = ("claim", "value", "entitlement")
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
"""The algorithms that a pool file may name: asymmetric ones. With a symmetric one, every sidecar could make
JWTs, and a public key could be abused as its secret."""
MOST_SKEW_S = 300.0
"""The largest clock skew. An expired JWT is valid for so long."""
_HTTPS = re.compile(r"https://[^\s/?#@\\]+(/[^\s#@\\]*)?")
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?(/[^\s#@\\]*)?")


def is_safe_url(text: str) -> bool:
    """Whether keys may be read from a URL: over HTTPS, or from this machine itself."""
    return len(text) <= 2000 and bool(_HTTPS.fullmatch(text) or _LOOPBACK.fullmatch(text))


def issuer_of(node: Node) -> Issuer | None:
    """Read one issuer. Its problems are errors of the node."""
    fields = node.fields(FIELDS, required=("name", "issuer", "audience", "entitlements"))
    default = Issuer("", "", (), ())
    name = name_of(fields.get("name"))
    issuer = fields["issuer"].text() if "issuer" in fields else None
    audiences = _texts(fields["audience"]) if "audience" in fields else ()
    if "audience" in fields and not audiences:
        fields["audience"].error("names no audience", "name the audience for which your clients ask JWTs")
    algorithms = _algorithms(fields["algorithms"]) if "algorithms" in fields else default.algorithms
    skew = fields["clock_skew_s"].number("seconds", most=MOST_SKEW_S) if "clock_skew_s" in fields else None
    subject = _path(fields["subject_claim"]) if "subject_claim" in fields else default.subject
    group = _path(fields["group_claim"]) if "group_claim" in fields else ()
    rules = _rules(fields["entitlements"]) if "entitlements" in fields else ()
    url, file, ca, token = (
        fields[each].text() if each in fields else None
        for each in ("jwks_url", "jwks_file", "ca_file", "token_file")
    )
    _check_source(node, fields, issuer, url)
    if name is None or issuer is None:
        return None
    return Issuer(
        name,
        issuer,
        audiences,
        rules,
        url,
        file,
        ca,
        token,
        algorithms,
        default.clock_skew_s if skew is None else skew,
        subject,
        group,
    )


def _check_source(node: Node, fields: dict[str, Node], issuer: str | None, url: str | None) -> None:
    if "jwks_url" in fields and "jwks_file" in fields:
        fields["jwks_file"].error("is given beside jwks_url", "keep one of the two")
    for each in ("ca_file", "token_file"):
        if each in fields and "jwks_file" in fields:
            fields[each].error("is given beside jwks_file, which is no URL", "remove one of the two")
    if url is not None and not is_safe_url(url):
        fields["jwks_url"].error(f"is {url[:100]!r}", "use an https:// URL, or http:// on this machine")
    is_discovered = not {"jwks_url", "jwks_file"} & set(fields)
    if is_discovered and issuer is not None and (not is_safe_url(issuer) or "?" in issuer):
        node.error(
            f"has no jwks_url, and its issuer {issuer[:100]!r} is no https:// URL",
            "add jwks_url or jwks_file: only the issuer's URL leads to its discovery document",
        )


def _texts(node: Node) -> tuple[str, ...]:
    """A text, or a list of texts."""
    if not node.is_list:
        text = node.text()
        return () if text is None else (text,)
    return tuple(text for item in node.items() if (text := item.text()) is not None)


def _path(node: Node) -> tuple[str, ...]:
    path = _texts(node)
    if node.is_list and not path:
        node.error("names no claim", "name the claim, or list the names on the path to it")
    return path


def _algorithms(node: Node) -> tuple[str, ...]:
    items = list(node.items())
    found = tuple(word for item in items if (word := item.word(ALGORITHMS)) is not None)
    if node.is_list and not items:
        node.error("accepts no algorithm", "list those that the issuer uses, such as RS256")
    return found


def _rules(node: Node) -> tuple[ClaimRule, ...]:
    items = list(node.items())
    if node.is_list and not items:
        node.error("has no rule", "add one, such as {claim: groups, value: NAME, entitlement: NAME}")
    rules = []
    for index, item in enumerate(items):
        fields = item.fields(RULE_FIELDS)
        claim = _path(fields["claim"]) if "claim" in fields else ()
        value, entitlement = (
            fields[each].text() if each in fields else None for each in ("value", "entitlement")
        )
        if item.is_mapping:
            _check_rule(item, fields, is_last=index == len(items) - 1)
        rules.append(ClaimRule(claim, value, entitlement, item.line))
    return tuple(rules)


def _check_rule(node: Node, fields: dict[str, Node], *, is_last: bool) -> None:
    given = set(fields)
    if given not in ({"claim"}, {"entitlement"}, set(RULE_FIELDS)):
        node.error(
            f"has {' and '.join(sorted(given)) or 'no field'}",
            "write {claim, value, entitlement}; {claim} alone, if it has the entitlement's name; or"
            " {entitlement} alone, for every JWT of this issuer",
        )
    elif given == {"entitlement"} and not is_last:
        node.error("matches every JWT, so the rules after it are never used", "move it to the end")


def check_issuers(file: PoolFile, lines: Sequence[int], problems: Problems, sources: Sources) -> None:
    """Check the issuers of a file against each other and its entitlements. ``lines`` are their lines."""
    names = [each.name for each in file.entitlements]
    known = set(names)
    for kind in ("name", "issuer"):
        seen: dict[str, int] = {}
        for issuer, line in zip(file.issuers, lines, strict=True):
            value = getattr(issuer, kind)
            first = seen.setdefault(value, line)
            if first != line:
                message = f"the {kind} {value!r} is that of another issuer on {sources.where(first)}"
                fix = "rename one" if kind == "name" else "give both one entry: its rules tell callers apart"
                problems.error(line, message, fix)
    for issuer, line in zip(file.issuers, lines, strict=True):
        if issuer.group and not file.groups:
            problems.error(
                line,
                f"issuer {issuer.name!r} has a group_claim, but there are no groups",
                "remove it, or add groups",
            )
        for rule in issuer.rules:
            if rule.entitlement is not None and rule.entitlement not in known:
                problems.error(
                    rule.line,
                    f"issuer {issuer.name!r} leads to {rule.entitlement!r}, which is no entitlement",
                    f"use one of: {', '.join(names[:20]) or 'none'}",
                )


def reached(file: PoolFile) -> tuple[frozenset[str], bool]:
    """The entitlements that rules name, and whether a claim may name any other."""
    rules = [rule for issuer in file.issuers for rule in issuer.rules]
    named = frozenset(rule.entitlement for rule in rules if rule.entitlement is not None)
    return named, any(rule.entitlement is None for rule in rules)
