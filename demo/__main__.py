"""``make demo``: a real engine on the CPU, one sidecar, three tenants of three tiers, shown live.

``DEMO_SECONDS`` ends it by itself; ``DEMO_UPSTREAM`` uses an engine that runs already (then
``DEMO_MODEL`` names its model). Everything listens on loopback, and ends with the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from demo import install_engine
from demo.engine import MODEL, Engine, EngineFailed, free_port
from demo.load import TENANTS, Tenant, run

OUT = install_engine.ROOT / "out" / "demo"
SLOTS = 8
_POOL = """\
pools:
  - name: demo
    models: ["*"]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
entitlements:
  - name: checkout
    pool: demo
    tier: guaranteed
    guarantee: {{tokens_per_second: 800, kv_tokens: 8192, concurrency: 4}}
    slo: {{ttft_ms: 300}}
    api_keys: ["sha256:{checkout}"]
  - name: search
    pool: demo
    tier: elastic
    ceiling: {{concurrency: 6}}
    api_keys: ["sha256:{search}"]
  - name: batch
    pool: demo
    tier: spot
    api_keys: ["sha256:{batch}"]
"""


class DemoFailed(RuntimeError):
    """The demo cannot go on; the text says why and what to do."""


def main() -> int:
    """Run the demo."""
    seconds = os.environ.get("DEMO_SECONDS", "")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        limit = float(seconds) if seconds else None
    except ValueError:
        print(f"demo: DEMO_SECONDS={seconds!r} is not a number of seconds", file=sys.stderr)
        return 2
    try:
        with _engine() as (upstream, model), _sidecar(upstream) as (proxy, admin):
            asyncio.run(_show(proxy, admin, model, limit))
    except (DemoFailed, EngineFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: ended")
    return 0


@contextlib.contextmanager
def _engine() -> Iterator[tuple[str, str]]:
    """The engine's address and model: one of our own, or the one that the user names."""
    given = os.environ.get("DEMO_UPSTREAM")
    if given:
        yield given.rstrip("/"), os.environ.get("DEMO_MODEL", MODEL)
        return
    if not install_engine.is_installed():
        raise DemoFailed(f"no engine is installed: run 'make engine'; {install_engine.HELP}")
    print("demo: starting a real vLLM on the CPU (20 to 60 s) ...", flush=True)
    with Engine(log=OUT / "engine.log", max_num_seqs=SLOTS) as engine:
        yield engine.url, MODEL


@contextlib.contextmanager
def _sidecar(upstream: str) -> Iterator[tuple[str, str]]:
    """A sidecar in front of the engine: the addresses of its two ports."""
    OUT.mkdir(parents=True, exist_ok=True)
    digests = {t.name: hashlib.sha256(t.key.encode()).hexdigest() for t in TENANTS}
    pool = OUT / "pool.yaml"
    pool.write_text(_POOL.format(slots=SLOTS, **digests))
    listen, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [sys.executable, "-m", "sidecar", "run", "--config", str(pool), "--upstream", upstream]
    with (OUT / "sidecar.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--listen", listen, "--admin", admin, "--drain-timeout", "3"],
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield f"http://{listen}", f"http://{admin}"
    finally:
        process.terminate()
        process.wait()


async def _show(proxy: str, admin: str, model: str, limit: float | None) -> None:
    """Put the tenants under load, and show the state until the time is up."""
    async with aiohttp.ClientSession() as session:
        await _ready(session, admin)
        print(_hints(proxy, admin, model), flush=True)
        tasks = [asyncio.create_task(run(t, proxy, model, seed=1)) for t in TENANTS]
        started = time.monotonic()
        try:
            while limit is None or time.monotonic() - started < limit:
                await asyncio.sleep(1.0 if sys.stdout.isatty() else 2.0)
                async with session.get(f"{admin}/debug/state") as response:
                    state = await response.json()
                print(_table(state, time.monotonic() - started), flush=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print(_summary(), flush=True)


async def _ready(session: aiohttp.ClientSession, admin: str) -> None:
    deadline = time.monotonic() + 15
    why = "it does not answer"
    while time.monotonic() < deadline:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{admin}/readyz") as response:
                if response.status == 200:
                    return
                why = ", ".join((await response.json())["problems"])
        await asyncio.sleep(0.1)
    raise DemoFailed(f"the sidecar is not ready: {why}; see {_shown(OUT / 'sidecar.log')}")


def _shown(path: Path) -> str:
    return str(path.relative_to(install_engine.ROOT))


def _hints(proxy: str, admin: str, model: str) -> str:
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":16}}'
    return "\n".join(
        [
            "",
            "Three tenants share one engine. Try, from another terminal:",
            f"  curl {proxy}/v1/chat/completions -H 'authorization: Bearer demo-checkout' \\",
            f"    -H 'content-type: application/json' -d '{body}'",
            f"  curl -i {proxy}/v1/models                       # no key: 401",
            f"  curl {admin}/debug/state                     # what everyone is entitled to now",
            f"  curl {admin}/metrics",
            "",
        ]
    )


def _table(state: Mapping[str, Any], elapsed: float) -> str:
    """The live view: who may use what, uses what, and was refused."""
    engine, rows = state["engine"], []
    rows.append(
        f"{elapsed:5.0f} s   engine: {engine['running']:.0f} running, {engine['waiting']:.0f} waiting,"
        f" KV {engine['kv_usage']:.1%};  capacity {_rate(state['capacity']['tokens_per_second'])} tokens/s,"
        f" {state['capacity']['concurrency']:.0f} sequences"
    )
    rows.append(
        f"  {'tenant':10}{'tier':12}{'guarantee':>10}{'limit':>7}{'in use':>7}{'demand':>8}"
        f"{'tokens/s limit':>15}{'debt':>7}{'served':>8}{'shed':>7}{'first token':>13}"
    )
    rows += [_row(tenant, state["entitlements"][tenant.name]) for tenant in TENANTS]
    text = "\n".join(rows)
    return f"\x1b[2J\x1b[H{text}" if sys.stdout.isatty() else text


def _row(tenant: Tenant, account: Mapping[str, Any]) -> str:
    limit, first = account["limit"], tenant.median_first_token()
    return (
        f"  {tenant.name:10}{tenant.tier:12}{account['guarantee']['concurrency']:>10.0f}"
        f"{limit['concurrency']:>7.0f}{account['in_use']['concurrency']:>7}"
        f"{account['demand']['concurrency']:>8.1f}{_rate(limit['tokens_per_second']):>15}"
        f"{account['debt']:>7.2f}{tenant.answers[200]:>8}{tenant.answers[429]:>7}"
        f"{f'{first:.0f} ms' if first is not None else '-':>13}"
    )


def _rate(tokens_per_second: float) -> str:
    return "not learned" if tokens_per_second >= 1e9 else f"{tokens_per_second:.0f}"


def _summary() -> str:
    rows = ["", "In all:"]
    for tenant in TENANTS:
        first = tenant.median_first_token()
        others = sum(n for status, n in tenant.answers.items() if status not in (200, 429))
        rows.append(
            f"  {tenant.name:10}{tenant.tier:12}{tenant.answers[200]:>6} served,"
            f" {tenant.answers[429]:>5} shed, {others} failed"
            + (f", first token after {first:.0f} ms (median)" if first is not None else "")
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
