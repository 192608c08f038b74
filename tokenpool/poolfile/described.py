"""The description of every pool file field: type, default and meaning, for the reference page.

``docs/generate.py`` makes ``docs/reference/pool-file.md`` from it. A test compares the fields with the fields
that ``reading`` accepts.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenpool.entitlements import (
    MOST_GROUP_LEVELS,
    Entitlement,
    Group,
    Issuer,
    OutputEstimate,
    Pool,
    Pricing,
    Quota,
    Tier,
    Window,
)
from tokenpool.poolfile.issuers import ALGORITHMS, MOST_SKEW_S

REQUIRED = "required"
"""The text for a field without a default that must be given."""


class Described(NamedTuple):
    """One field. ``path`` has ``[]`` for the items of a list."""

    path: str
    kind: str
    """The type or the allowed words, with the unit."""
    default: str
    """The default as written in the file; ``REQUIRED`` if there is none, empty if nothing applies."""
    meaning: str


_NAME = "up to 63 of `a-z`, `0-9`, `.`, `_`, `-`; a letter or digit first and last"
_ISSUER = Issuer("", "", (), ())
_PRICES = Pricing()
_QUANTILE = OutputEstimate().quantile
_TIERS = ", ".join(f"`{tier.value}`" for tier in Tier)
_WINDOWS = ", ".join(f"`{window.value}`" for window in Window)
_CAPACITY = "number above 0, `auto`, or `{auto: NUMBER}`"


def _quotas(owner: str, whose: str) -> tuple[Described, ...]:
    """The fields of quotas, which several kinds of records have."""
    return (
        Described(
            f"{owner}.quotas",
            "list of quotas",
            "none",
            f"The budgets of {whose} over calendar windows. All of them apply.",
        ),
        Described(
            f"{owner}.quotas[].tokens",
            "number of tokens, also with `k`, `M` or `G`",
            REQUIRED,
            "The budget in priced tokens, such as `50M`: input and output tokens times the pool's weights.",
        ),
        Described(f"{owner}.quotas[].per", _WINDOWS, REQUIRED, "The window. A week begins on Monday."),
        Described(
            f"{owner}.quotas[].timezone",
            "text",
            f"`{Quota(1, Window.DAY).timezone}`",
            "The IANA time zone in which windows begin, such as `Europe/Berlin`.",
        ),
    )


FIELDS = (
    Described("pools", "list, at least one", REQUIRED, "The pools that this file describes."),
    Described("pools[].name", _NAME, REQUIRED, "The name of the pool. Names are unique."),
    Described(
        "pools[].models",
        "list of names, at least one",
        REQUIRED,
        'The models that the engine serves. `["*"]` accepts any name.',
    ),
    Described(
        "pools[].replica",
        "mapping",
        "all `auto`",
        "The capacity of one engine. `auto` is learned or read from the engine; `{auto: NUMBER}` begins with"
        " that number and learns from there.",
    ),
    Described(
        "pools[].replica.tokens_per_second",
        f"{_CAPACITY}; tokens per second",
        "`auto`",
        "Throughput in priced tokens. `auto` learns it while the engine is saturated.",
    ),
    Described(
        "pools[].replica.kv_tokens",
        f"{_CAPACITY}; KV-cache tokens",
        "`auto`",
        "KV-cache tokens that fit. `auto` reads them from the engine's metrics; several engines behind"
        " one server add up. An encoder-only model has no KV bound.",
    ),
    Described(
        "pools[].replica.concurrency",
        f"{_CAPACITY}; sequences",
        "`auto`",
        "Sequences that run at once. `auto` learns them from the engine's queue.",
    ),
    Described(
        "pools[].replicas",
        "mapping",
        f"`{{min: {Pool('').min_replicas}, max: {Pool('').max_replicas}}}`",
        "The replicas that an autoscaler may provision. Guarantees are checked against them.",
    ),
    Described("pools[].replicas.min", "whole number, at least 1", "`1`", "The fewest replicas."),
    Described("pools[].replicas.max", "whole number, at least `min`", "`min`", "The most replicas."),
    Described("pools[].pricing", "mapping", "", "The prices of input and output."),
    Described(
        "pools[].pricing.input_weight",
        "number, at least 0",
        f"`{_PRICES.input_weight:g}`",
        "The throughput cost of one uncached input token.",
    ),
    Described(
        "pools[].pricing.output_weight",
        "number, at least 0",
        f"`{_PRICES.output_weight:g}`",
        "The throughput cost of one output token.",
    ),
    Described(
        "pools[].pricing.image_tokens",
        "whole number, at least 0; tokens",
        f"`{_PRICES.image_tokens}`",
        "The input tokens of one image.",
    ),
    Described(
        "pools[].pricing.audio_tokens",
        "whole number, at least 0; tokens",
        f"`{_PRICES.audio_tokens}`",
        "The input tokens of one audio part.",
    ),
    Described(
        "pools[].pricing.tool_tokens",
        "whole number, at least 0; tokens",
        f"`{_PRICES.tool_tokens}`",
        "Extra input tokens of one tool.",
    ),
    Described(
        "pools[].prices",
        "mapping",
        "no costs",
        "Prices in money per million tokens, for the reports of usage. No decision depends on them.",
    ),
    Described(
        "pools[].prices.currency", "code of ISO 4217, such as `EUR`", REQUIRED, "The currency of the prices."
    ),
    Described(
        "pools[].prices.input", "number, at least 0; per million tokens", "`0`", "Uncached input tokens."
    ),
    Described(
        "pools[].prices.cached_input",
        "number, at least 0; per million tokens",
        "`input`",
        "Input tokens from the prefix cache.",
    ),
    Described("pools[].prices.output", "number, at least 0; per million tokens", "`0`", "Output tokens."),
    Described(
        "pools[].usage_records",
        "`true` or `false`",
        "`false`",
        "Whether each settled request becomes a record in the usage store. It needs a lease store and a"
        " coordinator.",
    ),
    Described(
        "pools[].enforce",
        "`true` or `false`",
        "`true`",
        "Whether decisions are enforced. With `false`, no entitlement of the pool is refused or delayed:"
        " decisions are only counted and shown. Callers with an unknown key are served as `anonymous`.",
    ),
    Described("entitlements", "list, at least one", REQUIRED, "The entitlements of all tenants."),
    Described("entitlements[].name", _NAME, REQUIRED, "The name of the entitlement. Names are unique."),
    Described("entitlements[].pool", "name of a pool", REQUIRED, "The pool that the entitlement uses."),
    Described("entitlements[].tier", _TIERS, REQUIRED, "The class of service."),
    Described(
        "entitlements[].weight",
        "number above 0",
        f"`{Entitlement('', '', Tier.SPOT).weight:g}`",
        "The share within the tier, relative to other weights.",
    ),
    Described(
        "entitlements[].guarantee",
        "mapping",
        "none",
        "Capacity that the tenant can claim at any time. Required for `guaranteed`, refused for `spot`.",
    ),
    Described(
        "entitlements[].guarantee.tokens_per_second",
        "number, at least 0; tokens per second",
        "`0`",
        "Guaranteed throughput.",
    ),
    Described(
        "entitlements[].guarantee.kv_tokens",
        "number, at least 0; KV-cache tokens",
        "`0`",
        "Guaranteed KV-cache tokens.",
    ),
    Described(
        "entitlements[].guarantee.concurrency",
        "number, at least 0; sequences",
        "`0`",
        "Guaranteed concurrent sequences.",
    ),
    Described(
        "entitlements[].ceiling",
        "mapping",
        "the whole pool",
        "The most that the tenant may use. It is at least the guarantee.",
    ),
    Described(
        "entitlements[].ceiling.tokens_per_second",
        "number, at least 0; tokens per second",
        "no bound",
        "The highest throughput.",
    ),
    Described(
        "entitlements[].ceiling.kv_tokens",
        "number, at least 0; KV-cache tokens",
        "no bound",
        "The most KV-cache tokens.",
    ),
    Described(
        "entitlements[].ceiling.concurrency",
        "number, at least 0; sequences",
        "no bound",
        "The most concurrent sequences.",
    ),
    Described(
        "entitlements[].slo",
        "mapping",
        "none",
        "Latency targets. A tight SLO gives precedence in the short run.",
    ),
    Described(
        "entitlements[].slo.ttft_ms",
        "number above 0; milliseconds",
        "none",
        "Time to first token. It also limits the wait in the admission queue.",
    ),
    Described(
        "entitlements[].slo.tpot_ms", "number above 0; milliseconds", "none", "Time per further output token."
    ),
    Described(
        "entitlements[].output_estimate",
        "number between 0 and 1, or `max`",
        f"`{_QUANTILE:g}`",
        "The quantile of produced outputs to reserve. `max` reserves the request's whole bound.",
    ),
    Described(
        "entitlements[].api_keys",
        "list of keys",
        "none",
        'The keys of the tenant: `"sha256:HEX"`, `{env: VARIABLE}`, `{file: PATH}`, or the key itself, with a'
        " warning. Each key belongs to one entitlement, or to several with different `models`.",
    ),
    Described(
        "entitlements[].api_keys[].sha256", "64 hex digits", "", "The SHA-256 digest of the key, in hex."
    ),
    Described(
        "entitlements[].api_keys[].env", "text", "", "The environment variable of the sidecar with the key."
    ),
    Described("entitlements[].api_keys[].file", "text", "", "The file with the key, read by the sidecar."),
    Described(
        "entitlements[].api_keys[].id",
        "text",
        "the first 8 hex digits of the digest",
        "The name of the key in logs and usage records.",
    ),
    Described(
        "entitlements[].api_keys[].expires",
        "point in time",
        "never",
        "The time from which the key is refused, such as `2027-01-31T18:00:00Z`.",
    ),
    Described(
        "entitlements[].api_keys[].concurrency",
        "whole number of at least 1; sequences",
        "none",
        "The most sequences that run at the same time with this key, in addition to the entitlement's limit.",
    ),
    *_quotas("entitlements[].api_keys[]", "the key"),
    Described(
        "entitlements[].preemptible",
        "`true` or `false`",
        "`true` for spot",
        "Whether a guarantee may end running requests of this spot entitlement.",
    ),
    *_quotas("entitlements[]", "the entitlement"),
    Described(
        "entitlements[].enforce",
        "`true` or `false`",
        "`true`",
        "Whether decisions are enforced. With `false`, no request is refused or delayed for a limit:"
        " decisions are only counted and shown.",
    ),
    Described(
        "entitlements[].models",
        "list of names, at least one",
        "all models of the pool",
        "The models and LoRA adapters that the tenant may use. Entitlements of one pool may have a common key"
        " if their models differ: the model of a request chooses the entitlement.",
    ),
    Described(
        "entitlements[].flex",
        "name of a spot entitlement",
        "none",
        "The spot entitlement that serves this entitlement's requests with `service_tier: flex`. Without it,"
        " these requests are served like others.",
    ),
    Described(
        "entitlements[].group",
        "name of a group",
        "none",
        "The group of the entitlement. It shares the group's guarantee, ceiling and weight with the other"
        " members.",
    ),
    Described("groups", "list, at least one", "none", "Groups of entitlements, such as organizations."),
    Described("groups[].name", _NAME, REQUIRED, "The name of the group. Names are unique."),
    Described("groups[].pool", "name of a pool", REQUIRED, "The pool of the group and all its members."),
    Described(
        "groups[].parent",
        "name of a group",
        "none",
        f"The group above it, in the same pool. There are at most {MOST_GROUP_LEVELS} levels of groups.",
    ),
    Described(
        "groups[].guarantee",
        "mapping",
        "the sum of its members' guarantees",
        "Capacity that all members together can claim at any time. It is at least the sum of the members'"
        " guarantees. Members with demand use the rest of it.",
    ),
    *(
        Described(f"groups[].guarantee.{name}", f"number, at least 0; {unit}", "`0`", meaning)
        for name, unit, meaning in (
            ("tokens_per_second", "tokens per second", "Guaranteed throughput."),
            ("kv_tokens", "KV-cache tokens", "Guaranteed KV-cache tokens."),
            ("concurrency", "sequences", "Guaranteed concurrent sequences."),
        )
    ),
    Described(
        "groups[].ceiling",
        "mapping",
        "the whole pool",
        "The most that all members together may use. It is at least the guarantee.",
    ),
    *(
        Described(f"groups[].ceiling.{name}", f"number, at least 0; {unit}", "no bound", meaning)
        for name, unit, meaning in (
            ("tokens_per_second", "tokens per second", "The highest throughput."),
            ("kv_tokens", "KV-cache tokens", "The most KV-cache tokens."),
            ("concurrency", "sequences", "The most concurrent sequences."),
        )
    ),
    Described(
        "groups[].weight",
        "number above 0",
        f"`{Group('', '').weight:g}`",
        "The share among the groups and entitlements beside it, relative to their weights.",
    ),
    *_quotas("groups[]", "all members of the group together"),
    Described(
        "anonymous",
        "`reject`, or the name of an entitlement",
        "`reject`",
        "The entitlement of callers without a key.",
    ),
    Described(
        "administrator_keys",
        "list of keys",
        "none",
        "The keys that may load and unload LoRA adapters, written as `api_keys`. They belong to no"
        " entitlement. Without any, the sidecars answer 404 on these routes.",
    ),
    Described(
        "issuers",
        "list",
        "none",
        "The identity providers whose JWTs identify callers ([identity](../identity.md)).",
    ),
    Described("issuers[].name", _NAME, REQUIRED, "The name, for credential ids and metrics."),
    Described(
        "issuers[].issuer",
        "text",
        REQUIRED,
        "The claim `iss` of its JWTs, compared as a whole. Each issuer has one entry.",
    ),
    Described(
        "issuers[].audience",
        "text, or list of texts",
        REQUIRED,
        "A JWT is accepted if its claim `aud` is or contains one of these.",
    ),
    Described(
        "issuers[].jwks_url",
        "URL",
        "from `issuer`/.well-known/openid-configuration",
        "The URL of the issuer's keys: `https://`, or `http://` on this machine.",
    ),
    Described("issuers[].jwks_file", "path", "none", "The file with the issuer's keys, in place of the URL."),
    Described(
        "issuers[].ca_file",
        "path",
        "the system's authorities",
        "The PEM file of the authorities to trust for the URLs.",
    ),
    Described(
        "issuers[].token_file",
        "path",
        "none",
        "The file with a token for the URLs, sent as `Authorization: Bearer`. The API server of Kubernetes"
        " needs one.",
    ),
    Described(
        "issuers[].algorithms",
        "list of " + ", ".join(f"`{each}`" for each in ALGORITHMS),
        f"`[{', '.join(_ISSUER.algorithms)}]`",
        "The accepted signature algorithms. Symmetric ones are never accepted.",
    ),
    Described(
        "issuers[].clock_skew_s",
        f"number from 0 to {MOST_SKEW_S:g}; seconds",
        f"`{_ISSUER.clock_skew_s:g}`",
        "The difference of clocks that is tolerated at the beginning and the end of a JWT's validity.",
    ),
    Described(
        "issuers[].subject_claim",
        "name of a claim, or list of names as a path",
        "`sub`",
        "The claim with the caller's id, for credential ids.",
    ),
    Described(
        "issuers[].group_claim",
        "name of a claim, or list of names as a path",
        "no check",
        "The claim that must name the group of the entitlement, or one above it: a text, or a list with it.",
    ),
    Described(
        "issuers[].entitlements",
        "list of rules, at least one",
        REQUIRED,
        "The rules from claims to an entitlement of the sidecar's pool. The first rule that matches decides.",
    ),
    Described(
        "issuers[].entitlements[].claim",
        "name of a claim, or list of names as a path",
        "none",
        "The claim. Without it, the rule matches every JWT of the issuer.",
    ),
    Described(
        "issuers[].entitlements[].value",
        "text",
        "none",
        "The claim must be this text, or a list that contains it.",
    ),
    Described(
        "issuers[].entitlements[].entitlement",
        "name of an entitlement",
        "the text in the claim",
        "The entitlement of the caller.",
    ),
)
"""All fields, in the order of the page."""
