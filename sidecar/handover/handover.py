"""Handover of one sidecar: its peer port, its connections to other sidecars, and the pool's key."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime.listening import BACKLOG, bound, listening
from runtime.options import Addresses
from sidecar.engine.address import EngineAddress
from sidecar.handover.asking import UNIX, PeerLinks, Result
from sidecar.handover.peer_port import PeerPort
from sidecar.pool_secret import PEER_PORT, derived_key, read_secret
from sidecar.settings import Settings
from sidecar.worker import Worker, peers_at
from tokenpool.admission.affinity import PrefixCaches
from tokenpool.admission.placement import KnownPeer
from tokenpool.control.driver import Driver
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

READ_KEY_EVERY_S = 10.0
"""Seconds between two reads of the pool's secret, which also renew its expiry."""
ANY_HOST = ("0.0.0.0", "::")
UPKEEP_EVERY_S = 0.25


class Handover:
    """The parts of handover: the peer port, the connections to peers, and the key."""

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        links: PeerLinks,
        engine: EngineAddress,
        store: Store,
        clock: Callable[[], float],
        *,
        connection_refused: Callable[[], None],
        worker: Worker | None = None,
        hands_over: bool = True,
    ) -> None:
        """``worker`` is this process, if it is one of several.

        ``hands_over`` is false if only its other workers send requests here.
        """
        self._hands_over = hands_over
        self._settings = settings
        self._worker = worker
        self._driver = driver
        self._store = store
        self.links = links
        self.port = PeerPort(
            driver,
            engine,
            clock,
            connection_refused=connection_refused,
            longest_request=settings.max_body_bytes + 2 * settings.max_head_bytes,
            connect_timeout=settings.connect_timeout,
            upstream_timeout=settings.upstream_timeout,
        )
        links.connect_to(driver)
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen for other sidecars, and state the address to them. Raises ``OSError``."""
        if self._worker is not None:
            await self._listen_for_mates(self._worker)
        if self._hands_over:
            await self._listen()
        loop = asyncio.get_running_loop()
        for work in (self.port.sweep_forever(), self._read_key_forever(), self._upkeep_forever()):
            self._tasks.append(loop.create_task(work))

    async def _listen_for_mates(self, worker: Worker) -> None:
        """Listen for the other workers of this sidecar."""
        path = Path(f"{peers_at(worker.folder)}{worker.index}".removeprefix(UNIX))
        path.unlink(missing_ok=True)  # of the worker before
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(self.port.session, str(path), backlog=BACKLOG))

    async def _listen(self) -> None:
        facing = await asyncio.to_thread(facing_host, *self._store.host())
        chosen = self._settings.peer or Addresses.of(facing, 0)
        # An ask of another sidecar may be answered by any worker: all of them share the room of the engine.
        sockets = listening(chosen, "--peer", is_shared=self._worker is not None)
        loop = asyncio.get_running_loop()
        for each in sockets:
            self._servers.append(await loop.create_server(self.port.session, sock=each, backlog=BACKLOG))
        address = bound(sockets)[0]
        host = facing if address.host in ANY_HOST else address.host
        self._driver.control.peer_address = (
            f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
        )

    async def _read_key_forever(self) -> None:
        """Read the secret that all sidecars of the pool share, and use the key for peer ports."""
        while True:
            try:
                self._use_key(derived_key(await read_secret(self._store), PEER_PORT))
                wait = READ_KEY_EVERY_S
            except StoreDown:
                wait = 1.0  # reported by the messages
            except Exception:
                log.critical("reading the pool's secret failed", exc_info=True)
                wait = READ_KEY_EVERY_S
            await asyncio.sleep(wait)

    def _use_key(self, key: bytes) -> None:
        if key != self.links.key:
            # Other sidecars may still use the previous key.
            self.port.keys = [key, *self.port.keys[:1]]
            self.links.key = key

    async def _upkeep_forever(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_EVERY_S)
            self.links.close_idle()

    async def stop(self) -> None:
        """Accept no more asks, and close all connections."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.links.close()
        self.port.close()

    @property
    def peers(self) -> list[KnownPeer]:
        """The other replicas, as the lease store last named them."""
        placement = self._driver.control.placement
        known = placement.known if placement is not None else []
        return [peer for peer in known if not peer.address.startswith(UNIX)]

    def shown(self) -> dict[str, Any]:
        """The state of handover, for ``/debug/state``."""
        links, port = self.links, self.port
        return {
            "address": self._driver.control.peer_address,
            "peers": [
                {
                    "name": peer.name,
                    "address": peer.address,
                    "room": {"kv_tokens": _known(peer.kv_tokens), "concurrency": _known(peer.sequences)},
                }
                for peer in self.peers
            ],
            "asks": {result.value: links.results[result] for result in Result},
            "running_elsewhere": links.running,
            "received": {ending: number for ending, number in port.received.items() if number},
            "guests": self._driver.control.peer_accounts.sequences,
            "guests_waiting": port.waiting,
            "refused": port.refused,
            "unused_offers": port.unused,
            "rejected_connections": port.rejected,
        }

    def metrics(self) -> Iterator[Metric]:
        """The metrics of both sides, for Prometheus."""
        yield GaugeMetricFamily(
            "tokenpool_peers",
            "Other replicas that this one knows, and may hand requests over to.",
            value=len(self.peers),
        )
        yield from self.links.metrics()
        yield from self.port.metrics()
        placement = self._driver.control.placement
        if placement is not None and placement.caches is not None:
            yield from affinity_metrics(placement.caches)


def affinity_metrics(caches: PrefixCaches) -> Iterator[Metric]:
    """The effect of prefix affinity and its error, for Prometheus."""
    gains = caches.gains
    yield CounterMetricFamily(
        "tokenpool_affinity_requests",
        "Finished requests that ran at another replica because it had their prompt in its prefix cache.",
        value=gains.requests,
    )
    tokens = CounterMetricFamily(
        "tokenpool_affinity_tokens",
        "Cached prompt tokens of those requests beyond those expected on this engine: expected before,"
        " reported by the other engine after, and the sum of the differences (error).",
        labels=("kind",),
    )
    for kind, count in (("expected", gains.expected), ("reported", gains.reported), ("error", gains.error)):
        tokens.add_metric((kind,), count)
    yield tokens
    known = GaugeMetricFamily(
        "tokenpool_affinity_prefixes",
        "Known beginnings of prompts in the cache of this engine (here) and of others (elsewhere).",
        labels=("place",),
    )
    known.add_metric(("here",), caches.own)
    known.add_metric(("elsewhere",), caches.elsewhere)
    yield known
    yield GaugeMetricFamily(
        "tokenpool_affinity_trust",
        "Cached tokens that this engine reports divided by those that were expected; at most 1.",
        value=caches.trust,
    )


def _known(amount: float) -> float | None:
    """An amount for JSON, which has no infinity. An engine may have no bound of KV tokens."""
    return amount if amount < math.inf else None


def facing_host(host: str, port: int) -> str:
    """The address of this machine that faces another host: the source address of packets to that host.

    The lease store and the other sidecars are usually in one network. Without a route, the address is
    loopback.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # sends nothing
                return str(probe.getsockname()[0])
    except OSError as error:
        log.warning(
            "the address that faces the lease store is unknown: set --peer to one that others can reach",
            extra={"error": str(error)},
        )
    return "127.0.0.1"
