"""Ports for test processes."""

from __future__ import annotations

import socket

from toolbox.ports import free_port

FIRST_OF_CONNECTIONS = 32768


def test_ports_differ_before_anything_listens_and_are_none_of_connections() -> None:
    found = [free_port() for _ in range(500)]
    assert len(set(found)) == 500
    assert max(found) < FIRST_OF_CONNECTIONS


def test_a_port_in_use_is_not_given() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        assert taken.getsockname()[1] not in {free_port() for _ in range(500)}
