"""Two thousand requests with all kinds of endings on a real engine: afterwards no capacity is held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from pathlib import Path

from demo.vllm_process import VllmProcess
from tests.e2e.vllm.conftest import Sidecar, running_sidecar
from tests.e2e.vllm.flaky import FlakyRelay

REQUESTS = 2000
WORKERS = 32
SEED = 20260301
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000000, kv_tokens: auto, concurrency: 48}
entitlements:
  - {name: a, pool: chat, tier: elastic, api_keys: [a-key]}
  - {name: b, pool: chat, tier: elastic, api_keys: [b-key]}
"""


class Client:
    """One worker that sends requests and ends them in many ways."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.chance = random.Random(seed)
        self.ways: Counter[str] = Counter()

    async def once(self) -> None:
        way = self.chance.choice(["whole", "whole", "cancel", "half_close", "reset", "no_body"])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self._request(cut=way == "no_body"))
            await writer.drain()
            if way == "whole":
                async with asyncio.timeout(30):
                    status = (await reader.readline()).split()
                    self.ways[f"whole {status[1].decode() if status else 'closed'}"] += 1
                    await reader.read(-1)
                return
            self.ways[way] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.chance.uniform(0, 0.3)):
                    await reader.read(1)
                    await reader.read(self.chance.randrange(1, 2000))
            if way == "half_close":
                writer.write_eof()
                await reader.read(-1)
            elif way == "reset":
                writer.transport.abort()
        except ConnectionError:
            self.ways["reset by the sidecar"] += 1
        finally:
            writer.close()

    def _request(self, *, cut: bool) -> bytes:
        chance = self.chance
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "x" * chance.randrange(1, 200)}],
            "max_tokens": chance.randrange(1, 24),
            "ignore_eos": True,
            "n": chance.choice([1, 1, 1, 2]),
            "temperature": 1,
            "stream": chance.random() < 0.6,
        }
        content = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\n"
            "content-type: application/json\r\n"
            f"authorization: Bearer {chance.choice('ab')}-key\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content[: len(content) // 2 if cut else None]


async def play(sidecar: Sidecar) -> Counter[str]:
    """Send the requests. Returns the counts of the clients' endings."""
    port = int(sidecar.url.rpartition(":")[2])
    clients = [Client(port, SEED + i) for i in range(WORKERS)]
    left = iter(range(REQUESTS))

    async def work(client: Client) -> None:
        for _ in left:
            await client.once()

    await asyncio.gather(*(work(client) for client in clients))
    return sum((client.ways for client in clients), Counter())


async def test_no_capacity_is_held_after_any_ending(vllm: VllmProcess, tmp_path: Path) -> None:
    relay = FlakyRelay(vllm.port, SEED, kills=0.08, stalls=0.03)
    async with relay.running():
        with contextlib.ExitStack() as stack:
            upstream = f"http://127.0.0.1:{relay.port}"
            options = ("--upstream-timeout", "1.5", "--body-timeout", "2")
            sidecar = await asyncio.to_thread(
                stack.enter_context, running_sidecar(upstream, tmp_path, POOL, *options)
            )
            ways = await play(sidecar)
            await asyncio.to_thread(sidecar.until_whole, 20.0)
            state = await asyncio.to_thread(sidecar.state)

    outcomes: Counter[str] = sum((Counter(e["outcomes"]) for e in state["entitlements"].values()), Counter())
    print(f"seed {SEED}; clients: {dict(ways)}; outcomes: {dict(outcomes)};", end=" ")
    print(f"relay: {relay.killed} killed, {relay.stalled} stalled")
    assert ways["whole 200"] > 200, ways
    assert relay.killed > 50
    assert relay.stalled > 10
    for ending in ("finished", "client_gone", "upstream_error", "upstream_timeout"):
        assert outcomes[ending] > 0, outcomes
    assert state["engine"]["running"] == state["engine"]["waiting"] == 0
    log = (tmp_path / "sidecar.log").read_text()
    assert "Traceback" not in log
    assert '"critical"' not in log
