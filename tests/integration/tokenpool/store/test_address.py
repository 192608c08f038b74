"""Every kind of Redis that a URL can name, against real servers; and invalid URLs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from tests.integration.tokenpool.store.servers import redis_server
from tokenpool.leases.messages import LeaseRequest, Limit, Message
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoreDown
from tokenpool.store.address import AddressInvalid, open_store, shown
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import executable

TERMS = IdleTerms((50.0, 500.0, 2.0), (100.0, 1000.0, 4.0))
LIMIT = Limit(100, 1000, 4, 200)


async def works(url: str) -> None:
    """Publish limits, get a lease, and receive notifications."""
    store = open_store(url, "p", 0.01, 5.0)
    await store.publish({"a": LIMIT}, TERMS, 1)
    said = LeaseRequest(concurrency_wanted=2, kv_wanted=10, tokens_wanted=5)
    await store.exchange(Message("s1", 0, {"a": said}))
    answer = await store.exchange(Message("s1", 1, {"a": said}))
    assert answer.leases["a"].limit == LIMIT
    assert (await store.read()).records["a"].limit == LIMIT
    await store.close()


async def test_a_password_and_a_user(tmp_path: Path) -> None:
    options = (
        *("--requirepass", "secret", "--user", "pool", "on", ">word"),
        *("~tokenpool:*", "resetchannels", "&tokenpool:*", "+@all"),
    )
    with redis_server(tmp_path, *options) as (port, _):
        await works(f"redis://:secret@127.0.0.1:{port}")
        await works(f"redis://pool:word@127.0.0.1:{port}/0")
        wrong = open_store(f"redis://pool:wrong@127.0.0.1:{port}", "p", 1, 1)
        with pytest.raises(StoreDown, match=r"(?i)password|auth"):
            await wrong.publish({}, TERMS, 1)
        await wrong.close()


async def test_tls_with_a_private_authority(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with redis_server(tmp_path) as (plain, _):
        async with tls_in_front_of(plain, certificate, key) as port:
            await works(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
            untrusted = open_store(f"rediss://127.0.0.1:{port}", "p", 1, 5)
            with pytest.raises(StoreDown, match=r"(?i)certificate"):
                await untrusted.publish({}, TERMS, 1)
            await untrusted.close()


@contextlib.asynccontextmanager
async def tls_in_front_of(port: int, certificate: str, key: str) -> AsyncIterator[int]:
    """A TLS port for a server that may have been built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, inner[1]), carry(inner[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await asyncio.sleep(0.05)  # until the connections have ended


def self_signed(folder: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1, and its key."""
    certificate, key = str(folder / "c.pem"), str(folder / "k.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_the_master_that_sentinels_name(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "word") as (port, _):
        folder = tmp_path / "sentinel"
        folder.mkdir()
        config = folder / "sentinel.conf"
        watch = free_port()
        config.write_text(
            f"port {watch}\nsentinel monitor group 127.0.0.1 {port} 1\nsentinel auth-pass group word\n"
        )
        with Process("sentinel", [executable(), str(config), "--sentinel"], folder, probe=watch):
            await works(f"redis+sentinel://:word@127.0.0.1:{free_port()},127.0.0.1:{watch}/group/0")


async def test_a_cluster(tmp_path: Path) -> None:
    port = free_port()
    while port > 55_000:  # the nodes' own port is 10,000 higher
        port = free_port()
    with redis_server(tmp_path, "--cluster-enabled", "yes", port=port):
        with redis.Redis(port=port) as node:
            node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            deadline = time.monotonic() + 10
            while node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        await works(f"redis+cluster://127.0.0.1:{port}")
        gone = open_store(f"redis+cluster://127.0.0.1:{free_port()}", "p", 1, 1)
        with pytest.raises(StoreDown):
            await gone.limits()
        await gone.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://x", "begins with one of"),
        ("localhost:6379", "begins with one of"),
        ("redis://h:port", "not a store"),
        ("redis+sentinel://u:p@h:26379", "name the group"),
        ("redis+cluster://:secret@h:x", "it cannot be read"),
        ("redis+cluster://h:1?colour=red", "option colour"),
        ("redis+cluster://h:99999", "from 1 to 65535"),
        ("rediss+cluster://h:1?colour=red", "option colour"),
        ("redis+sentinel://h:1/group/x", "number of a database"),
        ("redis://h/x", "number of a database"),
        ("redis://h?ssl_cert_reqs=none", "TLS options need rediss://"),
        ("rediss://h?ssl_cert_reqs=bogus", "none, optional or required"),
        ("rediss://h?decode_responses=true", "option decode_responses"),
        ("unix:///socket?max_connections=1", "option max_connections"),
        ("redis://:secret#x@h:6379", "%23"),
        ("redis://:secret/x@h:6379", "%2F"),
        ("redis+cluster://u:secret/x@h:1", "%2F"),
    ],
)
def test_an_invalid_url_is_refused_without_showing_the_password(url: str, says: str) -> None:
    with pytest.raises(AddressInvalid, match=says) as caught:
        open_store(url, "p", 1, 1)
    assert "secret" not in str(caught.value)


def test_a_shown_url_has_no_password() -> None:
    assert shown("rediss://user:pass@host:1/0?ssl_cert_reqs=none") == "rediss://user:***@host:1/0"
    assert shown("redis://host") == "redis://host"


@pytest.mark.parametrize(
    "nonsense",
    [b":1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$5\r\n\xff\xfe\xfd\xfc\xfb\r\n", b"*1\r\n*0\r\n"],
)
async def test_a_server_with_another_protocol_is_a_store_that_is_down(nonsense: bytes) -> None:
    async def answer_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            if not await reader.read(1 << 16):
                break
            writer.write(nonsense)
        writer.close()

    server = await asyncio.start_server(answer_nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = open_store(f"redis://127.0.0.1:{port}", "p", 1, 0.3)
    for call in (
        lambda: store.exchange(Message("s1", 0, {"a": LeaseRequest()})),
        store.read,
        store.limits,
        store.file,
        lambda: anext(aiter(store.listen("s1"))),
    ):
        with pytest.raises(StoreDown):
            async with asyncio.timeout(7):
                await call()
    await store.close()
    server.close()
