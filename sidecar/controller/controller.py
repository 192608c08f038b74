"""The controller: authorizes, admits and settles requests. The proxy sees it as ``RequestController``.

It is synchronous and does no I/O. Decisions are made by the pure ``AdmissionControl``; the ``Driver``
performs their effects. The parts are in files of their own: ``authentication``, ``accounts``, ``settlement``,
``engine_priority``, ``refusals``, ``access_log``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, cast

from prometheus_client.core import GaugeMetricFamily, Metric

from sidecar.configuration import Configuration
from sidecar.controller import refusals
from sidecar.controller.access_log import AccessLog
from sidecar.controller.accounts import Accounts
from sidecar.controller.authentication import Authenticator
from sidecar.controller.credential_limits import CredentialLimits
from sidecar.controller.engine_priority import EnginePriority, PriorityPolicy
from sidecar.controller.queue_metrics import queue_metrics
from sidecar.controller.quotas import QuotaAccounts
from sidecar.controller.scope import lowered, models_of, owners, resolve
from sidecar.controller.settlement import Settlement
from sidecar.controller.stored_responses import StoredResponses
from sidecar.decisions import AdmittedRequest, Identity, Refusal, draining
from sidecar.dialects.bodies import MOST_UNPRICED, Malformed, Parsed, check_unpriced
from sidecar.dialects.fields import without_priority
from sidecar.dialects.routes import Route
from sidecar.engine.state import EngineState
from sidecar.identity import Credential, has_ended
from sidecar.lifecycle import Lifecycle
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.interface import RunningRequest, WaitingRequest
from sidecar.telemetry import Telemetry
from sidecar.tracing.interface import Trace
from tokenpool.accounting.account import Account
from tokenpool.accounting.shadow import Shadow, refused
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Dimension
from tokenpool.control.driver import NOTHING_SPENT, Driver
from tokenpool.outcomes import Ending, Reason
from tokenpool.quotas.budget import Budget
from tokenpool.quotas.quotas import Quotas


@dataclass(frozen=True, slots=True)
class Policies:
    """The operator's choices for admission."""

    identity_header: str | None = None
    """The request header that names the entitlement, behind a trusted gateway."""
    engine_priority: PriorityPolicy = PriorityPolicy.AUTO
    exposes_engine: bool = False
    """Whether callers without a key see the engine's metrics and models."""


class Resolution(NamedTuple):
    """The entitlement of a request, once its body was read."""

    account: Account
    parsed: Parsed
    refusal: Refusal | None
    """A refusal that is not enforced."""


class Controller:
    """Admission for one sidecar."""

    def __init__(
        self,
        driver: Driver,
        engine: EngineState,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        configuration: Configuration,
        *,
        policies: Policies = Policies(),
        access_log: AccessLog | None = None,
        random: Random | None = None,
        quotas: Quotas | None = None,
        stored: StoredResponses | None = None,
    ) -> None:
        """``quotas`` leases portions of quotas. Without it, quotas are not enforced.

        ``stored`` has the owners of stored responses, which the workers of a sidecar share.
        """
        self.driver = driver
        self.control = control = driver.control
        self.engine = engine
        self.pool = configuration.pool
        self._lifecycle = lifecycle
        self._restarts_seen = engine.restarts
        control.use_room(engine.room)
        now = telemetry.clock()
        self.pool_accounts = Accounts(control, configuration.file, configuration.pool, now)
        self._quotas = QuotaAccounts(control, quotas) if quotas is not None else None
        if self._quotas is not None:
            self._quotas.configure(self.pool_accounts.by_name, self.pool_accounts.groups)
        self.epoch = self.pool_accounts.epoch
        """Rises with each pool file. A cached head is valid within one epoch."""
        self._telemetry = telemetry
        self._access_log = access_log or AccessLog(is_on=False)
        self._random = random
        self.stored = stored or StoredResponses()
        """The owners of stored responses."""
        self.authenticator = Authenticator(
            self.pool_accounts,
            configuration.keys,
            configuration.administrators,
            self.stored,
            policies.identity_header,
            exposes_engine=policies.exposes_engine,
        )
        self._priority = EnginePriority(policies.engine_priority, engine)
        self.limits = CredentialLimits()
        self.settlement = Settlement(driver, engine, self.stored, telemetry, self._access_log, self.limits)
        telemetry.follow(self.accounts, control.ledger, control.active, self.pool.name)

    @property
    def is_draining(self) -> bool:
        """Whether the sidecar stops: no new request begins."""
        return self._lifecycle.is_draining

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts in force, by entitlement."""
        return self.pool_accounts.by_name

    # --- the pool file ---

    def prepare(self, configuration: Configuration) -> Iterator[None]:
        """Make the accounts of a changed pool file before it is put in force, in short steps."""
        return self.pool_accounts.prepare(configuration.file, configuration.pool, self._telemetry.clock())

    def configure(self, configuration: Configuration) -> None:
        """Put a pool file in force. Accounts are kept by name. Running requests keep their account."""
        self.pool_accounts.configure(configuration.file, configuration.pool, self._telemetry.clock())
        self.epoch = self.pool_accounts.epoch
        self.pool = configuration.pool
        accounts = self.pool_accounts
        if self._quotas is not None:
            self._quotas.configure(accounts.by_name, accounts.groups, accounts.changed, accounts.removed)
        self.authenticator.keys = configuration.keys
        self.authenticator.administrators = configuration.administrators
        self._telemetry.follow(
            accounts.by_name,
            self.control.ledger,
            self.control.active,
            self.pool.name,
            accounts.changed,
            accounts.removed,
        )

    def refresh(self, account: Account, now: float) -> None:
        """Bring the limits of an idle account up to date, before they are shown."""
        self.control.active.refresh(account, now)
        if self.control.leases is not None:
            self.control.leases.refresh(account)

    # --- a request's head ---

    def has_ended(self, credential: Credential) -> bool:
        """Whether a credential is refused now."""
        return has_ended(credential, self.authenticator.wall_clock)

    def authorize(self, head: RequestHead) -> Refusal | tuple[Route, Account | None]:
        """The route and the account of a request, or its refusal. A refused body need not be read."""
        route = self.authenticator.route(head)
        if isinstance(route, Refusal):
            return route
        if self.is_draining:
            return draining(None)
        account = self.authenticator.account(head, route)
        if isinstance(account, Refusal):
            return account
        return route, account

    # --- the whole request ---

    def admit(
        self,
        route: Route,
        account: Account | None,
        body: bytes,
        trace: Trace | None = None,
        credential: Credential | None = None,
        identity: Identity | None = None,
    ) -> AdmittedRequest | PendingRequest | Refusal:
        """Price a request and decide, or make it wait. ``identity`` is what its head says beyond the account.

        The caller registers a pending request with ``wait``, then calls ``act``, and settles an admitted
        request exactly once.
        """
        now = self._telemetry.clock()
        is_priced = route.parse is not None and account is not None
        if not self.engine.is_up and not (is_priced and self.control.knows_others):
            return refusals.engine_down(account)
        if route.parse is None or account is None:
            admitted = AdmittedRequest(body, now, account)
            if route.lists_models and account is not None and account.entitlement.models:
                admitted.models = models_of(account, identity) if account.shadow is None else None
            return admitted
        try:
            parsed = route.parse(body)
            if len(body) > MOST_UNPRICED:
                check_unpriced(parsed)
        except Malformed as error:
            if account.shadow is not None and _is_shadow_for_all(identity):
                return self._unpriced(account, account.shadow, body, now)
            return Refusal(Reason.MALFORMED, str(error), error.param, account=account)
        model = parsed.model
        if not account.is_plain and (
            parsed.is_flex
            or identity is not None
            or account.shadow is not None
            or (model not in account.models and bool(account.models))
        ):
            resolved = self._resolve(account, identity, parsed)
            if isinstance(resolved, Refusal):
                return resolved
            account, parsed, _ = resolved
            if account.shadow is not None:
                return self._admit_shadow(resolved, account.shadow, now, trace, credential)
            return self._offer(account, parsed, now, trace, credential)
        if model is not None and not self._serves(model):
            return refusals.unknown_model(model, account)
        if parsed.continued_response is not None or parsed.response_name is not None:
            found = self._with_stored(account, owners(account, None), parsed)
            if isinstance(found, Refusal):
                return found
            parsed = found
        return self._offer(account, parsed, now, trace, credential)

    def _serves(self, model: str) -> bool:
        """See ``Pool.serves``. This takes half the time, and most files name each model."""
        models = self.pool.models
        return model in models or "*" in models

    def _offer(
        self,
        account: Account,
        parsed: Parsed,
        now: float,
        trace: Trace | None,
        credential: Credential | None,
    ) -> AdmittedRequest | PendingRequest | Refusal:
        """Price a request and decide."""
        cost = account.pricer.price(parsed.ask, self.engine.shape)
        limited_by = ""
        if credential is not None and credential.concurrency:
            if not self.limits.take(credential, cost.sequences, self._sidecars):
                in_use = self.limits.in_use(credential.id)
                return refusals.over_credential(account, credential, cost.sequences, in_use, self._jitter())
            limited_by = credential.id
        outcome = self.control.offer(
            account,
            parsed.ask,
            cost,
            now,
            body=parsed.body,
            request=parsed,
            streams=parsed.streams,
            budgets=self._budgets(account, credential),
        )
        if trace is not None:
            trace.priced(now, account, parsed, cost)
        if isinstance(outcome, Ticket):
            return self._admitted(outcome, parsed, now, limited_by)
        if isinstance(outcome, Shed):
            self.limits.give_back(limited_by, cost.sequences)
            return self._shed(account, outcome)
        outcome.limited_by = limited_by
        return outcome

    def _budgets(self, account: Account, credential: Credential | None) -> tuple[Budget, ...]:
        """The budgets of a request; none without quotas."""
        if credential is None or not credential.quotas or self._quotas is None:
            return account.budgets
        return account.budgets + self._quotas.of_credential(credential.id, credential.quotas)

    @property
    def _sidecars(self) -> int:
        """The number of sidecars that share a limit."""
        leases = self.control.leases
        return 1 if leases is None else leases.sidecars

    def _jitter(self) -> float:
        return self._random.random() if self._random is not None else 0.0

    def _resolve(self, account: Account, identity: Identity | None, parsed: Parsed) -> Resolution | Refusal:
        """The entitlement of a request whose model and service tier are known, with its refusal.

        A refusal that is not enforced is part of the resolution. A stored response of another caller is
        protected without enforcement, too.
        """
        names = owners(account, identity)
        refusal: Refusal | None = None
        if parsed.model is not None and not self._serves(parsed.model):
            refusal = refusals.unknown_model(parsed.model, account)
        else:
            account, refusal = resolve(account, identity, parsed.model)
        if parsed.is_flex:
            account = lowered(account, self.accounts, parsed.model)
        if refusal is None and (parsed.continued_response is not None or parsed.response_name is not None):
            found = self._with_stored(account, names, parsed)
            if isinstance(found, Parsed):
                parsed = found
            elif self._names_others(names, parsed):
                return found
            else:
                refusal = found
        if refusal is not None and account.shadow is None:
            return refusal
        return Resolution(account, parsed, refusal)

    def _unpriced(self, account: Account, shadow: Shadow, body: bytes, now: float) -> AdmittedRequest:
        """Send a body that cannot be priced to the engine, which decides about it: without a reservation."""
        admitted = AdmittedRequest(body, now, account)
        admitted.verdict = verdict = refused(Reason.MALFORMED)
        shadow.count(verdict)
        self._telemetry.shadowed(account, verdict)
        return admitted

    def _admit_shadow(
        self,
        resolved: Resolution,
        shadow: Shadow,
        now: float,
        trace: Trace | None,
        credential: Credential | None,
    ) -> AdmittedRequest | Refusal:
        """Send a request to the engine here, with the decision that is not enforced.

        Only an engine that is down, and a sidecar that stops, refuse such a request.
        """
        account, parsed, refusal = resolved
        if not self.engine.is_up:
            return refusals.engine_down(account)
        cost = account.pricer.price(parsed.ask, self.engine.shape)
        limited_by = ""
        if refusal is None and credential is not None and credential.concurrency:
            if self.limits.take(credential, cost.sequences, self._sidecars):
                limited_by = credential.id
            else:
                in_use = self.limits.in_use(credential.id)
                refusal = refusals.over_credential(account, credential, cost.sequences, in_use, 0.0)
        reason = refusal.reason if refusal is not None else None
        ticket = self.control.offer_shadow(
            account,
            shadow,
            parsed.ask,
            cost,
            now,
            streams=parsed.streams,
            refusal=reason,
            budgets=self._budgets(account, credential),
        )
        if ticket.verdict is not None:
            self._telemetry.shadowed(account, ticket.verdict)
        if trace is not None:
            trace.priced(now, account, parsed, cost)
        return self._admitted(ticket, parsed, now, limited_by)

    def _with_stored(self, account: Account, names: list[str], parsed: Parsed) -> Parsed | Refusal:
        """The request with the tokens of the response that it continues, which must be the caller's own.

        ``names`` are the entitlements whose responses the caller may use.
        """
        continued = parsed.continued_response
        if parsed.response_name is not None and self._is_others(parsed.response_name, names):
            return refusals.response_id_in_use(parsed.response_name, account)
        if continued is None:
            return parsed
        for owner in names:
            tokens = self.stored.tokens(continued, owner)
            if tokens is not None:
                return parsed.changed(ask=parsed.ask.changed(token_ids=tokens))
        return refusals.unknown_response(continued, account)

    def _is_others(self, response: str, names: list[str]) -> bool:
        """Whether none of these entitlements owns a stored response that has an owner."""
        return all(self.stored.belongs_to_another(response, name) for name in names)

    def _names_others(self, names: list[str], parsed: Parsed) -> bool:
        """Whether a request names a stored response of another caller."""
        named = (parsed.continued_response, parsed.response_name)
        return any(each is not None and self._is_others(each, names) for each in named)

    def _admitted(
        self, ticket: Ticket, parsed: Parsed, started_at: float, limited_by: str
    ) -> AdmittedRequest:
        admitted = AdmittedRequest(
            parsed.body, started_at, ticket.account, ticket, hides_usage=parsed.hides_usage
        )
        admitted.limited_by = limited_by
        admitted.verdict = ticket.verdict
        if ticket.verdict is None:  # otherwise it keeps its own priority, and its place
            self._priority.write(admitted, parsed)
            if ticket.place is not None or self.control.knows_others:
                admitted.parsed = parsed
        return admitted

    def admit_again(
        self, admitted: AdmittedRequest, *, has_failed: bool
    ) -> AdmittedRequest | PendingRequest | Refusal:
        """Decide a request again, because the engine here or another replica has not begun with it.

        Its ticket ends without usage, and does not count as an ended request. The request keeps its deadline.
        If another replica could not begin with it (``has_failed``), that replica is not asked for a while.
        """
        now, ticket, parsed = self._telemetry.clock(), admitted.ticket, admitted.parsed
        assert ticket is not None
        assert isinstance(parsed, Parsed)
        account, admitted.ticket = ticket.account, None
        budgets = ticket.hold.budgets if ticket.hold is not None else ()
        if self.settlement.usage is not None:
            self.settlement.usage.withdrawn(admitted)
        if has_failed and ticket.place is not None:
            self.control.place_failed(ticket.place, now)
        self.driver.settle(ticket, NOTHING_SPENT, Ending.UPSTREAM_ERROR, reported=False)
        outcome = self.control.offer(
            account,
            ticket.ask,
            ticket.cost,
            now,
            body=parsed.body,
            request=parsed,
            streams=parsed.streams,
            arrived_at=admitted.started_at,
            budgets=budgets,
        )
        if isinstance(outcome, Ticket):
            return self._admitted(outcome, parsed, admitted.started_at, admitted.limited_by)
        if isinstance(outcome, Shed):
            self.limits.give_back(admitted.limited_by, ticket.cost.sequences)
            return self._shed(account, outcome)
        outcome.limited_by = admitted.limited_by
        return outcome

    def _shed(self, account: Account, shed: Shed, *, has_waited: bool = False) -> Refusal:
        if shed.reason is Reason.TOKENS_PER_SECOND:
            self.engine.lacked_throughput()
        elif shed.reason is Reason.ENGINE_FULL and not self.engine.is_up:
            return refusals.engine_down(account)
        elif shed.dimension is Dimension.CONCURRENCY:
            self.engine.lacked_slots()
        return refusals.of_shed(account, shed, self._jitter(), has_waited=has_waited)

    # --- waiting requests ---

    def wait(self, pending: PendingRequest, waiting: WaitingRequest) -> None:
        """Tell this owner the decision about its pending request."""
        self.driver.wait(pending, waiting)

    def begin(self, admitted: AdmittedRequest, runner: RunningRequest) -> None:
        """Start an admitted request, after the requests that make room for it have ended."""
        usage, ticket = self.settlement.usage, admitted.ticket
        if usage is not None and ticket is not None:
            usage.begun(admitted, ticket)
        self.driver.begin(ticket, runner)

    def withdraw(self, pending: PendingRequest) -> None:
        """The sidecar stops: drop a pending request without a decision."""
        self.limits.give_back(pending.limited_by, pending.cost.sequences)
        self.driver.withdraw(pending)

    def give_up(self, pending: PendingRequest) -> None:
        """The client of a pending request disconnected."""
        self.limits.give_back(pending.limited_by, pending.cost.sequences)
        self.driver.withdraw(pending)
        self._telemetry.ended(pending.account, Ending.CLIENT_GONE)

    def decided(self, pending: PendingRequest, outcome: Ticket | Shed) -> AdmittedRequest | Refusal:
        """The decision about a request that waited, in the form for the proxy.

        A request that began to wait before its entitlement ceased to be enforced is not refused.
        """
        if isinstance(outcome, Shed):
            self.limits.give_back(pending.limited_by, pending.cost.sequences)
            shadow = pending.account.shadow
            if shadow is not None and self.engine.is_up:
                parsed, now = cast(Parsed, pending.request), self._telemetry.clock()
                ticket = self.control.offer_shadow(
                    pending.account,
                    shadow,
                    pending.ask,
                    pending.cost,
                    now,
                    streams=pending.streams,
                    refusal=outcome.reason,
                )
                if ticket.verdict is not None:
                    self._telemetry.shadowed(pending.account, ticket.verdict)
                return self._admitted(ticket, parsed, pending.arrived_at, "")
            return self._shed(pending.account, outcome, has_waited=True)
        return self._admitted(outcome, cast(Parsed, pending.request), pending.arrived_at, pending.limited_by)

    def act(self) -> None:
        """Perform the effects of the last calls: deliver decisions, preempt, send messages."""
        self.driver.act()

    # --- running requests ---

    def priority_refused(self, admitted: AdmittedRequest) -> None:
        """The engine refused the request for its priority. The request is sent again without it."""
        self._priority.refused(admitted)
        parsed = admitted.parsed
        if isinstance(parsed, Parsed):  # the next engine may refuse the field, too
            body = without_priority(parsed.body, is_ours=False) if parsed.has_priority else parsed.body
            admitted.parsed = parsed.changed(body=body, takes_priority=False)

    def first_token(self, admitted: AdmittedRequest, seconds: float) -> None:
        """The first output of an answer came ``seconds`` after the request."""
        admitted.first_token_s = seconds
        self._telemetry.first_token(admitted.account, seconds, admitted.ticket)
        if admitted.trace is not None:
            admitted.trace.first_token()
        if admitted.ticket is not None:
            self.control.first_token(admitted.ticket, seconds)

    def engine_changed(self) -> None:
        """Use a new observation of the engine: reserve slots, preempt spot requests, decide waiting ones."""
        engine, control, now = self.engine, self.control, self._telemetry.clock()
        if engine.restarts != self._restarts_seen:
            self._restarts_seen = engine.restarts
            for account in self.accounts.values():
                account.pricer.forget_cache()  # the new process has an empty prefix cache
            control.forget_cache()
        self.update_serving()
        engine.reserve(control.slots_to_reserve(engine.room.slots, now))
        control.engine_changed(engine.room, now)
        self.driver.act()

    def connection_refused(self) -> None:
        """The engine refused a connection: it gets no request before its next successful health check."""
        self.engine.connection_refused()
        self.control.use_room(self.engine.room)
        self.update_serving()

    def update_serving(self) -> None:
        """Decide whether other replicas may send requests here: the engine is up, and nothing drains."""
        self.control.is_serving = self.engine.is_up and not self.is_draining

    # --- answers of the sidecar itself ---

    def refused(
        self, refusal: Refusal, request_id: bytes, trace: Trace | None, credential_id: str = ""
    ) -> None:
        """Count and log an answer of the sidecar itself."""
        self._telemetry.refused(refusal.account, refusal.reason)
        if self._access_log.is_on:
            self._access_log.write(
                request_id, refusal.account, refusal.reason, 0.0, trace=trace, credential_id=credential_id
            )

    def metrics(self) -> Iterator[Metric]:
        """The queue, the reserved slots and the priorities, for Prometheus."""
        yield from queue_metrics(self.control.queue)
        yield GaugeMetricFamily(
            "tokenpool_slots_reserved",
            "Slots reserved from spot and bursts while guaranteed requests miss their SLO.",
            value=self.control.slo.reserved_slots,
        )
        yield from self._priority.metrics()


def _is_shadow_for_all(identity: Identity | None) -> bool:
    """Whether no other entitlement of a credential is enforced."""
    return identity is None or all(other.shadow is not None for other in identity.others)
