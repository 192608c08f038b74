"""What ``tokenpool simulate`` does: it reads the records, simulates, and shows the predictions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cli import admin_port, command, pool_file, recorded
from cli.command import CommandFailed
from loadgen.engine.model import read_like
from loadgen.statistics import percentile
from simulation.setup import Recorded
from simulation.what_if import Prediction, Question, engine_for, predict
from tokenpool.entitlements import Pool, PoolFile
from tokenpool.outcomes import Reason


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print the predictions; returns the exit status."""
    file = pool_file.read(arguments.file).file
    pool = _pool(file, arguments.pool)
    records = _records(arguments, pool.name)
    records = [replace(each, at_s=each.at_s / arguments.rate) for each in records]
    made = _predict(file, pool, records, arguments)
    before = None
    if arguments.baseline is not None:
        old = pool_file.read(arguments.baseline).file
        before = {each.entitlement: each for each in _predict(old, _pool(old, pool.name), records, arguments)}
    notes = [*_not_simulated(file, pool)]
    if arguments.json:
        command.print_json({**as_json(made, before, records), "notes": notes})
    else:
        print("\n".join([*report(made, before, records), *(f"note: {each}" for each in notes)]))
    return command.OK


def _not_simulated(file: PoolFile, pool: Pool) -> Iterator[str]:
    """The rules of the pool file that the prediction leaves out, as sentences."""
    entitlements = file.entitlements_of(pool.name)
    keys = [key for each in entitlements for key in each.api_keys]
    quotas = [each.quotas for each in entitlements] + [each.quotas for each in file.groups_of(pool.name)]
    if any(quotas) or any(key.quotas for key in keys):
        yield "the pool file has quotas, but the simulation does not enforce them"
    if any(key.concurrency for key in keys):
        yield "the pool file has keys with a limit of their own, but the simulation does not enforce it"
    if any(each.models for each in entitlements):
        yield "the pool file has entitlements with models, but the simulation lets them use every model"
    if not pool.enforce or not all(each.enforce for each in entitlements):
        yield "the pool file has enforce: false, but the simulation enforces all limits"


def _records(arguments: argparse.Namespace, pool: str) -> list[Recorded]:
    """The requests of the files, or of the period from a coordinator."""
    given = [(name, getattr(arguments, name)) for name in ("period", "since", "until")]
    query = [(name, value) for name, value in given if value is not None]
    if arguments.records is None:
        query = query or [("period", admin_port.RECORDS_PERIOD)]
        where = admin_port.origin(arguments)
        return recorded.from_coordinator(where, [*query, ("timezone", arguments.timezone)], pool)
    if query:
        raise CommandFailed("simulate: --records names files; give no period with it")
    return recorded.read(arguments.records, pool)


def _pool(file: PoolFile, name: str | None) -> Pool:
    names = [pool.name for pool in file.pools]
    if name is None and len(names) > 1:
        raise CommandFailed(f"simulate: the pool file has several pools; give --pool {'|'.join(names)}")
    try:
        return file.pool(name or names[0])
    except KeyError:
        raise CommandFailed(f"simulate: there is no pool {name!r}; there is {', '.join(names)}") from None


def _predict(
    file: PoolFile, pool: Pool, records: Sequence[Recorded], arguments: argparse.Namespace
) -> list[Prediction]:
    try:
        like = read_like(arguments.engine) if arguments.engine is not None else {}
        model = engine_for(pool, records, like)
    except ValueError as error:  # LikeError, CannotSimulate, or sizes that do not fit each other
        raise CommandFailed(f"simulate: {error}") from error
    replicas = arguments.replicas or pool.min_replicas
    return predict(
        Question(
            pool,
            file.entitlements,
            records,
            replicas,
            model,
            states_bound=arguments.states_bound,
            seed=arguments.seed,
            groups=file.groups,
        )
    )


# --- output ---


def as_json(
    made: Sequence[Prediction], before: dict[str, Prediction] | None, records: Sequence[Recorded]
) -> dict[str, Any]:
    """The predictions as JSON."""
    return {
        "requests": len(records),
        "seconds": round(records[-1].at_s, 3),
        "refused": sum(each.refused for each in made),
        "entitlements": [
            {
                **_numbers(each),
                **({"baseline": _baseline(before, each.entitlement)} if before is not None else {}),
            }
            for each in made
        ],
    }


def _baseline(before: dict[str, Prediction], name: str) -> dict[str, Any] | None:
    return _numbers(before[name]) if name in before else None


def _numbers(each: Prediction) -> dict[str, Any]:
    worst = each.worst_minute()
    return {
        "entitlement": each.entitlement,
        "tier": each.tier or None,
        "requests": each.requests,
        "served": each.served,
        "refused": each.refused,
        "refused_share": round(each.share, 6),
        "reasons": dict(each.shed.most_common()),
        "preempted": each.preempted,
        "first_token_p50_s": _percentile(each, 0.5),
        "first_token_p95_s": _percentile(each, 0.95),
        "worst_minute": {"from_s": 60 * worst[0], "refused": worst[1]} if worst is not None else None,
    }


def _percentile(each: Prediction, part: float) -> float | None:
    return round(percentile(each.first_token_s, part), 4) if each.first_token_s else None


def report(
    made: Sequence[Prediction], before: dict[str, Prediction] | None, records: Sequence[Recorded]
) -> Iterator[str]:
    """The predictions as text: a table, and the reasons in words."""
    refused = sum(each.refused for each in made)
    yield f"{len(records):,} requests in {records[-1].at_s:,.0f} s: {refused:,} would be refused"
    heads = ["entitlement", "tier", "requests", "refused", "share"]
    heads += ["before"] if before is not None else []
    heads += ["preempted", "first token P50 s", "P95 s", "why"]
    yield command.table(heads, (_cells(each, before) for each in made), left=2, last_left=True)
    reasons = dict.fromkeys(reason for each in made for reason in each.shed)
    for reason in reasons:
        yield f"{reason}: {Reason(reason).meaning}"


def _cells(each: Prediction, before: dict[str, Prediction] | None) -> list[str]:
    cells = [each.entitlement, each.tier or "none", f"{each.requests:,}", f"{each.refused:,}"]
    cells.append(f"{100 * each.share:.1f} %")
    if before is not None:
        known = before.get(each.entitlement)
        cells.append(f"{known.refused:,}" if known is not None else "-")
    times = (_percentile(each, part) for part in (0.5, 0.95))
    cells += [f"{each.preempted:,}", *("-" if time is None else f"{time:.2f}" for time in times)]
    worst = each.worst_minute()
    why = ", ".join(f"{reason} {number:,}" for reason, number in each.shed.most_common())
    if worst is not None:
        why += f"; most in minute {worst[0]} ({worst[1]:,})"
    return [*cells, why]
