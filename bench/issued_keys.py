"""Issued keys: ``python -m bench.issued_keys`` measures memory, look-ups, reading and restoring.

One Redis, one SQLite file, the shipped keeper of a coordinator and the shipped reader of a sidecar, in one
process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from coordinator.credentials.database import SqlCredentials, StoredCredential
from coordinator.credentials.keeper import Keeper
from coordinator.usage.database import database
from sidecar.issued_keys import IssuedKeys
from tokenpool.credentials import CredentialRecord
from tokenpool.store.address import open_store
from tokenpool.store.redis import RedisStore
from toolbox.redis import RedisProcess

KEYS = 100_000
ENTITLEMENTS = 1_000
LOOK_UPS = 20_000
CHANGES = 50
LIFETIME_S, TIMEOUT_S = 1.5, 5.0
FIRST_VERSION = 1_700_000_000_000
AT_ONCE = 500
MOST_BYTES_PER_KEY = 400
MOST_READ_S = 10.0
"""The goals: 40 MB for 100,000 keys, and a new sidecar that is ready within 10 s on busy cores."""


class _Led:
    """The leader of the pool, for the keeper."""

    epoch = 1

    def __init__(self, store: RedisStore) -> None:
        self.store = store

    def has(self, entitlement: str) -> bool:
        """Every entitlement exists."""
        return True


def _key(number: int) -> bytes:
    return b"key-%d" % number


def _record(number: int) -> CredentialRecord:
    return CredentialRecord(
        id=f"{number:016x}",
        entitlement=f"tenant-{number % ENTITLEMENTS}",
        digest=hashlib.sha256(_key(number)).digest(),
        created_at=1.7e9,
        created_by="admin",
        expires_at=4e9,
        changed_at=1.7e9,
        changed_by="admin",
    )


def _memory() -> int:
    """The resident memory of this process in bytes."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


def _look_up_us(issued: IssuedKeys, keys: Sequence[bytes]) -> float:
    began = time.perf_counter()
    for key in keys:
        issued.find(key)
    return (time.perf_counter() - began) / len(keys) * 1e6


async def measure(count: int, redis: RedisProcess, folder: Path) -> dict[str, float]:
    """All figures for this number of keys."""
    stored = SqlCredentials(database(str(folder / "usage.db")))
    store = open_store(redis.url, "chat", LIFETIME_S, TIMEOUT_S)
    led = _Led(store)
    keeper = Keeper(lambda: {"chat": led}, stored, time.monotonic, time.time)
    for first in range(0, count, AT_ONCE):
        some = range(first, min(first + AT_ONCE, count))
        await stored.write([StoredCredential("chat", FIRST_VERSION + n, _record(n)) for n in some])
    found: dict[str, float] = {"keys": count}
    began = time.perf_counter()
    await keeper.follow("chat")  # Redis is empty: all records are restored
    found["restore_s"] = time.perf_counter() - began
    await keeper.follow("chat")
    issued, before, began = IssuedKeys(store), _memory(), time.perf_counter()
    await issued.read()
    found["read_s"] = time.perf_counter() - began
    found["bytes_per_key"] = (_memory() - before) / count
    found["known"] = len(issued)
    known = [_key(number * 7919 % count) for number in range(LOOK_UPS)]
    found["look_up_us"] = _look_up_us(issued, known)
    found["unknown_us"] = _look_up_us(issued, [b"no-" + key for key in known])
    times = []
    for number in range(count, count + CHANGES):
        began = time.perf_counter()
        await keeper.issue(_record(number))
        await issued.read()
        times.append((time.perf_counter() - began) * 1e3)
    found["change_ms"] = median(times)
    await stored.close()
    await store.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print all figures; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="bench.issued_keys", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS, help=f"number of keys [{KEYS}]")
    count = parser.parse_args(argv).keys
    with tempfile.TemporaryDirectory() as name:
        redis = RedisProcess(Path(name)).start()
        try:
            redis.wait_ready(10)
            found = asyncio.run(measure(count, redis, Path(name)))
        finally:
            redis.kill()
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))
    is_whole = found["known"] == count
    is_small = count < KEYS or found["bytes_per_key"] <= MOST_BYTES_PER_KEY
    return 0 if is_whole and is_small and found["read_s"] <= MOST_READ_S else 1


if __name__ == "__main__":
    sys.exit(main())
