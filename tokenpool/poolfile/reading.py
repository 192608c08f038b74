"""Reading: it turns YAML nodes into the records of ``tokenpool.entitlements``, field by field.

This module has the rules for single fields. ``checks`` has the rules between records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount, Dimension
from tokenpool.entitlements import (
    Entitlement,
    Group,
    KeyRef,
    KeySource,
    OutputEstimate,
    Pool,
    PoolFile,
    Prices,
    Pricing,
    ReplicaCapacity,
    Slo,
    Tier,
)
from tokenpool.poolfile.checks import Located, check, check_promise
from tokenpool.poolfile.issuers import check_issuers, issuer_of
from tokenpool.poolfile.names import name_of
from tokenpool.poolfile.problems import PoolFileError, Sources
from tokenpool.poolfile.quotas import quotas_of
from tokenpool.yaml_nodes import Node, Problem, Problems, root

_UNITS = {
    Dimension.TOKENS_PER_SECOND: "tokens per second",
    Dimension.KV_TOKENS: "KV-cache tokens",
    Dimension.CONCURRENCY: "sequences",
}
_CURRENCY = re.compile(r"[A-Z]{3}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
CREDENTIAL_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""The id of a credential."""


_FIELDS = ("pools", "entitlements", "groups", "anonymous", "administrator_keys", "issuers")
_REQUIRED = ("pools", "entitlements")
_ONCE = ("anonymous", "administrator_keys")
"""Fields that at most one of several files may have."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A valid pool file and its warnings."""

    file: PoolFile
    warnings: tuple[Problem, ...] = ()
    sources: Sources = Sources()
    """The files that ``KeyRef.line`` counts through."""


def parse(text: str, *, name: str = "pool.yaml") -> Parsed:
    """Read a pool file. Raises ``PoolFileError`` with all problems."""
    return parse_all([(name, text)])


def parse_all(documents: Sequence[tuple[str, str]]) -> Parsed:
    """Read a pool file in one or several parts, each a name and a text.

    Pools, entitlements, groups and issuers add up. ``anonymous`` and ``administrator_keys`` may be in
    one part only. Raises ``PoolFileError`` with the problems of all parts.
    """
    sources = Sources.of(documents)
    parts = [Problems(sources.before(index)) for index in range(len(documents))]
    tops = [
        root(text, problems, fields="'pools:' and 'entitlements:'")
        for (_, text), problems in zip(documents, parts, strict=True)
    ]
    common = Problems()
    readable = [top for top in tops if top is not None]
    # Without one of the files, the rules between records would report what only seems to be missing.
    file = _file(readable, Located(common, sources)) if len(readable) == len(tops) else None
    found = [problem for problems in (*parts, common) for problem in problems.errors]
    if found or file is None:
        raise PoolFileError(documents[0][0], map(sources.located, sorted(found)))
    warnings = sorted(problem for problems in (*parts, common) for problem in problems.warnings)
    return Parsed(file, tuple(map(sources.located, warnings)), sources)


def pool_of(node: Node, problems: Problems) -> Pool | None:
    """Read one pool that is not in a file. Its problems go to ``problems``."""
    made = _pool(node, Located(problems))
    return None if problems.errors else made


def entitlement_of(node: Node, problems: Problems) -> Entitlement | None:
    """Read one entitlement that is not in a file, with the rules that concern it alone.

    Its problems go to ``problems``. The caller checks the rules between records: its pool exists, and the
    pool can carry its guarantee.
    """
    located = Located(problems)
    made = _entitlement(node, located)
    if made is not None:
        check_promise(made, located)
    return None if problems.errors else made


def _file(tops: Sequence[Node], located: Located) -> PoolFile:
    required = _REQUIRED if len(tops) == 1 else ()
    given: dict[str, list[Node]] = {name: [] for name in _FIELDS}
    for top in tops:
        for name, node in top.fields(_FIELDS, required=required).items():
            given[name].append(node)
    for name in _REQUIRED:
        if len(tops) > 1 and not given[name]:
            located.problems.error(1, f"no file has {name}", f"add '{name}:' to one of the files")
    for name in _ONCE:
        for node in given[name][1:]:
            first = located.sources.where(given[name][0].line)
            node.error(f"is given on {first} already", "keep one of the two")
    pools = [_pool(item, located) for node in given["pools"] for item in _items(node)]
    entitlements = [_entitlement(item, located) for node in given["entitlements"] for item in _items(node)]
    groups = [_group(item, located) for node in given["groups"] for item in _items(node)]
    anonymous = given["anonymous"][0].text() if given["anonymous"] else "reject"
    administrators = given["administrator_keys"][:1]
    issuers = [(issuer_of(item), item.line) for node in given["issuers"] for item in _items(node)]
    file = PoolFile(
        tuple(p for p in pools if p is not None),
        tuple(e for e in entitlements if e is not None),
        None if anonymous in (None, "reject") else anonymous,
        _keys(administrators[0]) if administrators else (),
        tuple(issuer for issuer, _ in issuers if issuer is not None),
        tuple(g for g in groups if g is not None),
    )
    check(file, located, anonymous_line=given["anonymous"][0].line if given["anonymous"] else 0)
    lines = [line for issuer, line in issuers if issuer is not None]
    check_issuers(file, lines, located.problems, located.sources)
    return file


def _items(node: Node) -> list[Node]:
    items = list(node.items())
    if not items:
        node.error("is empty", f"list at least one of the {node.path}")
    return items


_POOL_FIELDS = ("name", "models", "replica", "replicas", "pricing", "prices", "usage_records", "enforce")


def _pool(node: Node, located: Located) -> Pool | None:
    fields = node.fields(_POOL_FIELDS, required=("name", "models"))
    name = name_of(fields.get("name"))
    models = _models(fields.get("models"))
    if "models" in fields and not models:
        fields["models"].error("names no model", 'list the models that the engine serves, or ["*"] for any')
    replica = _replica(fields["replica"]) if "replica" in fields else ReplicaCapacity()
    least, most = _replicas(fields["replicas"]) if "replicas" in fields else (1, 1)
    pricing = _pricing(fields["pricing"]) if "pricing" in fields else Pricing()
    prices = _prices(fields["prices"]) if "prices" in fields else None
    has_records = fields["usage_records"].boolean() if "usage_records" in fields else False
    enforce = fields["enforce"].boolean() if "enforce" in fields else None
    if name is None:
        return None
    located.pool(name, node.line)
    return Pool(
        name,
        models,
        replica,
        least,
        most,
        pricing,
        prices=prices,
        usage_records=has_records is True,
        enforce=enforce is not False,
    )


def _models(node: Node | None) -> tuple[str, ...]:
    return tuple(text for item in (node.items() if node is not None else ()) if (text := item.text()))


def _replica(node: Node) -> ReplicaCapacity:
    """Read a number, ``auto`` or ``{auto: NUMBER}`` per dimension. The last one is a start for learning."""
    fields = node.fields([d.value for d in Dimension])
    values: dict[str, float | None] = {}
    start: dict[Dimension, float] = {}
    for dimension in Dimension:
        field = fields.get(dimension.value)
        if field is None or field.is_word("auto"):
            continue
        if field.is_mapping:
            begins = field.fields(("auto",), required=("auto",)).get("auto")
            number = begins.number(_UNITS[dimension], above=True) if begins is not None else None
            start[dimension] = number or 0.0
        else:
            values[dimension.value] = field.number(_UNITS[dimension], above=True)
    return ReplicaCapacity(**values, start=Amount.from_mapping(start))


def _replicas(node: Node) -> tuple[int, int]:
    fields = node.fields(("min", "max"))
    least = (fields["min"].whole("replicas", least=1) if "min" in fields else 1) or 1
    most = (fields["max"].whole("replicas", least=1) if "max" in fields else least) or least
    if most < least:
        node.error(f"has min {least} above max {most}", "make max at least min")
    return least, max(most, least)


def _prices(node: Node) -> Prices | None:
    fields = node.fields(("currency", "input", "cached_input", "output"), required=("currency",))
    currency = fields["currency"].text() if "currency" in fields else None
    if currency is not None and not _CURRENCY.fullmatch(currency):
        fields["currency"].error(f"is {currency!r}", "write the code of ISO 4217, such as EUR or USD")

    def price(name: str, otherwise: float) -> float:
        value = fields[name].number("money per million tokens") if name in fields else None
        return otherwise if value is None else value

    if currency is None:
        return None
    full = price("input", 0.0)
    # A prompt costs no more because a part of it was computed before.
    return Prices(currency, full, price("cached_input", full), price("output", 0.0))


def _pricing(node: Node) -> Pricing:
    default = Pricing()
    fields = node.fields(("input_weight", "output_weight", "image_tokens", "audio_tokens", "tool_tokens"))

    def weight(name: str, otherwise: float) -> float:
        value = fields[name].number("weighted tokens per token") if name in fields else otherwise
        return otherwise if value is None else value

    def tokens(name: str, otherwise: int) -> int:
        value = fields[name].whole("tokens") if name in fields else otherwise
        return otherwise if value is None else value

    return Pricing(
        weight("input_weight", default.input_weight),
        weight("output_weight", default.output_weight),
        tokens("image_tokens", default.image_tokens),
        tokens("audio_tokens", default.audio_tokens),
        tokens("tool_tokens", default.tool_tokens),
    )


_ENTITLEMENT_FIELDS = (
    "name",
    "pool",
    "tier",
    "weight",
    "guarantee",
    "ceiling",
    "slo",
    "output_estimate",
    "api_keys",
    "preemptible",
    "quotas",
    "group",
    "enforce",
    "models",
    "flex",
)


def _entitlement(node: Node, located: Located) -> Entitlement | None:
    fields = node.fields(_ENTITLEMENT_FIELDS, required=("name", "pool", "tier"))
    name = name_of(fields.get("name"))
    pool = fields["pool"].text() if "pool" in fields else None
    tier = fields["tier"].word([t.value for t in Tier]) if "tier" in fields else None
    weight = fields["weight"].number("(no unit)", above=True) if "weight" in fields else 1.0
    guarantee = _amount(fields["guarantee"], 0.0) if "guarantee" in fields else NOTHING
    ceiling = _amount(fields["ceiling"], math.inf) if "ceiling" in fields else UNBOUNDED
    slo = _slo(fields["slo"]) if "slo" in fields else Slo()
    estimate = (
        _output_estimate(fields["output_estimate"]) if "output_estimate" in fields else OutputEstimate()
    )
    keys = _keys(fields["api_keys"]) if "api_keys" in fields else ()
    quotas = quotas_of(fields["quotas"]) if "quotas" in fields else ()
    preemptible = fields["preemptible"].boolean() if "preemptible" in fields else None
    if preemptible and tier not in (None, Tier.SPOT):
        fields["preemptible"].error(
            f"is true, but {tier} requests are never preempted", "remove it, or make the entitlement spot"
        )
    group = fields["group"].text() if "group" in fields else None
    enforce = fields["enforce"].boolean() if "enforce" in fields else None
    models = _models(fields.get("models"))
    if "models" in fields and not models:
        fields["models"].error("names no model", "list the models that it may use, or leave the field out")
    if "*" in models:
        fields["models"].error("names '*'", "leave the field out: without it, all models may be used")
    flex = fields["flex"].text() if "flex" in fields else None
    if flex is not None and tier == Tier.SPOT:
        fields["flex"].error("is given, but the entitlement is spot", "remove it: no tier is lower than spot")
    if name is None or pool is None or tier is None:
        return None
    located.entitlement(name, node.line, {key: field.line for key, field in fields.items()})
    return Entitlement(
        name,
        pool,
        Tier(tier),
        weight or 1.0,
        guarantee,
        ceiling,
        slo,
        estimate,
        keys,
        preemptible is not False,
        quotas=quotas,
        group=group,
        enforce=enforce is not False,
        models=tuple(dict.fromkeys(models)),
        flex=flex,
    )


_GROUP_FIELDS = ("name", "pool", "parent", "guarantee", "ceiling", "weight", "quotas")


def _group(node: Node, located: Located) -> Group | None:
    fields = node.fields(_GROUP_FIELDS, required=("name", "pool"))
    name = name_of(fields.get("name"))
    pool = fields["pool"].text() if "pool" in fields else None
    parent = fields["parent"].text() if "parent" in fields else None
    guarantee = _amount(fields["guarantee"], 0.0) if "guarantee" in fields else NOTHING
    ceiling = _amount(fields["ceiling"], math.inf) if "ceiling" in fields else UNBOUNDED
    weight = fields["weight"].number("(no unit)", above=True) if "weight" in fields else 1.0
    quotas = quotas_of(fields["quotas"]) if "quotas" in fields else ()
    if name is None or pool is None:
        return None
    located.group(name, node.line, {key: field.line for key, field in fields.items()})
    return Group(name, pool, parent, guarantee, ceiling, weight or 1.0, quotas)


def _amount(node: Node, default: float) -> Amount:
    fields = node.fields([d.value for d in Dimension])
    if node.is_mapping and not fields:
        node.error("names no dimension", "name at least one, or leave the field out")
    values = {
        dimension: value
        for dimension in Dimension
        if dimension.value in fields
        and (value := fields[dimension.value].number(_UNITS[dimension])) is not None
    }
    return Amount.from_mapping(values, default)


def _slo(node: Node) -> Slo:
    fields = node.fields(("ttft_ms", "tpot_ms"))
    values = {name: field.number("milliseconds", above=True) for name, field in fields.items()}
    return Slo(**values)


def _output_estimate(node: Node) -> OutputEstimate:
    if node.is_word("max"):
        return OutputEstimate(None)
    quantile = node.number("(a quantile between 0 and 1, or max)", above=True)
    if quantile is not None and quantile >= 1:
        node.error(f"is {quantile:g}", "write a quantile below 1, or max")
        return OutputEstimate()
    return OutputEstimate() if quantile is None else OutputEstimate(quantile)


def _keys(node: Node) -> tuple[KeyRef, ...]:
    return tuple(key for item in node.items() if (key := _key(item)))


_KEY_SOURCES = ("sha256", "env", "file")
_KEY_FIELDS = (*_KEY_SOURCES, "id", "expires", "concurrency", "quotas")


def _key(node: Node) -> KeyRef | None:
    if node.is_mapping:
        return _long_key(node)
    text = node.text()
    if text is None:
        return None
    if not text.startswith("sha256:"):
        return KeyRef(KeySource.PLAIN, text.strip(), node.line)
    digest = text.removeprefix("sha256:")
    if not _DIGEST.fullmatch(digest):
        node.error("is not a SHA-256 digest", "write 'sha256:' and 64 hex digits: printf %s KEY | sha256sum")
        return None
    return KeyRef(KeySource.SHA256, digest.lower(), node.line)


def _long_key(node: Node) -> KeyRef | None:
    """A key with its source, and optionally its id, its expiry, and a limit and quotas of its own."""
    fields = node.fields(_KEY_FIELDS)
    sources = [source for source in _KEY_SOURCES if source in fields]
    if len(sources) != 1:
        node.error(
            "must name one of sha256, env and file",
            "write {sha256: HEX}, {env: VARIABLE} or {file: PATH}",
        )
        return None
    source = sources[0]
    text = fields[source].text()
    if text is not None and source == "sha256":
        text = text.removeprefix("sha256:").lower()
        if not _DIGEST.fullmatch(text):
            fields[source].error("is not a SHA-256 digest", "write 64 hex digits: printf %s KEY | sha256sum")
            return None
    name = fields["id"].text() if "id" in fields else ""
    if name and not CREDENTIAL_ID.fullmatch(name):
        fields["id"].error(
            f"is {name!r}, which is not an id",
            "use 1 to 64 letters, digits, dots, dashes and underscores",
        )
    expires_at = fields["expires"].time() if "expires" in fields else None
    most = fields["concurrency"].whole("sequences", least=1) if "concurrency" in fields else None
    quotas = quotas_of(fields["quotas"]) if "quotas" in fields else ()
    if text is None:
        return None
    return KeyRef(KeySource(source), text, node.line, name or "", expires_at, most, quotas)
