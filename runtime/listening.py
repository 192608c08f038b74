"""Listening: sockets for the addresses that an option names, in one or both families of IP.

asyncio makes every IPv6 socket for IPv6 only, so ``[::]`` would serve no IPv4. All servers of this project
listen on sockets that are made here.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from runtime.options import ANY, ANY_IPV4, ANY_IPV6, Address, Addresses

BACKLOG = 1024
MOST_PORTS_TRIED = 16
"""Attempts if the system chooses the port: a port may be free in one family and used in the other."""
UNSENT = 64 * 1024
"""The most bytes that the kernel keeps for a client that reads nothing. By default it takes 3 MB on loopback,
which count as memory of the container."""
_FIXES = {
    errno.EADDRINUSE: "another server listens there; stop it, or choose another port",
    errno.EACCES: "ports below 1024 need the capability NET_BIND_SERVICE; choose a higher one",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.EAFNOSUPPORT: f"this host has no IPv6; listen on {ANY_IPV4}",
}


class CannotListen(OSError):
    """An address cannot be listened on; the text names it and the fix."""


def listening(
    addresses: Sequence[Address], option: str = "--listen", *, is_shared: bool = False
) -> list[socket.socket]:
    """Sockets that listen, in the order of the addresses. Raises ``CannotListen``.

    Where the system is to choose the port (0), it is the same one for all of these addresses. ``is_shared``
    states that other processes of this user listen on the same addresses, too: the kernel chooses one of them
    for each connection.
    """
    opened = _opened(addresses, option, is_shared=is_shared)
    for sock in opened:
        sock.listen(BACKLOG)
    return opened


def reserved(addresses: Sequence[Address], option: str = "--listen") -> list[socket.socket]:
    """Sockets that keep the addresses for processes that share them. Raises ``CannotListen``.

    They do not listen. No other user's process can take the addresses while they are open.
    """
    probes = _opened(addresses, option, is_shared=False)  # fails if another server has the address
    chosen = next((sock.getsockname()[1] for sock in probes), 0)
    for sock in probes:
        sock.close()
    known = [each if each.port else each._replace(port=chosen) for each in addresses]
    return _opened(known, option, is_shared=True)


def _opened(addresses: Sequence[Address], option: str, *, is_shared: bool) -> list[socket.socket]:
    """Sockets that are bound. Raises ``CannotListen``."""
    tries = MOST_PORTS_TRIED if any(address.port == 0 for address in addresses) else 1
    while True:
        tries -= 1
        try:
            return _open(addresses, option, is_shared=is_shared)
        except CannotListen as error:
            if error.errno != errno.EADDRINUSE or tries == 0:
                raise


def _open(addresses: Sequence[Address], option: str, *, is_shared: bool) -> list[socket.socket]:
    chosen = 0
    opened: list[socket.socket] = []
    with ExitStack() as undo:
        for address in addresses:
            for family, where, is_for_ipv6_alone in _places(address, addresses, option):
                port = where[1] or chosen
                try:
                    sock = _bind(
                        family,
                        (where[0], port, *where[2:]),
                        is_for_ipv6_alone=is_for_ipv6_alone,
                        is_shared=is_shared,
                    )
                except OSError as error:
                    raise _cannot_listen(Address(address.host, port), error, option) from error
                undo.callback(sock.close)
                opened.append(sock)
                chosen = chosen or (sock.getsockname()[1] if address.port == 0 else 0)
        undo.pop_all()
    return opened


def _places(
    address: Address, addresses: Sequence[Address], option: str
) -> Iterator[tuple[socket.AddressFamily, tuple[Any, ...], bool]]:
    """The sockets of an address: family, socket address, and whether it serves only IPv6."""
    host = address.host
    if host == ANY:
        host = ANY_IPV6 if socket.has_dualstack_ipv6() else ANY_IPV4
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _cannot_listen(address, error, option) from error
    # An IPv4 address beside this one has its own socket, which needs the port.
    is_for_ipv6_alone = Address(ANY_IPV4, address.port) in addresses
    for family, where in dict.fromkeys((family, where) for family, _, _, _, where in found):
        yield family, where, is_for_ipv6_alone


def _bind(
    family: socket.AddressFamily, where: tuple[Any, ...], *, is_for_ipv6_alone: bool, is_shared: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)  # accepted sockets inherit it
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_for_ipv6_alone)
        sock.bind(where)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(address: Address, error: OSError, option: str) -> CannotListen:
    is_unknown = isinstance(error, socket.gaierror)
    what = "no such host is known" if is_unknown else os.strerror(error.errno or 0).lower()
    fix = _FIXES.get(error.errno or 0)
    failure = CannotListen(f"{option}: cannot listen on {address}: {what}{f'; {fix}' if fix else ''}")
    failure.errno = error.errno
    return failure


def bound(sockets: Iterable[socket.socket]) -> Addresses:
    """The addresses of listening sockets."""
    return Addresses(Address(*sock.getsockname()[:2]) for sock in sockets)
