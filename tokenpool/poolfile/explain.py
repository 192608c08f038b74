"""The explanation of a valid pool file, for its operator."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Entitlement, Group, Issuer, Pool, PoolFile, Promises, Quota, Tier, promises
from tokenpool.poolfile.reading import Parsed


def explain(parsed: Parsed) -> str:
    """The text that ``tokenpool-sidecar check`` prints."""
    lines: list[str] = []
    for pool in parsed.file.pools:
        lines += _pool(pool, parsed.file)
    callers = parsed.file.anonymous
    lines.append(f"callers without a key: {f'entitlement {callers}' if callers else 'rejected'}")
    if parsed.file.administrator_keys:
        lines.append(f"administrators: {len(parsed.file.administrator_keys)} keys")
    for issuer in parsed.file.issuers:
        lines += _issuer(issuer)
    lines += [
        f"warning: {f'{w.file}:{w.line}' if w.file else f'line {w.line}'}: {w.message}; {w.fix}"
        for w in parsed.warnings
    ]
    lines.append(f"valid, {len(parsed.warnings)} warnings" if parsed.warnings else "valid")
    return "\n".join(lines)


def _pool(pool: Pool, file: PoolFile) -> Iterator[str]:
    entitlements = file.entitlements_of(pool.name)
    sums = promises(entitlements, file.groups_of(pool.name))
    replicas = f"{pool.min_replicas} to {pool.max_replicas} replicas"
    records = "; usage records" if pool.usage_records else ""
    yield f"pool {pool.name}: models {', '.join(pool.models)}; {replicas}{records}"
    if not pool.enforce:
        yield "  not enforced: decisions are only counted and shown"
    yield f"  {'':18} {'one replica':>12} {'at min':>10} {'at max':>10} {'promised':>10}"
    for dimension in Dimension:
        one = getattr(pool.replica, dimension.value)
        promised = sums.total.get(dimension)
        if one is None:
            cells = f"{'auto':>12} {'auto':>10} {'auto':>10} {promised:>10g}"
        else:
            share = f" ({100 * promised / (one * pool.max_replicas):.0f} % of max)" if promised else ""
            cells = (
                f"{one:>12g} {one * pool.min_replicas:>10g} {one * pool.max_replicas:>10g}"
                f" {promised:>10g}{share}"
            )
        yield f"  {dimension:18} {cells}"
    for group in file.groups_of(pool.name):
        yield from _group(group, sums, file)
    for entitlement in entitlements:
        yield from _entitlement(entitlement)
    yield ""


def _group(group: Group, sums: Promises, file: PoolFile) -> Iterator[str]:
    inside = f" in group {group.parent}" if group.parent else ""
    count = sum(each.group == group.name for each in file.entitlements)
    yield f"  group {group.name}{inside}: weight {group.weight:g}, {count} entitlements"
    yield f"    guarantee  {_amount(sums.of(group), 0.0, 'none')}"
    if NOTHING not in (group.guarantee, sums.members[group.name]):
        yield f"    of members {_amount(sums.members[group.name], 0.0, 'none')}"
    yield f"    ceiling    {_amount(group.ceiling, math.inf, 'the whole pool')}"
    yield from _quotas(group.quotas)


def _quotas(quotas: tuple[Quota, ...]) -> Iterator[str]:
    for quota in quotas:
        yield f"    quota      {quota.tokens:g} tokens per {quota.per} in {quota.timezone}"


def _entitlement(entitlement: Entitlement) -> Iterator[str]:
    slo = entitlement.slo
    promises = [
        f"{name} {value:g} ms"
        for name, value in (("first token", slo.ttft_ms), ("each token", slo.tpot_ms))
        if value is not None
    ]
    estimate = entitlement.output_estimate.quantile
    inside = f" in group {entitlement.group}" if entitlement.group else ""
    yield (
        f"  {entitlement.name}{inside}: {entitlement.tier}, weight {entitlement.weight:g},"
        f" {len(entitlement.api_keys)} keys"
    )
    if entitlement.models:
        yield f"    models     {', '.join(entitlement.models)}"
    if entitlement.flex is not None:
        yield f"    flex       {entitlement.flex} serves requests with service_tier: flex"
    if not entitlement.enforce:
        yield "    enforced   no: decisions are only counted and shown"
    yield f"    guarantee  {_amount(entitlement.guarantee, 0.0, 'none')}"
    yield f"    ceiling    {_amount(entitlement.ceiling, math.inf, 'the whole pool')}"
    if entitlement.tier is Tier.SPOT:
        ended = "running requests may be" if entitlement.is_preemptible else "running requests are never"
        yield f"    preempted  {ended} ended for a guarantee"
    if promises:
        yield f"    SLO        {', '.join(promises)}"
    yield from _quotas(entitlement.quotas)
    reserves = "the whole output bound" if estimate is None else f"the {estimate:g} quantile of outputs"
    yield f"    reserves   {reserves}"


def _issuer(issuer: Issuer) -> Iterator[str]:
    keys = issuer.jwks_url or issuer.jwks_file or "the discovery document of the issuer"
    yield f"issuer {issuer.name}: {issuer.issuer}, audience {' or '.join(issuer.audiences)}"
    yield f"    keys       {keys}; {', '.join(issuer.algorithms)}"
    if issuer.group:
        yield f"    group      claim {'.'.join(issuer.group)} must name the group of the entitlement"
    for rule in issuer.rules:
        claim = ".".join(rule.claim)
        if rule.entitlement is None:
            yield f"    identifies the entitlement that claim {claim} names"
        elif rule.claim:
            yield f"    identifies {rule.entitlement}: claim {claim} is or contains {rule.value!r}"
        else:
            yield f"    identifies {rule.entitlement}: every JWT"


def _amount(amount: Amount, absent: float, nothing: str) -> str:
    named = [f"{amount.get(d):g} {d}" for d in Dimension if amount.get(d) != absent]
    return ", ".join(named) or nothing
