"""Sockets that several processes listen on, and the addresses that are kept for them."""

from __future__ import annotations

import socket

import pytest

from runtime.listening import CannotListen, bound, listening, reserved
from runtime.options import Address, Addresses

ANY_PORT = Addresses.of("127.0.0.1", 0)


def test_shared_sockets_listen_on_one_address() -> None:
    (first,) = listening(ANY_PORT, is_shared=True)
    (second,) = listening(bound([first]), is_shared=True)

    assert bound([first]) == bound([second])
    first.close()
    second.close()


def test_another_server_cannot_take_a_shared_address() -> None:
    (shared,) = listening(ANY_PORT, is_shared=True)
    with pytest.raises(CannotListen, match="another server listens there"):
        listening(bound([shared]))
    shared.close()


def test_a_reserved_port_is_one_for_all_addresses_and_takes_no_connections() -> None:
    kept = reserved((Address("127.0.0.1", 0), Address("127.0.0.2", 0)))
    addresses = bound(kept)

    assert len({each.port for each in addresses}) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0], timeout=1)
    shared = listening(addresses, is_shared=True)
    for each in [*kept, *shared]:
        each.close()


def test_an_address_of_another_server_cannot_be_reserved() -> None:
    (other,) = listening(ANY_PORT, is_shared=True)
    with pytest.raises(CannotListen, match=r"--listen: cannot listen on 127.0.0.1"):
        reserved(bound([other]))
    other.close()
