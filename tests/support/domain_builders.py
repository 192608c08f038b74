"""Short ways to build the domain's objects for tests."""

from __future__ import annotations

from tokenpool.accounting.account import Account
from tokenpool.amounts import UNBOUNDED, Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Ask, Cost, EngineShape

SHAPE = EngineShape(block_size=16, context_window=2048)
ROOM = EngineRoom(slots=8, kv_tokens=10_000)
PLENTY = Amount(1e6, 1e6, 1e6)


def entitlement(name: str = "a", tier: Tier = Tier.ELASTIC, **values: object) -> Entitlement:
    return Entitlement(name, "pool", tier, **values)  # type: ignore[arg-type]


def account(
    limit: Amount = PLENTY,
    *,
    assured: Amount | None = None,
    tier: Tier = Tier.ELASTIC,
    ceiling: Amount = UNBOUNDED,
    name: str = "a",
    **values: object,
) -> Account:
    """An account at time 0 with a full bucket."""
    made = Account(entitlement(name, tier, ceiling=ceiling, **values), Pricing(), 0.0)
    made.set_limits(limit, Amount() if assured is None else assured, 0.0, 0.0)
    return made


def cost(*, tokens: int = 100, kv_tokens: int = 112, sequences: int = 1) -> Cost:
    """A cost with a throughput of ``tokens``, half of it output."""
    return Cost(tokens - tokens // 2, tokens // 2, sequences, float(tokens), kv_tokens)


ASK = Ask(text_bytes=200, output_bound=50)
