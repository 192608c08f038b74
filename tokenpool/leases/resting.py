"""Resting entitlements: idle ones that a tick leaves out of its plan. Pure.

A claim without demand changes no other share, and its own share follows from the terms of the plan. So a plan
needs only the entitlements with demand, service or debt. The limits of the others are computed here, and kept
while the terms and the record stay the same. The results are those of a plan with all entitlements, except
that a debt below ``NO_DEBT`` counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tokenpool.accounting.bucket import bucket_depth
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement
from tokenpool.leases.messages import EntitlementRecord, Limit
from tokenpool.planning.idle import idle_share
from tokenpool.planning.planner import EntitlementPlan, Plan
from tokenpool.planning.profiles import NO_PROFILE, Profile, after_idle_time

NO_DEBT = 0.01
"""A smaller debt, in seconds, counts as zero."""


class Resting(NamedTuple):
    """One resting entitlement, with what its last limit was computed from."""

    since: float
    """The time of the last plan with it, in seconds by the clock of the lease store."""
    profile: Profile
    """Its profile in that plan."""
    entitlement: Entitlement
    floor: Amount
    part: EntitlementPlan
    limit: Limit

    def profile_at(self, now: float) -> Profile:
        """The profile after the time of rest."""
        return after_idle_time(self.profile, now - self.since)


def is_idle(record: EntitlementRecord) -> bool:
    """Whether an entitlement has a full bucket, and no demand, lease or debt."""
    return (
        record.demand == NOTHING
        and record.in_use == NOTHING
        and record.held.concurrency == 0
        and record.level >= record.limit.depth
        and abs(record.limit.debt) < NO_DEBT
    )


def request_floor(record: EntitlementRecord) -> Amount:
    """The largest recent request, as a plan needs it: at least one sequence."""
    return Amount(0.0, record.floor.kv_tokens, max(record.floor.concurrency, 1.0))


def limit_of(part: EntitlementPlan, record: EntitlementRecord) -> Limit:
    """The limit to publish."""
    rate, kv_tokens, concurrency = part.limit.values()
    depth = bucket_depth(rate, record.floor.tokens_per_second)
    assured = part.assured
    return Limit(rate, kv_tokens, concurrency, depth, assured.kv_tokens, assured.concurrency, part.debt)


def rest(
    records: Mapping[str, EntitlementRecord],
    entitlements: Mapping[str, Entitlement],
    made: Plan,
    before: Mapping[str, Resting],
    profiles: Mapping[str, Profile],
    since: float,
    *,
    are_terms_new: bool,
) -> dict[str, Resting]:
    """The resting entitlements of one tick, by name, from their records and the plan of the others.

    ``before`` are those of the last tick, whose plan was at ``since`` with these ``profiles``.
    ``are_terms_new`` states that the terms or the groups differ from that plan's.
    """
    resting = {}
    for name, record in records.items():
        entitlement, known = entitlements[name], before.get(name)
        is_kept = known is not None and not are_terms_new and known.floor is record.floor
        if known is not None and is_kept and known.entitlement is entitlement:
            resting[name] = known
            continue
        share = idle_share(
            entitlement, made.idle, request_floor(record), is_bounded=entitlement.group in made.bounded
        )
        part = EntitlementPlan(share.limit, share.assured, NOTHING, NOTHING, 0.0, 0.0)
        began, profile = since, profiles.get(name, NO_PROFILE)
        if known is not None:
            began, profile = known.since, known.profile
        resting[name] = Resting(began, profile, entitlement, record.floor, part, limit_of(part, record))
    return resting
