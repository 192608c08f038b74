"""The pool's secret: the first sidecar makes it, and each purpose has its own key."""

from __future__ import annotations

from sidecar.pool_secret import PEER_PORT, PREFIX_HASHES, derived_key, read_secret
from tokenpool.store import SECRET_BYTES
from tokenpool.store.memory import MemoryStore


async def test_the_first_reader_makes_the_secret() -> None:
    store = MemoryStore(1.5, lambda: 1000.0)
    secret = await read_secret(store)
    assert len(secret) == SECRET_BYTES
    assert await read_secret(store) == secret
    assert await read_secret(MemoryStore(1.5, lambda: 1000.0)) != secret


def test_each_purpose_has_its_own_key() -> None:
    secret = b"s" * SECRET_BYTES
    keys = {derived_key(secret, purpose) for purpose in (PEER_PORT, PREFIX_HASHES)}
    assert len(keys | {secret, derived_key(b"t" * SECRET_BYTES, PEER_PORT)}) == 4
    assert {len(key) for key in keys} == {32}
    # All versions of a sidecar derive the same keys.
    assert (
        derived_key(secret, PEER_PORT).hex()
        == "f236bb04b5e23d23c1fc95efa0896ee948a0f73b2e53e7826069689c2b8051a0"
    )
