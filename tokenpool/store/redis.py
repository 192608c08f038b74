"""The books in Redis: the rules of ``tokenpool.books`` as scripts, by Redis' own clock.

All keys of a pool share a hash tag, so they lie in one slot of a cluster, and every key expires. What a
page costs does not depend on the number of its holders: sums are kept beside them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any, cast

import redis.asyncio
import redis.exceptions
from msgspec import msgpack

from tokenpool.books import REMEMBER_S, Grant, Holding, Limit
from tokenpool.store import StoreDown


def _script(name: str) -> str:
    folder = resources.files("tokenpool.store")
    return folder.joinpath("books.lua").read_text() + folder.joinpath(name).read_text()


class RedisStore:
    """A store in one Redis. ``clock`` replaces Redis' clock where a test must own time."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        pool: str,
        lifetime_s: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._prefix = f"tokenpool:{{{pool}}}"
        self._common = {"lifetime": lifetime_s, "remember": REMEMBER_S}
        self._clock = clock
        self._publish = client.register_script(_script("publish.lua"))
        self._exchange = client.register_script(_script("exchange.lua"))

    async def publish(self, limits: Mapping[str, Limit], epoch: int) -> bool:
        """See ``Store``."""
        rows = [
            [name, a.tokens_per_second, a.kv_tokens, a.concurrency, limit.depth]
            for name, limit in limits.items()
            for a in (limit.amount,)
        ]
        return bool(await self._run(self._publish, {"epoch": epoch, "limits": rows}))

    async def exchange(
        self, holder: str, number: int, holdings: Mapping[str, Holding]
    ) -> Mapping[str, Grant]:
        """See ``Store``."""
        rows = [
            [
                name,
                *(said.kv_in_use, said.concurrency_in_use, said.kv_wanted, said.concurrency_wanted),
                *(said.tokens_spent, said.tokens_wanted),
            ]
            for name, said in holdings.items()
        ]
        packed = await self._run(self._exchange, {"holder": holder, "number": number, "holdings": rows})
        grants = msgpack.decode(packed, type=list[tuple[float, float, float]])
        return {name: Grant(*row) for name, row in zip(holdings, grants, strict=True)}

    async def _run(self, script: Callable[..., Awaitable[Any]], message: dict[str, Any]) -> Any:
        message |= self._common
        if self._clock is not None:
            message["now"] = self._clock()
        try:
            return await script(keys=[self._prefix], args=[msgpack.encode(message)])
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreDown(f"Redis did not answer: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """See ``Store``."""
        await cast(Awaitable[None], self._client.aclose())
