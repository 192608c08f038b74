"""Reads whole bodies of responses up to a bound, so that no server fills the memory."""

from __future__ import annotations

import aiohttp

from loadgen.sse import TooLong


async def read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of at most ``most`` bytes. Raises ``TooLong``."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            raise TooLong(f"the response has more than {most >> 20} MiB")
    return b"".join(chunks)
