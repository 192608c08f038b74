"""The admin port: metrics, health, readiness, state, the live page. Read-only, and not for tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web
from prometheus_client.core import Metric

from dashboard.server import LivePage
from dashboard.snapshot import (
    EVERYTHING,
    Replicas,
    ShownEntitlement,
    ShownHandover,
    ShownPool,
    Snapshot,
    Tally,
    Vector,
    Wanted,
    vector,
)
from runtime import pages
from runtime.admin import AdminPages, Readiness
from runtime.exposition import escaped, rendered
from runtime.followed import Credentials
from runtime.tls import Certificate
from sidecar.controller.controller import Controller
from sidecar.controller.queue_metrics import length_by_tier
from sidecar.engine.metrics_relay import MetricsRelay
from sidecar.handover.asking import Result
from sidecar.handover.handover import Handover
from sidecar.loop_holds import LoopHolds
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.replication import UNLED_S, Replication
from sidecar.telemetry import Telemetry
from tokenpool.accounting.account import Account
from tokenpool.accounting.group_accounts import group_name
from tokenpool.accounting.shadow import Shadow
from tokenpool.amounts import NOTHING
from tokenpool.entitlements import promises
from tokenpool.leases.settings import Mode
from tokenpool.leases.wire import FIRST_TOKEN_BOUNDS_S, REPORTED_OUTCOMES
from tokenpool.pricing.cost import Pricer
from tokenpool.pricing.learned_costs import LearnedCosts
from tokenpool.quotas.budget import Budget
from tokenpool.quotas.windows import text_of

SNAPSHOT = "/snapshot"
"""The route of a worker's part of the live page. Its request has a ``Wanted`` in msgpack."""
PER_PIECE = 4
"""Entitlements in one piece of the state page: about 0.2 ms."""


class Limits(Protocol):
    """The part that sets this sidecar's limits: the local planner or the replication."""

    def problems(self) -> list[str]:
        """The reasons why the limits cannot be used yet."""

    def degraded(self) -> list[str]:
        """Faults that do not stop requests."""


class MetricSource(Protocol):
    """A part of the sidecar with metrics of its own."""

    def metrics(self) -> Iterable[Metric]:
        """Its metrics, for Prometheus."""


class Admin:
    """The pages of one sidecar."""

    def __init__(
        self,
        controller: Controller,
        limits: Limits,
        telemetry: Telemetry,
        manager: ConnectionManager,
        sources: list[MetricSource],
        holds: LoopHolds,
        engine_metrics: MetricsRelay,
        replication: Replication | None = None,
        credentials: Credentials | None = None,
        certificate: Certificate | None = None,
        handover: Handover | None = None,
    ) -> None:
        self._controller = controller
        self._limits = limits
        self._telemetry = telemetry
        self._manager = manager
        self.sources = sources
        """The parts whose metrics are on the page, after those of requests and connections."""
        self.faults: list[Callable[[], Sequence[str]]] = []
        """Further notices while requests are served."""
        self.is_worker = False
        """Whether another process makes the live page of this one and of others."""
        self._holds = holds
        self._engine_metrics = engine_metrics
        self._replication = replication
        """The exchange with the lease store; ``None`` for a lone sidecar."""
        self._credentials = credentials or Credentials()
        self._certificate = certificate
        self._handover = handover
        """The handover of requests to other sidecars; ``None`` without handover."""
        self._common = AdminPages(self.readiness, self._metrics_pieces, self._labels)
        self._changes = telemetry.changes()
        self.live = LivePage(self.snapshot, telemetry.clock)
        self._guarantees: tuple[Mapping[str, Account], Vector] = ({}, vector(0, 0, 0))
        """The accounts in force, and the sum of their guarantees."""

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.add_routes(
            [
                *self._common.routes(),
                web.get("/engine/metrics", self._engine_metrics.answer),
                web.get("/debug/state", self.state),
            ]
        )
        if self.is_worker:
            application.add_routes([web.get(SNAPSHOT, self._snapshot)])
        else:
            self.live.add_to(application)
        return application

    async def _snapshot(self, request: web.Request) -> web.Response:
        """The content of the live page, for the process that makes one of all workers."""
        wanted = msgspec.msgpack.decode(await request.read(), type=Wanted)
        return web.Response(body=msgspec.msgpack.encode(self.snapshot(wanted)))

    def _metrics_pieces(self) -> Iterator[str]:
        replication = self._replication
        is_joined = replication is not None and replication.sync.leases.mode is Mode.JOINED
        leases = None if replication is None else is_joined
        yield from self._telemetry.pieces(self._controller, shows_leases=leases)
        yield from self._manager.bounds.pieces(self._telemetry.label, self._controller.pool.name)
        labels = self._labels()
        yield from self._holds.pieces(
            ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
        )
        for source in self.sources:
            for metric in source.metrics():
                yield rendered([metric], labels)

    def _labels(self) -> dict[str, str]:
        """The label of every series: one Prometheus reads the sidecars of many pools."""
        return {"pool": self._controller.pool.name}

    def readiness(self) -> Readiness:
        """Whether requests may be sent here: a pool file in force, an engine that answers, no drain.

        A lease store that does not answer, or a certificate or key file that cannot be used, degrades a
        sidecar. It stays ready.
        """
        degraded = [*self._limits.degraded(), *self._controller.engine.degraded()]
        degraded += self._credentials.problems()
        if self._certificate is not None and self._certificate.problem is not None:
            degraded.append(self._certificate.problem)
        for fault in self.faults:
            degraded += fault()
        return Readiness(self.problems(), degraded)

    def problems(self) -> list[str]:
        """The reasons why no request is served. The engine's pages alone are no reason."""
        engine = self._controller.engine
        problems = ["draining"] if self._controller.is_draining else []
        return problems + (self._limits.problems() if engine.is_up else engine.problems())

    async def state(self, request: web.Request) -> web.StreamResponse:
        """The page ``/debug/state``: all data that decisions about requests depend on.

        ``?entitlement=NAME`` (repeatable) selects entitlements by name, ``?active=1`` the active ones.
        """
        accounts = self._controller.accounts
        names: list[str] = request.query.getall("entitlement", [])
        unknown = [name for name in names if name not in accounts]
        if unknown:
            text = f"pool {self._controller.pool.name!r} has no entitlement {unknown[0]!r}"
            return web.json_response({"error": text}, status=404)
        if names:
            shown = [accounts[name] for name in names]
        elif request.query.get("active") == "1":
            shown = list(self._controller.control.active)
        else:
            shown = list(accounts.values())
        chunks = await pages.made(self.state_pieces(shown))
        return await pages.send(request, chunks, "application/json; charset=utf-8")

    def state_pieces(self, accounts: list[Account]) -> Iterator[str]:
        """The text of ``/debug/state`` with these entitlements, in pieces."""
        summary = msgspec.json.encode(self._summary()).decode()
        yield summary.removesuffix("}") + ',"entitlements":{'
        for first in range(0, len(accounts), PER_PIECE):
            some = accounts[first : first + PER_PIECE]
            rows = ",".join([f'"{a.entitlement.name}":{self._row(a)}' for a in some])
            yield f",{rows}" if first else rows
        yield "}}"

    def _row(self, account: Account) -> str:
        return msgspec.json.encode(self._account(account.entitlement.name, account)).decode()

    def _summary(self) -> dict[str, Any]:
        controller = self._controller
        return {
            "pool": controller.pool.name,
            "draining": controller.is_draining,
            "capacity": self._controller.engine.capacity.amount().as_dict(),
            "engine": controller.engine.shown(),
            "in_flight": self._manager.exchanges,
            "queued": len(controller.control.queue),
            "waiting": length_by_tier(controller.control.queue),
            "config_is_current": self._telemetry.config_is_current,
            "lease_store": self._lease_store(),
            "groups": {
                group_name(account): {
                    "ceiling": account.entitlement.ceiling.as_dict(),
                    "held": account.limit.at_most(account.entitlement.ceiling).as_dict(),
                    "in_use": {"kv_tokens": account.kv_in_use, "concurrency": account.concurrency_in_use},
                }
                for account in controller.pool_accounts.of_groups.values()
            },
            "handover": self._handover.shown() if self._handover is not None else None,
        }

    def _lease_store(self) -> dict[str, Any] | None:
        """The state of this sidecar's leases; ``None`` for a lone one."""
        if self._replication is None:
            return None
        sync = self._replication.sync
        leases = sync.leases
        return {
            "holder": sync.holder,
            "mode": leases.mode.value,
            "sidecars": leases.sidecars,
            "failures": leases.failures,
            "round_trip_s": leases.round_trip_s,
            "lease_waits": sum(waits.count for waits in leases.queue.lease_waits.values()),
            "lease_waited_s": sum(waits.seconds for waits in leases.queue.lease_waits.values()),
            "config_differs": self._telemetry.config_differs,
            "degraded": self._limits.degraded(),
        }

    def _account(self, name: str, account: Account) -> dict[str, Any]:
        entitlement, now = account.entitlement, self._telemetry.clock()
        self._controller.refresh(account, now)
        return {
            "tier": entitlement.tier.value,
            "group": entitlement.group,
            "weight": entitlement.weight,
            "guarantee": entitlement.guarantee.as_dict(),
            "ceiling": entitlement.ceiling.as_dict(),
            "limit": account.pool_limit.as_dict(),
            "held": account.limit.as_dict(),
            "assured": account.assured.as_dict(),
            "demand": account.meter.demand.as_dict(),
            "in_use": {
                "kv_tokens": account.kv_in_use,
                "concurrency": account.concurrency_in_use,
            },
            "level": account.bucket.refill(now),
            "debt": account.debt,
            "learned": _learned_costs(account.pricer),
            "outcomes": self._telemetry.outcomes(name),
            "quotas": [_quota(budget) for budget in account.budgets],
            "enforce": entitlement.enforce,
            "models": list(entitlement.models),
            "shadow": _shadow(account.shadow),
        }

    def snapshot(self, wanted: Wanted = EVERYTHING) -> Snapshot:
        """The content of the live page, now: this sidecar alone, not the whole pool."""
        replication = self._replication
        return Snapshot(
            process="sidecar",
            name=replication.sync.holder if replication is not None else "",
            pools=(self._pool(wanted),),
            notices=tuple(self._notices()),
            about=_ONE_OF_SEVERAL if replication is not None else "",
        )

    def _notices(self) -> list[str]:
        notices = self.problems() + self._limits.degraded() + self._controller.engine.degraded()
        if not self._telemetry.config_is_current:
            notices.append("the pool file on disk is invalid; the old one is in force: see the log")
        return notices

    def _pool(self, wanted: Wanted) -> ShownPool:
        controller, telemetry = self._controller, self._telemetry
        accounts, now = controller.accounts, telemetry.clock()
        active = [account.entitlement.name for account in controller.control.active]
        names = wanted.choose(accounts, [*self._changes.take(), *active])
        for name in names:
            controller.refresh(accounts[name], now)
        is_up, pool, ledger = controller.engine.is_up, controller.pool, controller.control.ledger
        return ShownPool(
            name=pool.name,
            leader=_leader(self._replication),
            capacity=vector(*(self._controller.engine.capacity.amount() if is_up else NOTHING).values()),
            in_use=(None, ledger.kv_in_use, ledger.concurrency_in_use),
            replicas=Replicas(
                sidecars=1,
                engines_up=int(is_up),
                least=pool.min_replicas,
                most=pool.max_replicas,
                reason="only a coordinator computes scale hints",
            ),
            entitlements=tuple(_entitlement(accounts[name]) for name in names),
            tallies={
                "": Tally(
                    {name: self._outcomes(name) for name in names},
                    first_tokens={name: telemetry.first_tokens(name) for name in names},
                    bounds_s=FIRST_TOKEN_BOUNDS_S,
                )
            },
            total=len(accounts),
            guarantees=self._promised(accounts),
            spent_from_zero=True,
            waiting=tuple(
                (tier.value, sum(lengths.values()))
                for tier, lengths in length_by_tier(controller.control.queue).items()
            ),
            handover=self._shown_handover(),
        )

    def _shown_handover(self) -> ShownHandover | None:
        handover = self._handover
        if handover is None:
            return None
        return ShownHandover(
            peers=len(handover.peers),
            results=tuple((result.value, handover.links.results[result]) for result in Result),
            elsewhere=handover.links.running,
            guests=self._controller.control.peer_accounts.sequences,
            guests_waiting=sum(handover.port.waiting.values()),
        )

    def _promised(self, accounts: Mapping[str, Account]) -> Vector:
        """The sum of all guarantees; it changes with the pool file only."""
        known, guarantees = self._guarantees
        if known is not accounts:
            entitlements = (account.entitlement for account in accounts.values())
            guarantees = vector(*promises(entitlements, self._controller.pool_accounts.groups).total.values())
            self._guarantees = accounts, guarantees
        return guarantees

    def _outcomes(self, name: str) -> dict[str, int]:
        """The outcomes that the page shows: requests served and shed."""
        return {o: n for o, n in self._telemetry.outcomes(name).items() if o in REPORTED_OUTCOMES}


_ONE_OF_SEVERAL = (
    "one of several sidecars: requests, sheds, demand and tokens/s of this sidecar, limits of the pool;"
    " a coordinator's page shows the whole pool"
)


def _shadow(shadow: Shadow | None) -> dict[str, Any] | None:
    """The decisions and the surplus of an entitlement that is not enforced; ``None`` for an enforced one."""
    if shadow is None:
        return None
    decisions: dict[str, dict[str, int]] = {}
    for verdict, count in shadow.decisions.items():
        decisions.setdefault(verdict.decision.value, {})[verdict.reason or "none"] = count
    return {
        "decisions": decisions,
        "surplus": {
            "kv_tokens": shadow.kv_in_use,
            "concurrency": shadow.concurrency_in_use,
            "tokens": shadow.spent,
        },
    }


def _learned_costs(pricer: Pricer) -> dict[str, Any]:
    """The learned costs of an entitlement: overall, and for each route and model."""
    return {
        "overall": _learned(pricer.overall),
        "targets": [
            {"route": route, "model": model, **_learned(learned)}
            for (route, model), learned in pricer.learned_by_target
        ],
        "prefixes": pricer.experts.cached_prefixes,
        "experts": {
            "known": len(pricer.experts),
            "certified": pricer.experts.certified,
            "candidates": pricer.experts.candidates,
        },
        "coverage": pricer.coverage.share,
        "reserved_ratio": pricer.reserved_ratio,
    }


def _quota(budget: Budget) -> dict[str, Any]:
    """One quota, as last known here."""
    return {
        "scope": budget.id.scope.value,
        "name": budget.id.name,
        "per": budget.id.per,
        "timezone": budget.id.timezone,
        "tokens": budget.quota.tokens,
        "spent": budget.spent,
        "held": budget.held,
        "portion": budget.portion,
        "resets_at": text_of(budget.window.end),
    }


def _learned(learned: LearnedCosts) -> dict[str, Any]:
    return {
        "tokens_per_byte": learned.input.per_byte,
        "tokens_per_prompt": learned.input.offset,
        "expected_output": learned.output.value,
        "coverage": learned.output.coverage.share,
        "is_certified": learned.output.is_certified,
    }


def _leader(replication: Replication | None) -> str:
    if replication is None:
        return "none: a lone sidecar plans for itself"
    if not replication.sync.leases.has_limits:
        return "no coordinator yet"
    return (
        "a coordinator"
        if replication.sync.limits_age_s <= UNLED_S
        else "no coordinator now; the last limits stay in force"
    )


def _entitlement(account: Account) -> ShownEntitlement:
    entitlement = account.entitlement
    return ShownEntitlement(
        name=entitlement.name,
        tier=entitlement.tier.value,
        guarantee=vector(*entitlement.guarantee.values()),
        ceiling=vector(*entitlement.ceiling.values()),
        limit=vector(*account.pool_limit.values()),
        in_use=(
            None,
            account.kv_in_use + account.kv_elsewhere,
            account.concurrency_in_use + account.concurrency_elsewhere,
        ),
        demand=vector(*account.meter.demand.values()),
        debt=account.debt,
        spent=account.meter.spent,
        is_enforced=entitlement.enforce,
        decisions=_counts(account.shadow),
    )


def _counts(shadow: Shadow | None) -> dict[str, int]:
    """The decisions that were not enforced, by decision."""
    counts: dict[str, int] = {}
    for verdict, count in shadow.decisions.items() if shadow is not None else ():
        counts[verdict.decision.value] = counts.get(verdict.decision.value, 0) + count
    return counts
