"""TCP ports of the loopback address, and checks of their servers."""

from __future__ import annotations

import itertools
import random
import socket
import urllib.error
import urllib.request

_RANGE = range(10_000, 32_000)
"""Linux takes the ports of outgoing connections from 32768 on. One of those could be taken at any time."""
_untried = itertools.cycle(random.sample(_RANGE, len(_RANGE)))
"""An order of this process. So it is given no port twice before all others."""


def free_port() -> int:
    """A TCP port of loopback that nothing uses now, and that the system gives to no connection."""
    for port in itertools.islice(_untried, len(_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {_RANGE.start} to {_RANGE.stop - 1} is free")


def accepts(port: int) -> bool:
    """Whether a server listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether a GET returns 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
