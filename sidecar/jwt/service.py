"""The JWTs of one sidecar: the verifier of the request path, and the sources of its keys behind it.

Without issuers it holds nothing, and the library is not loaded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.decisions import Refusal
from sidecar.identity import Credential
from tokenpool.entitlements import Issuer, PoolFile

if TYPE_CHECKING:
    from sidecar.jwt.sources import KeySource
    from sidecar.jwt.verifier import JwtVerifier

FIRST_KEYS_S = 2.0
"""Seconds for which the start waits for the first keys. An issuer that is away does not keep a sidecar from
serving other callers."""


class JwtService:
    """The issuers in force. ``clock`` is monotonic; ``wall_clock`` has seconds since 1970."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._verifier: JwtVerifier | None = None
        self._sources: dict[Issuer, KeySource] = {}
        """By the part of the issuer that decides how keys are read."""
        self._in_force: tuple[Sequence[Issuer], Mapping[str, frozenset[str]]] = ((), {})
        self._tasks: dict[Issuer, asyncio.Task[None]] = {}
        self._is_running = False

    @property
    def is_on(self) -> bool:
        """Whether there are issuers."""
        return self._verifier is not None

    def find(self, key: bytes) -> Credential | Refusal | None:
        """The credential of a JWT, its refusal, or ``None`` for another kind of key."""
        return None if self._verifier is None else self._verifier.find(key)

    def configure(self, file: PoolFile, pool: str) -> None:
        """Put the issuers of a pool file in force for one pool.

        Keys stay if they are read from the same place. If nothing has changed, remembered JWTs stay.
        """
        issuers = file.issuers
        if not issuers:
            self._verifier, self._in_force = None, ((), {})
            self._follow({})
            return
        in_force = (issuers, _groups_above(file, pool))
        if self._verifier is not None and in_force == self._in_force:
            return
        # Imported here: without issuers, nothing of the library is loaded.
        from sidecar.jwt.sources import KeySource  # noqa: PLC0415
        from sidecar.jwt.verifier import JwtVerifier, KnownIssuer  # noqa: PLC0415

        if self._verifier is None:
            self._verifier = JwtVerifier(self._clock, self._wall_clock, time.thread_time)
        wanted = {}
        known = []
        for issuer in issuers:
            place = _place(issuer)
            source = self._sources.get(place)
            if source is None:
                source = KeySource(place, self._clock, random.random(), self._keys_changed)
            wanted[place] = source
            known.append(KnownIssuer(issuer, source.keys, source.ask))
        self._in_force = in_force
        self._verifier.configure(known, in_force[1])
        self._follow(wanted)

    def _keys_changed(self) -> None:
        if self._verifier is not None:
            self._verifier.keys_changed()

    def _follow(self, sources: dict[Issuer, KeySource]) -> None:
        """Read the keys of these sources from now on, and of no others."""
        for place in self._sources.keys() - sources.keys():
            if place in self._tasks:
                self._tasks.pop(place).cancel()
        self._sources = sources
        if self._is_running:
            for place, source in sources.items():
                if place not in self._tasks:
                    self._tasks[place] = asyncio.get_running_loop().create_task(source.run())

    async def start(self) -> None:
        """Read keys from now on. Waits for the first ones, up to ``FIRST_KEYS_S``."""
        self._is_running = True
        self._follow(self._sources)
        waits = [asyncio.ensure_future(each.first_read.wait()) for each in self._sources.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=FIRST_KEYS_S)
            for wait in late:
                wait.cancel()

    async def stop(self) -> None:
        """Read no more keys."""
        self._is_running = False
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def sources(self) -> list[KeySource]:
        """The sources of keys."""
        return list(self._sources.values())

    def request_reload(self) -> None:
        """Read all keys again now."""
        for source in self._sources.values():
            source.request_read()

    def problems(self) -> list[str]:
        """The issuers whose keys could not be read last time, with the reasons."""
        return [each.problem for each in self._sources.values() if each.problem is not None]

    def metrics(self) -> Iterator[Metric]:
        """Accepted and refused JWTs, and the age of the keys, for Prometheus. None without issuers."""
        if self._verifier is not None:
            yield from _metrics_of(self._verifier, self.sources)


def _groups_above(file: PoolFile, pool: str) -> dict[str, frozenset[str]]:
    """The entitlements of a pool, each with the names of the groups above it. 10,000 take 1.2 ms."""
    parents = {group.name: group.parent for group in file.groups_of(pool)}
    chains: dict[str | None, frozenset[str]] = {None: frozenset()}
    for name in parents:
        chain: set[str] = set()
        above: str | None = name
        while above is not None and above not in chain:
            chain.add(above)
            above = parents.get(above)
        chains[name] = frozenset(chain)
    nothing = chains[None]
    return {each.name: chains.get(each.group, nothing) for each in file.entitlements_of(pool)}


def _place(issuer: Issuer) -> Issuer:
    """The fields of an issuer that decide how its keys are read."""
    return Issuer(
        issuer.name,
        issuer.issuer,
        (),
        (),
        issuer.jwks_url,
        issuer.jwks_file,
        issuer.ca_file,
        issuer.token_file,
    )


def _metrics_of(verifier: JwtVerifier, sources: Sequence[KeySource]) -> Iterator[Metric]:
    verified = CounterMetricFamily(
        "tokenpool_jwt_verified",
        "JWTs whose signature and claims were checked and accepted. A known JWT is not checked again.",
        labels=("issuer",),
    )
    refused = CounterMetricFamily(
        "tokenpool_jwt_refused",
        "Requests whose JWT was refused; the issuer is none if the JWT's own is not accepted.",
        labels=("issuer", "reason"),
    )
    known = GaugeMetricFamily("tokenpool_jwt_known", "Accepted JWTs that are remembered.")
    age = GaugeMetricFamily(
        "tokenpool_jwks_age_seconds",
        "Time since the keys of an issuer were read from its URL; without any, since the start.",
        labels=("issuer",),
    )
    keys = GaugeMetricFamily("tokenpool_jwks_keys", "Keys of an issuer in force.", labels=("issuer",))
    reads = CounterMetricFamily(
        "tokenpool_jwks_reads", "Reads of an issuer's keys.", labels=("issuer", "result")
    )
    known.add_metric((), len(verifier))
    for name, count in verifier.verified.items():
        verified.add_metric((name,), count)
    for (name, problem), count in verifier.refused.items():
        refused.add_metric((name or "none", problem.value), count)
    for source in sources:
        name = source.issuer.name
        if source.issuer.jwks_file is None:
            age.add_metric((name,), source.age_s)
        keys.add_metric((name,), len(source.keys))
        for result, count in source.reads.items():
            reads.add_metric((name, result), count)
    yield from (verified, refused, known, age, keys, reads)
