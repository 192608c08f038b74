"""The controller: it follows the resources, publishes the merged pool file, and writes the status.

Every coordinator follows the resources, so that any of them can lead at once. Only the leader of a pool
publishes, as for a pool file on disk, and only the leader writes the status of the pool's resources.

The controller has no pool file until all resources are listed: without one a coordinator does not lead. If
the API server fails later, what was read last stays in force.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric

from coordinator.entitlement_view import view
from coordinator.leader import PoolLeader
from coordinator.pool_file import EncodedPoolFile
from coordinator.resources import metrics, status
from coordinator.resources.api import Api, ApiFailure, Collection
from coordinator.resources.fields import Json
from coordinator.resources.merge import Merge, SecretState
from coordinator.resources.reading import Key, Kind, Resource, SecretName, read, secret_digests
from coordinator.resources.reflector import Backoff, Reflector
from coordinator.resources.rollout import Rollout
from coordinator.resources.status import Live, Use
from coordinator.resources.watched import MOST_SECRETS, chosen
from runtime import collecting
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Pool, PoolFile
from tokenpool.leases.wire import encode_file

log = logging.getLogger(__name__)

GATHER_S = 0.05
"""The time in which further changes join a change: ``kubectl apply -f FOLDER`` sends object after object."""
PAUSE_FACTOR = 8.0
"""A publication of 10,000 entitlements takes 25 ms of CPU. At most a ninth of the time is spent on them."""
SECRETS_WAIT_S = 5.0
"""The time that the first publication waits for Secrets. An unread one keeps the keys that were published."""
WRITES_PER_S = 50.0
"""The most writes of a status per second: 10,000 take 200 s. client-go's default is 5, that of KEDA 20."""
LOOK_EVERY_S = 0.25
SCAN_S = 30.0
"""The time in which each resource is compared with its live use once."""
PER_STEP = 8
"""Resources that are read between two pauses: about 1.6 ms."""
AGAIN_S = 1.0
"""The time until a status that met another version is computed again, if no event brings that version."""


class Controller:
    """The resources of one coordinator."""

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str],
        base: PoolFile | None,
        *,
        publish: Callable[[EncodedPoolFile], None],
        last_published: Callable[[Iterable[str]], Awaitable[PoolFile | None]],
        leaders: Callable[[], Mapping[str, PoolLeader]],
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
        scan_s: float = SCAN_S,
    ) -> None:
        self._api = api
        self._base = base
        self._publish = publish
        self._last_published = last_published
        self._leaders = leaders
        self._clock = clock
        self._chance = chance
        self._reflectors: dict[Collection, Reflector] = {}
        self._tasks: dict[Collection, asyncio.Task[None]] = {}
        self._collections = [Collection(kind, each) for kind in Kind for each in namespaces]
        self._inbox: dict[Key, Resource | None] = {}
        self._secrets: dict[SecretName, SecretState] = {}
        self._secrets_changed: dict[SecretName, SecretState | None] = {}
        self._known: dict[Key, Resource] = {}
        """Every object as it was read last."""
        self._news = asyncio.Event()
        self._new_base = False
        self.merge = Merge(base)
        self._encoded_revision = -1
        self._rollouts: dict[str, Rollout] = {}
        self._pool_of: dict[Key, str] = {}
        """The pool of each resource that is in force."""
        self._urgent: dict[Key, None] = {}
        """The resources that changed, in the order of their changes. Their status is written first, the
        latest change before all others: its author waits for it."""
        self._dirty: dict[Key, None] = {}
        """The resources whose status may differ."""
        self._again: deque[tuple[float, Key]] = deque()
        self._scan: list[Key] = []
        self._scan_s = scan_s
        self._credit = 0.0
        """The resources that the scan may look at now."""
        self._pause_until = 0.0
        self._writing = Backoff()
        self._counts: metrics.Counts = {}
        self.writes: Counter[str] = Counter()
        self.published = 0
        self.is_synced = False

    # --- the life of a controller ---
    async def run(self) -> None:
        """Follow, publish and write until cancelled."""
        try:
            for collection in self._collections:
                self._follow(collection)
            while not self.is_synced:
                try:
                    await self._synchronise()
                except Exception:
                    log.critical("the resources could not be put in force", exc_info=True)
                    await asyncio.sleep(AGAIN_S)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._merge_forever())
                group.create_task(self._write_forever())
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._api.close()

    def base_changed(self, base: PoolFile | None) -> None:
        """The pool file on disk changed."""
        self._base, self._new_base = base, True
        self._news.set()

    def problems(self) -> list[str]:
        """What is missing for the first pool file, for the readiness page."""
        if self.is_synced:
            return []
        return [
            f"{collection}: {reflector.error}"
            for collection, reflector in self._reflectors.items()
            if not reflector.is_listed
        ] or ["the resources are not in force yet"]

    def _follow(self, collection: Collection) -> None:
        reflector = Reflector(self._api, collection, self, self._chance)
        self._reflectors[collection] = reflector
        self._tasks[collection] = asyncio.get_running_loop().create_task(reflector.run())

    async def _synchronise(self) -> None:
        """Wait for all lists, and make the first pool file."""
        while not self._is_listed():
            await self._news.wait()
            self._news.clear()
        with collecting.postponed():
            names = {each.name for each in (self._base.pools if self._base else ())}
            names |= {key.name for key in self._known if key.kind is Kind.POOL}
            last = await self._last_published(sorted(names))
            keys = (ref for resource in self._known.values() for ref in resource.keys)
            self._follow_secrets({ref.secret for ref in keys if not isinstance(ref, str)})
            await self._until_secrets_are_read()
            self.merge = Merge(self._base, last)
            self._inbox = dict(self._known)
            await self._merge_once()
            self.is_synced = True
        collecting.keep()

    def _is_listed(self) -> bool:
        return all(self._reflectors[each].is_listed for each in self._collections)

    async def _until_secrets_are_read(self) -> None:
        try:
            async with asyncio.timeout(SECRETS_WAIT_S):
                while not all(
                    each.is_listed or each.restarts["failed"]
                    for collection, each in self._reflectors.items()
                    if collection.kind is None
                ):
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            log.warning("some Secrets have not been read; the keys that were published last are in force")

    # --- what reflectors report ---
    async def replaced(self, collection: Collection, items: list[Json]) -> None:
        """These are all objects of a collection."""
        if collection.kind is None:
            data = items[0]["data"] if items else None
            self._secret_read(collection, data)
            return
        gone = {
            key
            for key in self._known
            if key.kind is collection.kind and key.namespace == collection.namespace
        }
        for number, item in enumerate(items, 1):
            gone.discard(self._object_read(item))
            if number % PER_STEP == 0:
                await asyncio.sleep(0)
        for key in gone:
            self._object_gone(key)
        self._news.set()

    def changed(self, collection: Collection, item: Json, *, is_deleted: bool) -> None:
        """One object changed."""
        if collection.kind is None:
            self._secret_read(collection, None if is_deleted else item["data"])
        elif is_deleted:
            metadata = item["metadata"]
            self._object_gone(Key(collection.kind, collection.namespace, metadata["name"]))
        else:
            self._object_read(item)

    def failed(self, collection: Collection, failure: ApiFailure) -> None:
        """A collection cannot be read. A Secret keeps the keys that were read last."""
        if collection.kind is None and not failure.is_gone:
            name = SecretName(collection.namespace, collection.secret)
            known = self._secrets.get(name)
            if known is None or known.is_unread:
                self._secrets[name] = SecretState({}, problem=str(failure), is_unread=True)
                self._secrets_changed[name] = self._secrets[name]
        self._news.set()

    def _object_read(self, item: Json) -> Key:
        metadata = item["metadata"]
        kind = Kind(item["kind"])
        known = self._known.get(Key(kind, metadata.get("namespace", ""), metadata["name"]))
        resource = read(item, known)
        self._known[resource.key] = resource
        is_same = known is not None and (known.uid, known.generation) == (resource.uid, resource.generation)
        if is_same and resource.key in self.merge.resources and resource.key not in self._inbox:
            # Only its metadata or its status changed, most often by this controller.
            self.merge.resources[resource.key] = resource
        else:
            self._inbox[resource.key] = resource
            self._news.set()
        return resource.key

    def _object_gone(self, key: Key) -> None:
        if self._known.pop(key, None) is not None:
            self._inbox[key] = None
            self._news.set()

    def _secret_read(self, collection: Collection, data: Mapping[str, bytes] | None) -> None:
        name = SecretName(collection.namespace, collection.secret)
        state = SecretState({}, exists=False) if data is None else SecretState(secret_digests(data))
        self._secrets[name] = self._secrets_changed[name] = state
        self._news.set()

    def _follow_secrets(self, named: set[SecretName]) -> None:
        """Watch the Secrets that entitlements name, and no others."""
        followed = {
            SecretName(each.namespace, each.secret): each for each in self._reflectors if each.kind is None
        }
        for name in followed.keys() - named:
            collection = followed[name]
            del self._reflectors[collection]
            self._tasks.pop(collection).cancel()
            self._secrets.pop(name, None)
            self._secrets_changed[name] = None
        further = chosen(followed.keys() & named, named)
        for name in further:
            self._follow(Collection(None, name.namespace, name.name))
        for name in named - followed.keys() - set(further):
            said = (
                f"namespace {name.namespace!r} names more Secrets than its part of {MOST_SECRETS}; put"
                " several keys into one Secret"
            )
            self._secrets_changed[name] = SecretState({}, problem=said, is_unread=True)

    # --- merging ---
    async def _merge_forever(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            self._news.clear()
            started = self._clock()
            try:
                await self._merge_once()
            except Exception:
                # A defect: the last pool file stays in force, and all is merged anew.
                log.critical("merging the resources failed", exc_info=True)
                self._new_base = True
                self._news.set()
                await asyncio.sleep(AGAIN_S)
            await asyncio.sleep(PAUSE_FACTOR * (self._clock() - started))

    async def _merge_once(self) -> None:
        changed, self._inbox = self._inbox, {}
        secrets, self._secrets_changed = self._secrets_changed, {}
        before: Merge | None = None
        if self._new_base:
            self._new_base = False
            before, last = self.merge, self.merge.file()
            self.merge = Merge(self._base, last, before.in_force)
            changed = dict(self._known) | {key: each for key, each in changed.items() if each is None}
            secrets = dict(self._secrets)
            self._encoded_revision = -1
        for _ in self.merge.update(changed, secrets):
            await asyncio.sleep(0)
        self._follow_secrets(self.merge.secrets)
        moved, judged = self.merge.taken()
        if before is not None:
            old, new = before.in_force, self.merge.in_force
            moved = {key for key in old.keys() | new.keys() if _record(old, key) != _record(new, key)}
        if self.is_synced:
            self._hasten(judged | changed.keys())
        else:
            self._dirty |= dict.fromkeys(judged | changed.keys())
        if self.merge.revision != self._encoded_revision:
            self._encoded_revision = self.merge.revision
            await self._publish_file(moved)

    async def _publish_file(self, moved: set[Key]) -> None:
        file = self.merge.file()
        if not file.pools:
            log.warning("there is no pool: create a TokenPool, or give --config")
        version, content = await asyncio.to_thread(encode_file, file)
        self._publish(EncodedPoolFile(file, version, content))
        self.published += 1
        pools: dict[str, list[Key]] = {pool.name: [] for pool in file.pools}
        for key in moved:
            kept = self.merge.in_force.get(key)
            former = self._pool_of.pop(key, None)
            if former in self._rollouts:
                self._rollouts[former].forget(key)
            if kept is not None:
                record = kept.record
                pool = record.pool if isinstance(record, Entitlement) else record.name
                self._pool_of[key] = pool
                pools[pool].append(key)
        for pool, keys in pools.items():
            self._rollouts.setdefault(pool, Rollout()).published(version, keys)
        for pool in self._rollouts.keys() - pools.keys():
            del self._rollouts[pool]

    # --- status ---
    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self._look()
                await self._write_some()
            except Exception:
                log.critical("writing the status of resources failed", exc_info=True)
                await asyncio.sleep(AGAIN_S)

    def _look(self) -> None:
        """Find the resources whose status may have changed."""
        now = self._clock()
        for pool, rollout in self._rollouts.items():
            leader = self._leaders().get(pool)
            if leader is None or leader.state is None:
                continue
            sidecars = leader.state.tick.sidecars.values()
            self._hasten(rollout.observe([each.file_version for each in sidecars], now))
        while self._again and self._again[0][0] <= now:
            self._hasten((self._again.popleft()[1],))
        if not self._scan:
            self._scan = list(self.merge.resources)
            self._counts = self._counted()
        self._credit += len(self.merge.resources) * LOOK_EVERY_S / self._scan_s
        while self._scan and self._credit >= 1:
            self._credit -= 1
            self._dirty.setdefault(self._scan.pop())

    def _hasten(self, keys: Iterable[Key]) -> None:
        """The status of these resources is written next."""
        for key in keys:
            self._urgent.pop(key, None)
            self._urgent[key] = None

    async def _write_some(self) -> None:
        """Write until nothing is left to write, or the server asks to wait."""
        lives: dict[str, Live] = {}
        ends = self._clock() + 1.0
        examined = 0
        while (waiting := self._urgent or self._dirty) and self._pause_until <= self._clock() < ends:
            key, _ = waiting.popitem()
            examined += 1
            if examined % PER_STEP == 0:
                await asyncio.sleep(0)
            wanted = self._status(key, lives)
            if wanted is None:
                continue
            started = self._clock()
            await self._write(key, wanted)
            await asyncio.sleep(max(1 / WRITES_PER_S - (self._clock() - started), 0))

    async def _write(self, key: Key, wanted: Json) -> None:
        resource = self.merge.resources[key]
        try:
            await self._api.patch_status(key, wanted, resource.version)
        except ApiFailure as failure:
            self._not_written(key, failure)
            return
        self.writes["ok"] += 1
        self._writing.reset()

    def _not_written(self, key: Key, failure: ApiFailure) -> None:
        now = self._clock()
        if failure.status == 404:
            self.writes["gone"] += 1  # deleted meanwhile: the watch reports it
        elif failure.status == 409:
            # The object changed meanwhile. The watch brings the change, and the status is computed again.
            self.writes["conflict"] += 1
            self._again.append((now + AGAIN_S, key))
        elif failure.status in (400, 422):
            self.writes["refused"] += 1
            log.error("the API server refuses a status; it is tried again in %g s: %s", self._scan_s, failure)
        else:
            self.writes["failed"] += 1
            self._pause_until = now + self._writing.wait_s(self._chance(), failure.retry_after_s)
            self._hasten((key,))
            log.info("no status is written for a time: %s", failure)

    def _status(self, key: Key, lives: dict[str, Live]) -> Json | None:
        """The status to write for a resource; ``None`` if there is nothing to write, or another one leads."""
        merge = self.merge
        resource, accepted = merge.resources.get(key), merge.accepted.get(key)
        if resource is None or accepted is None:
            return None
        kept = merge.in_force.get(key)
        pool = self._pool_of.get(key, "")
        leaders = self._leaders()
        leader = leaders.get(pool)
        # A resource without a pool is written by the leader of the first pool, or, without pools, by anyone.
        writer = leader or leaders.get(min(leaders, default=""))
        if writer is not None and not writer.epoch:
            return None
        live = lives.get(pool)
        if live is None:
            live = lives[pool] = self._live(pool, leader)
        rollout = self._rollouts.get(pool) or Rollout()
        said = status.enforced(
            kept,
            accepted,
            is_everywhere=rollout.is_enforced(key),
            sidecars=rollout.sidecars,
            behind=rollout.behind,
        )
        use = _use(kept.record, leader) if kept is not None and leader is not None else None
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return status.status_of(resource, accepted, merge.resolved.get(key), kept, said, live, use, now)

    def _live(self, pool: str, leader: PoolLeader | None) -> Live:
        promised = self.merge.promised.get(pool, NOTHING)
        if leader is None or leader.state is None:
            return Live(status.UNKNOWN, promised=promised)
        made = leader.state.tick
        ready = made.engines_up
        capacity = made.plan.capacity if ready else None
        hint = leader.hint()
        return Live(
            status.overcommitted(promised, capacity, leader.state.overpromised, leader.pool.max_replicas),
            capacity,
            promised,
            ready,
            hint.hint.replicas if hint is not None else None,
            len(leader.entitlements),
        )

    # --- metrics ---
    def _counted(self) -> metrics.Counts:
        """The number of resources by kind and state."""
        counts: metrics.Counts = {kind: Counter() for kind in Kind}
        for key, verdict in self.merge.accepted.items():
            rejected = "earlier" if key in self.merge.in_force else "rejected"
            counts[key.kind]["accepted" if verdict.holds else rejected] += 1
        return counts

    def metrics(self) -> Iterator[Metric]:
        """prometheus-client: the state of the resources. Counts are at most 30 s old."""
        reflectors = self._reflectors.values()
        yield from metrics.families(
            self._counts,
            sum((each.restarts for each in reflectors), Counter[str]()),
            self.writes,
            is_synced=self.is_synced and not any(each.error for each in reflectors),
        )


def _record(in_force: Mapping[Key, object], key: Key) -> object:
    return getattr(in_force.get(key), "record", None)


def _use(record: Pool | Entitlement, leader: PoolLeader) -> Use | None:
    """The live use: throughput served, and sequences and KV tokens held."""
    if leader.state is None:
        return None
    made = leader.state.tick
    if isinstance(record, Entitlement):
        shown = view(record, made)
        in_use = shown.in_use
        return Use(Amount(shown.service.tokens_per_second, in_use.kv_tokens, in_use.concurrency), shown.limit)
    served = sum((each.tokens_per_second for each in made.service.values()), 0.0)
    held = [page.in_use for page in made.records.values()]
    use = Amount(served, sum(each.kv_tokens for each in held), sum(each.concurrency for each in held))
    return Use(use, made.plan.capacity)
