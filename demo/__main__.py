"""``make demo``: real engines on the CPU, a sidecar for each, three tenants of three tiers, and a live page.

The first line gives the URL of the live page. The last line states the result with the numbers of this run.
The guaranteed tenant is alone for some seconds. Then the others request more than the engine can serve.
All parts have default options. ``SIDECARS=3`` starts three of them, one Redis and two coordinators; a lone
sidecar needs neither. ``DEMO_SECONDS`` limits the duration. ``DEMO_UPSTREAM`` gives the URLs of running
engines, separated by commas; ``DEMO_MODEL`` then names their model. All parts listen on loopback, and end
with the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from demo import install_engine
from demo.load import TENANTS, Tenant, p95, run, warm_up
from demo.vllm_process import MODEL, VllmFailed, VllmProcess
from toolbox.ports import free_port
from toolbox.processes import NotReady, Process, module
from toolbox.redis import RedisProcess

OUT = install_engine.ROOT / "out" / "demo"
SLOTS = 8
ALONE_S = 8.0
"""The seconds in which the guaranteed tenant is alone; a quarter of the time in a short demo."""
MOST_SIDECARS = 8
"""The most sidecars. The engine of each takes about a gigabyte of memory."""
_POOL = """\
pools:
  - name: demo
    models: ["*"]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
    replicas: {{min: {replicas}, max: {replicas}}}
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
    """The demo cannot continue. The text gives the reason and the next step."""


def main() -> int:
    """Run the demo."""
    seconds, count = os.environ.get("DEMO_SECONDS", ""), os.environ.get("SIDECARS") or "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        limit = float(seconds) if seconds else None
    except ValueError:
        print(f"demo: DEMO_SECONDS={seconds!r} is not a number of seconds", file=sys.stderr)
        return 2
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MOST_SIDECARS):
        print(f"demo: SIDECARS={count!r} is not a number from 1 to {MOST_SIDECARS}", file=sys.stderr)
        return 2
    where = _addresses(len(_given()) or int(count))
    print(f"demo: the live page will be at {where.page}", flush=True)
    try:
        with _engines(int(count)) as (upstreams, model), _pool(upstreams, where) as pool:
            asyncio.run(_show(pool, model, limit))
    except (DemoFailed, VllmFailed, NotReady) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: ended")
    return 0


@dataclass(frozen=True)
class Running:
    """The addresses of the pool's parts."""

    proxies: Sequence[str]
    admins: Sequence[str]
    coordinators: Sequence[str] = ()

    @property
    def page(self) -> str:
        """The live page of the whole pool."""
        return f"{(*self.coordinators, *self.admins)[0]}/"


def _given() -> list[str]:
    """The URLs of engines in ``DEMO_UPSTREAM``."""
    return [url.strip().rstrip("/") for url in os.environ.get("DEMO_UPSTREAM", "").split(",") if url.strip()]


def _addresses(count: int) -> Running:
    """The addresses of all parts, before they start."""
    proxies, admins = ([f"http://127.0.0.1:{free_port()}" for _ in range(count)] for _ in range(2))
    coordinators = [f"http://127.0.0.1:{free_port()}" for _ in range(2)] if count > 1 else []
    return Running(proxies, admins, coordinators)


def _listen(url: str) -> str:
    return url.removeprefix("http://")


@contextlib.contextmanager
def _engines(count: int) -> Iterator[tuple[Sequence[str], str]]:
    """The engines' URLs and their model: engines that the demo starts, or those in ``DEMO_UPSTREAM``."""
    given = _given()
    if given:
        yield given, os.environ.get("DEMO_MODEL", MODEL)
        return
    if not install_engine.is_installed():
        try:
            install_engine.install()
        except install_engine.Uninstallable as error:
            raise DemoFailed(f"no engine can be installed: {error}; {install_engine.HELP}") from error
    which = "a real vLLM" if count == 1 else f"{count} real vLLMs"
    print(f"demo: starting {which} on the CPU (20 to 60 s each) ...", flush=True)
    with contextlib.ExitStack() as stack:
        # One after another, because the start of an engine uses all cores.
        engines = [
            stack.enter_context(VllmProcess(OUT / f"engine{number or ''}.log", max_num_seqs=SLOTS))
            for number in range(count)
        ]
        yield [engine.url for engine in engines], MODEL


@contextlib.contextmanager
def _pool(upstreams: Sequence[str], where: Running) -> Iterator[Running]:
    """A sidecar in front of each engine; with several, Redis and two coordinators."""
    OUT.mkdir(parents=True, exist_ok=True)
    digests = {t.name: hashlib.sha256(t.key.encode()).hexdigest() for t in TENANTS}
    file, count = OUT / "pool.yaml", len(upstreams)
    file.write_text(_POOL.format(slots=SLOTS, replicas=count, **digests))
    with contextlib.ExitStack() as stack:
        lease_store: list[str] = []
        if count > 1:
            redis = stack.enter_context(RedisProcess(OUT, is_group=True))
            lease_store = ["--store", redis.url]
            for number, url in enumerate(where.coordinators):
                command = [*module("coordinator"), "run", "--config", str(file), *lease_store]
                command += ["--listen", _listen(url)]
                stack.enter_context(_process(f"coordinator{number}", command))
        for number, (upstream, proxy, admin) in enumerate(
            zip(upstreams, where.proxies, where.admins, strict=True)
        ):
            command = [*module("sidecar"), "run", "--config", str(file), *lease_store]
            command += ["--upstream", upstream, "--listen", _listen(proxy), "--admin", _listen(admin)]
            stack.enter_context(_process(f"sidecar{number or ''}", [*command, "--drain-timeout", "3"]))
        yield where


def _process(name: str, command: Sequence[str]) -> Process:
    """One part in its own session. Ctrl-C ends the demo, which ends its parts in order."""
    return Process(name, command, OUT, is_group=True)


async def _show(pool: Running, model: str, limit: float | None) -> None:
    """Send the tenants' load, and print the state until the time is over."""
    async with aiohttp.ClientSession() as session:
        for number, admin in enumerate(pool.admins):
            await _ready(session, admin, number)
        await warm_up(TENANTS[0], pool.proxies, model)
        print(_hints(pool, model), flush=True)
        tasks: list[asyncio.Task[None]] = []
        alone = ALONE_S if limit is None else min(ALONE_S, limit / 4)
        started = time.monotonic()
        try:
            while limit is None or time.monotonic() - started < limit:
                elapsed = time.monotonic() - started
                if not tasks or (len(tasks) == 1 and elapsed >= alone):
                    TENANTS[0].alone_count = len(TENANTS[0].first_token_ms) if tasks else None
                    coming = TENANTS[1:] if tasks else TENANTS[:1]
                    tasks += [asyncio.create_task(run(t, pool.proxies, model, seed=1)) for t in coming]
                await asyncio.sleep(1.0 if sys.stdout.isatty() else 2.0)
                states = [await _get(session, f"{admin}/debug/state") for admin in pool.admins]
                scale = [await _get(session, f"{page}/scale/demo") for page in pool.coordinators[:1]]
                print(_table(states, scale, time.monotonic() - started), flush=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print(_summary(), flush=True)
            print(sentence(TENANTS, time.monotonic() - started, len(pool.proxies)), flush=True)


async def _get(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    async with session.get(url) as response:
        page: Mapping[str, Any] = await response.json()
        return page


async def _ready(session: aiohttp.ClientSession, admin: str, number: int) -> None:
    deadline = time.monotonic() + 15
    why = "it does not answer"
    while time.monotonic() < deadline:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{admin}/readyz") as response:
                said = await response.json()
                if said["status"] == "ready":
                    return
                why = ", ".join([*said["problems"], *said["degraded"]])
        await asyncio.sleep(0.1)
    log = _shown(OUT / f"sidecar{number or ''}.log")
    raise DemoFailed(f"the sidecar is not ready: {why}; see {log}")


def _shown(path: Path) -> str:
    return str(path.relative_to(install_engine.ROOT))


def _hints(pool: Running, model: str) -> str:
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":16}}'
    proxy, admin, count = pool.proxies[0], pool.admins[0], len(pool.proxies)
    shared = "one engine" if count == 1 else f"{count} engines behind {count} sidecars"
    lines = [
        "",
        f"The live page: {pool.page}",
        f"Three tenants share {shared}. Try, from another terminal:",
        f"  curl {proxy}/v1/chat/completions -H 'authorization: Bearer demo-checkout' \\",
        f"    -H 'content-type: application/json' -d '{body}'",
        f"  curl -i {proxy}/v1/models                       # no key: 401",
        f"  curl {admin}/debug/state                     # the current limits of all tenants",
        f"  curl {admin}/metrics",
    ]
    if count > 1:
        lines += [
            f"  other sidecars: {', '.join(pool.proxies[1:])}",
            f"  curl {pool.coordinators[0]}/scale/demo             # the scale hint for an autoscaler",
            f"  curl {pool.coordinators[1]}/debug/state                     # the other coordinator",
        ]
    return "\n".join([*lines, ""])


def _table(states: Sequence[Mapping[str, Any]], scale: Sequence[Mapping[str, Any]], elapsed: float) -> str:
    """The table of all tenants: limits, use and refusals."""
    engines, rows = [state["engine"] for state in states], []
    capacity = [state["capacity"] for state in states]
    running = " + ".join(f"{engine['running'] or 0:.0f}" for engine in engines)
    rows.append(
        f"{elapsed:5.0f} s   engine: {running} running,"
        f" {sum(engine['waiting'] or 0 for engine in engines):.0f} waiting,"
        f" KV {max(engine['kv_usage'] or 0 for engine in engines):.1%};"
        f"  capacity {_rate(sum(c['tokens_per_second'] for c in capacity))} tokens/s,"
        f" {sum(c['concurrency'] for c in capacity):.0f} sequences"
    )
    rows += [
        f"          desired replicas {s.get('desired_replicas', '-')}: {s.get('reason', s.get('error'))}"
        for s in scale
    ]
    rows.append(
        f"  {'tenant':10}{'tier':12}{'guarantee':>10}{'limit':>7}{'in use':>7}{'demand':>8}"
        f"{'tokens/s limit':>15}{'debt':>7}{'served':>8}{'shed':>7}{'first token':>13}"
    )
    rows += [_row(tenant, [state["entitlements"][tenant.name] for state in states]) for tenant in TENANTS]
    text = "\n".join(rows)
    return f"\x1b[2J\x1b[H{text}" if sys.stdout.isatty() else text


def _row(tenant: Tenant, accounts: Sequence[Mapping[str, Any]]) -> str:
    account, first = accounts[0], tenant.median_first_token()
    limit = account["limit"]
    return (
        f"  {tenant.name:10}{tenant.tier:12}{account['guarantee']['concurrency']:>10.0f}"
        f"{limit['concurrency']:>7.0f}{sum(a['in_use']['concurrency'] for a in accounts):>7}"
        f"{sum(a['demand']['concurrency'] for a in accounts):>8.1f}{_rate(limit['tokens_per_second']):>15}"
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


def sentence(tenants: Sequence[Tenant], seconds: float, engines: int) -> str:
    """One sentence with the numbers of this run. The guaranteed tenant comes first."""
    first = tenants[0]
    alone, crowded = (p95(part) for part in first.alone_and_crowded())
    if alone is None or crowded is None:
        shown = f"{first.name} ({first.tier}) received too few responses for a comparison"
    else:
        shown = (
            f"95 % of the answers to {first.name} ({first.tier}) began within {alone:.0f} ms while it was"
            f" alone, and within {crowded:.0f} ms in the overload"
        )
    sheds = [f"{tenant.answers[429]} of {sum(tenant.answers.values())} {tenant.tier}" for tenant in tenants]
    where = "one engine" if engines == 1 else f"{engines} engines"
    shed = f"{', '.join(sheds[:-1])} and {sheds[-1]} requests were shed"
    return f"\nShown in {seconds:.0f} s on {where}: {shown}; {shed}."


if __name__ == "__main__":
    sys.exit(main())
