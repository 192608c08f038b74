"""Authentication: the route and the entitlement of a request, from its head alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from sidecar.controller import refusals
from sidecar.controller.accounts import Accounts
from sidecar.controller.scope import owners
from sidecar.controller.stored_responses import StoredResponses
from sidecar.decisions import Identity, Refusal
from sidecar.dialects.routes import Access, Route, find, stored_id
from sidecar.identity import MOST_KEYS, Credential, CredentialSource, KeyRing, has_ended, sent_keys
from sidecar.jwt.interface import JwtSource
from sidecar.proxy.heads import RequestHead
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason


class Authenticator:
    """Finds the route and the account of a request. A caller can never choose its entitlement."""

    def __init__(
        self,
        accounts: Accounts,
        keys: KeyRing,
        administrators: KeyRing,
        stored: StoredResponses,
        identity_header: str | None,
        *,
        exposes_engine: bool = False,
    ) -> None:
        self._accounts = accounts
        self.keys = keys
        """The keys of the pool file in force; replaced when the file changes."""
        self.sources: list[CredentialSource] = []
        """Further sources of credentials, in the order in which they are asked."""
        self.wall_clock: Callable[[], float] = time.time
        """Seconds of Unix time: credentials end at such times."""
        self.jwts: JwtSource | None = None
        """The JWTs of the issuers in force; ``None`` without issuers."""
        self.administrators = administrators
        """The administrators' keys of that file."""
        self._exposes_engine = exposes_engine
        """Whether the engine's metrics and models are shown to callers without a key."""
        self._stored = stored
        self._identity_header = identity_header.lower().encode() if identity_header else None

    def route(self, head: RequestHead) -> Route | Refusal:
        """The route of a request. The head stores it."""
        route = head.route = find(head.path)
        if route is not None and not self._exists(route):
            route = None
        if route is None:
            return Refusal(
                Reason.UNKNOWN_ROUTE,
                f"{_printable(head.method)} {_printable(head.path)} is not served here",
            )
        if head.method not in route.methods:
            allowed = ", ".join(method.decode() for method in route.methods)
            return Refusal(
                Reason.METHOD_NOT_ALLOWED,
                f"{_printable(head.method)} is not allowed on {_printable(head.path)}; allowed: {allowed}",
            )
        return route

    def account(self, head: RequestHead, route: Route) -> Account | Refusal | None:
        """The account of a request; ``None`` on a route that needs no key."""
        access = route.access
        if head.method == b"OPTIONS" or access is Access.ANYONE or access is Access.EXPOSED:
            return None
        if access is Access.ADMINISTRATOR:
            return self._administrator(head)
        account = self._identify(head, may_be_anyone=access is Access.DISCOVERY and self._exposes_engine)
        if isinstance(account, Refusal) and not self._accounts.enforces:
            account = self._unenforced(head, account)
        if account is None or isinstance(account, Refusal):
            return account
        if route.names_stored:
            name = stored_id(head.path)
            if name is not None and not self._may_read(name, account, head.identity):
                return refusals.unknown_response(name, account)
        return account

    def _unenforced(self, head: RequestHead, refusal: Refusal) -> Account | Refusal:
        """The account of a caller that a pool without enforcement does not know, if the file names one."""
        anonymous = self._accounts.anonymous
        if anonymous is None:
            return refusal
        head.identity, head.credential = Identity(refusal=refusal), None
        return anonymous

    def _may_read(self, name: str, account: Account, identity: Identity | None) -> bool:
        """Whether a caller may read a stored response.

        Without enforcement it may also read one of which no owner is known: it may be older than the sidecar.
        """
        for owner in owners(account, identity):
            if self._stored.tokens(name, owner) is not None:
                return True
        return account.shadow is not None and not self._stored.belongs_to_another(
            name, account.entitlement.name
        )

    def _exists(self, route: Route) -> bool:
        """Whether the settings and the pool file open a route. Without them its path is unknown."""
        if route.access is Access.EXPOSED:
            return self._exposes_engine
        return route.access is not Access.ADMINISTRATOR or len(self.administrators) > 0

    def _administrator(self, head: RequestHead) -> Refusal | None:
        """``None`` if every key of the request is an administrator's. The identity header does not count."""
        keys, _ = sent_keys(head.headers)
        found = [self.administrators.find(key) for key in keys[: MOST_KEYS + 1]]
        if 0 < len(keys) <= MOST_KEYS and all(
            each is not None and not has_ended(each, self.wall_clock) for each in found
        ):
            head.credential = found[0]
            return None
        return Refusal(
            Reason.UNKNOWN_KEY,
            f"{_printable(head.path)} needs an administrator's key (administrator_keys in the pool file)",
        )

    def _identify(self, head: RequestHead, *, may_be_anyone: bool = False) -> Account | Refusal | None:
        """The account of the caller. ``None`` if it sends no key and may be anyone."""
        if self._identity_header is not None:
            names = head.all(self._identity_header)
            if names:
                return self._named(names)
        accounts = self._accounts
        keys, has_other = sent_keys(head.headers)
        if not keys:
            if may_be_anyone or accounts.anonymous is not None:
                return accounts.anonymous
            sent = "the Authorization header holds" if has_other else "the request has"
            return Refusal(Reason.UNKNOWN_KEY, f"{sent} no API key; send it as 'Authorization: Bearer KEY'")
        if len(keys) > MOST_KEYS:
            return Refusal(
                Reason.UNKNOWN_KEY, f"more than {MOST_KEYS} different API keys were sent; send one"
            )
        found = self._credentials(keys)
        if isinstance(found, Refusal):
            return found
        if len({each.entitlement for each in found}) > 1:
            return Refusal(Reason.UNKNOWN_KEY, "API keys of different entitlements were sent; send one")
        account = accounts.by_name[found[0].entitlement]
        for credential in found:
            if not has_ended(credential, self.wall_clock):
                head.credential = credential
                if credential.others:
                    head.identity = self._others(credential)
                return account
        head.credential = found[0]
        return Refusal(
            Reason.EXPIRED_KEY,
            f"the credential {found[0].id!r} has expired; use a new one",
            account=account,
        )

    def _credentials(self, keys: list[bytes]) -> list[Credential] | Refusal:
        """The credentials of this pool among the keys: at least one, or the refusal."""
        found: list[Credential] = []
        refusal: Refusal | None = None
        for key in keys:
            each = self._find(key)
            if isinstance(each, Refusal):
                refusal = refusal or each
            elif each is not None and each.entitlement in self._accounts.by_name:
                found.append(each)
        if found:
            return found
        return refusal or Refusal(Reason.UNKNOWN_KEY, "this API key belongs to no entitlement of this pool")

    def _others(self, credential: Credential) -> Identity:
        """The further accounts of a credential that several entitlements have."""
        by_name = self._accounts.by_name
        return Identity(tuple([by_name[name] for name in credential.others if name in by_name]))

    def _find(self, key: bytes) -> Credential | Refusal | None:
        """The credential of a key: of the pool file, of another source, or of an issuer of JWTs."""
        credential = self.keys.find(key)
        if credential is not None:
            return credential
        for source in self.sources:
            credential = source.find(key)
            if credential is not None:
                return credential
        return None if self.jwts is None else self.jwts.find(key)

    def _named(self, names: list[bytes]) -> Account | Refusal:
        account = self._accounts.by_name.get(names[0].decode("latin-1"))
        if len(names) > 1 or account is None:
            return Refusal(
                Reason.UNKNOWN_KEY,
                "the identity header of the gateway must name one entitlement of this pool, and does not",
            )
        return account


def _printable(text: bytes) -> str:
    """Client bytes for a message: at most 100 characters, all printable."""
    shown = text[:100].decode("ascii", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)
