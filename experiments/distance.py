"""How many requests are refused on an idle pool, by tenants, sidecars and distance of the lease store.

Capacity is ample here: engines with many free slots, tenants without ceilings. So every refusal is a fault of
the sidecars' bookkeeping, and every millisecond above a direct request is theirs, too. Each row starts real
processes: Redis behind a relay that adds a delay each way, a coordinator, sidecars, one stub of an engine.

    python -m experiments.distance --tenants 50,200,500,1500 --sidecars 1,2,8 --distance-ms 0,6,12,40
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

from demo.engine import free_port
from demo.redis import executable
from experiments.processes import Part, module, running
from experiments.relay import Relay

OUT = Path(__file__).parent.parent / "out" / "distance"
SERVICE_S = 0.05
SLOTS = 64
MOST_REFUSED = 0.001
NOISE_S = 0.01
"""What a busy machine of two cores adds to a P99 at times, whatever the store does."""
_METRICS = (
    "process_start_time_seconds 1.0\n"
    'vllm:num_requests_running{model_name="stub"} 0.0\n'
    'vllm:num_requests_waiting{model_name="stub"} 0.0\n'
    'vllm:kv_cache_usage_perc{model_name="stub"} 0.0\n'
    'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000000"} 1.0\n'
)
_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "text": "word " * 20, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 20, "total_tokens": 44},
    }
)


@dataclass(frozen=True)
class Row:
    """One run."""

    tenants: int
    sidecars: int
    distance_ms: float
    """Round trip to the store; below 0 the store is in the sidecar's memory."""
    rate: float
    requests: int
    refused: int
    reasons: dict[str, int]
    p50_ms: float
    """Added to a direct request."""
    p99_ms: float

    @property
    def is_good(self) -> bool:
        """Whether nobody was refused and nobody waited for more than two round trips."""
        most = 2 * max(self.distance_ms, 0.0) + 1000 * NOISE_S
        return self.refused <= MOST_REFUSED * self.requests and self.p99_ms <= most


class Stub(asyncio.Protocol):
    """One connection of an engine that answers every completion after ``SERVICE_S``."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: a part of a request."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        path = head.split(b" ", 2)[1]
        if path == b"/metrics":
            self._answer(_METRICS, "text/plain")
        elif path in (b"/health", b"/v1/models"):
            self._answer('{"data":[{"id":"stub","max_model_len":32768}]}')
        else:
            asyncio.get_running_loop().call_later(SERVICE_S, self._answer, _ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client disconnected."""
        self._transport = None

    def _answer(self, text: str, kind: str = "application/json") -> None:
        if self._transport is not None:
            body = text.encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (kind.encode(), len(body), body)
            )


async def serve(port: int) -> None:
    """The stub, until it is ended."""
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
    await server.serve_forever()


async def stand_between(target: int, port: int, delay_s: float) -> None:
    """A relay that adds a delay each way, until it is ended."""
    relay = Relay(target)
    relay.delay_s = delay_s
    await relay.start(port)
    await asyncio.Event().wait()


def pool_file(tenants: int, sidecars: int) -> str:
    """Elastic tenants without ceilings, on engines of ``SLOTS``; one in ten is guaranteed a little."""
    promised = max(tenants // 10, 1)
    guarantee = f"{{concurrency: {SLOTS * sidecars / promised / 4:.4f}}}"
    rows = [
        f"  - {{name: t{n}, pool: p, api_keys: [t{n}-key-{n}], "
        + (f"tier: guaranteed, guarantee: {guarantee}}}" if n % 10 == 0 else "tier: elastic}")
        for n in range(tenants)
    ]
    return "\n".join(
        [
            "pools:",
            f"  - {{name: p, models: [stub], replicas: {{min: {sidecars}, max: {sidecars}}},",
            f"     replica: {{tokens_per_second: 1000000, kv_tokens: auto, concurrency: {SLOTS}}}}}",
            "entitlements:",
            *rows,
        ]
    )


@contextlib.contextmanager
def pool(folder: Path, tenants: int, sidecars: int, distance_ms: float, engine: int) -> Iterator[list[int]]:
    """Everything but the engine; the ports of the sidecars."""
    file = folder / "pool.yaml"
    file.write_text(pool_file(tenants, sidecars))
    with contextlib.ExitStack() as stack:
        store: list[str] = []
        if distance_ms >= 0:
            own, far, page = free_port(), free_port(), free_port()
            redis = [
                executable(),
                "--port",
                str(own),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(folder),
            ]
            stack.enter_context(running(Part("redis", redis, folder)))
            between = [*module("experiments.distance"), "--relay", f"{own}:{far}:{distance_ms / 2000}"]
            stack.enter_context(running(Part("relay", between, folder)))
            store = ["--store", f"redis://127.0.0.1:{far}"]
            lead = [*module("coordinator"), "run", "--config", str(file), *store]
            lead += ["--listen", f"127.0.0.1:{page}", "--log-level", "warning"]
            stack.enter_context(
                running(Part("coordinator", lead, folder, f"http://127.0.0.1:{page}/healthz"))
            )
        ports, parts = [], []
        for number in range(sidecars):
            listen, admin = free_port(), free_port()
            run = [*module("sidecar"), "run", "--config", str(file), "--log-level", "error", *store]
            run += ["--upstream", f"http://127.0.0.1:{engine}", "--name", f"s{number}"]
            run += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"]
            parts.append(Part(f"sidecar{number}", run, folder, f"http://127.0.0.1:{admin}/readyz"))
            ports.append(listen)
        for part in parts:
            stack.enter_context(running(part))
        time.sleep(4)  # joined, and two looks at all limits
        yield ports


def request(tenant: int) -> bytes:
    """A small completion."""
    body = json.dumps({"model": "stub", "prompt": "share " * 16, "max_tokens": 32}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t{tenant}-key-{tenant}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connections:
    """Keep-alive connections to some ports."""

    def __init__(self) -> None:
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def ask(self, port: int, data: bytes) -> tuple[int, str]:
        """One request: status and reason."""
        idle = self._idle.setdefault(port, [])
        pair = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        reader, writer = pair
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            writer.close()
        else:
            idle.append(pair)
        return int(lines[0].split()[1]), fields.get("x-tokenpool-reason", "")

    def close(self) -> None:
        """Close all that are idle."""
        for pairs in self._idle.values():
            for _, writer in pairs:
                writer.close()


async def drive(
    ports: Sequence[int], tenants: int, rate: float, seconds: float, seed: int
) -> tuple[list[float], Counter[str]]:
    """Poisson arrivals, each of a random tenant at a random port; latencies (s), and why requests failed."""
    chance, connections = random.Random(f"distance {seed}"), Connections()
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    requests = [request(tenant) for tenant in range(tenants)]

    async def one(port: int, data: bytes) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(10):
                status, reason = await connections.ask(port, data)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            failures[type(error).__name__] += 1
            return
        latencies.append(time.perf_counter() - began)
        if status != 200:
            failures[f"{status} {reason}"] += 1

    started, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due < seconds:
            due += chance.expovariate(rate)
            await asyncio.sleep(max(started + due - time.perf_counter(), 0.0))
            group.create_task(one(chance.choice(ports), chance.choice(requests)))
    connections.close()
    return latencies, failures


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


def measure(folder: Path, engine: int, case: tuple[int, int, float], rate: float, seconds: float) -> Row:
    """One row."""
    tenants, sidecars, distance_ms = case
    direct, _ = uvloop.run(drive([engine], tenants, rate, min(seconds, 4.0), 0))
    with pool(folder, tenants, sidecars, distance_ms, engine) as ports:
        latencies, failures = uvloop.run(drive(ports, tenants, rate, seconds, 1))
    usual = percentile(direct, 0.5)
    return Row(
        tenants,
        sidecars,
        distance_ms,
        rate,
        len(latencies),
        failures.total(),
        dict(failures),
        1000 * (percentile(latencies, 0.5) - usual),
        1000 * (percentile(latencies, 0.99) - usual),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; 1 where a request was refused or waited too long."""
    parser = argparse.ArgumentParser(prog="python -m experiments.distance", description=__doc__)
    parser.add_argument("--tenants", default="50,200,500,1500")
    parser.add_argument("--sidecars", default="1,2,8")
    parser.add_argument("--distance-ms", default="-1,0,6,12,40", help="-1: the store in memory (one sidecar)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests/s in all [200]")
    parser.add_argument("--seconds", type=float, default=12.0, help="of load in each row [12]")
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
    if arguments.relay:
        target, port, delay = arguments.relay.split(":")
        uvloop.run(stand_between(int(target), int(port), float(delay)))
    cases = itertools.product(
        [int(n) for n in arguments.tenants.split(",")],
        [int(n) for n in arguments.sidecars.split(",")],
        [float(n) for n in arguments.distance_ms.split(",")],
    )
    engine, rows = free_port(), []
    print("tenants  sidecars  store, ms   requests  refused   added P50    P99 ms", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stub = [*module("experiments.distance"), "--serve", str(engine)]
        with running(Part("engine", stub, Path(folder), f"http://127.0.0.1:{engine}/health")):
            for number, case in enumerate(cases):
                if case[2] < 0 and case[1] > 1:
                    continue
                own = Path(folder) / str(number)
                own.mkdir()
                row = measure(own, engine, case, arguments.rate, arguments.seconds)
                rows.append(row)
                where = "memory" if row.distance_ms < 0 else f"{row.distance_ms:g}"
                print(
                    f"{row.tenants:7} {row.sidecars:9} {where:>10} {row.requests:10} {row.refused:8}"
                    f" {row.p50_ms:11.1f} {row.p99_ms:9.1f}  {'' if row.is_good else 'MISSED '}"
                    f"{row.reasons or ''}",
                    flush=True,
                )
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "result.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
