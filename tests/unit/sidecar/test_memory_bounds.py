"""Bounds from the memory limit: what fills them fits, explicit options win, too small a limit is named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.options import SettingsError
from sidecar.memory_bounds import (
    CONNECTION_BYTES,
    FEWEST_CONNECTIONS,
    IDLE_BYTES,
    MOST_BUFFERED,
    MOST_CONNECTIONS,
    TLS_BYTES,
    TRACE_BYTES,
    TRACING_BYTES,
    MemoryBounds,
    derive,
)
from tests.support.harness import settings_of

MIB = 1 << 20
UPSTREAM = "--upstream http://engine"
TRACED = f"{UPSTREAM} --otlp-endpoint http://collector:4318"
TLS = f"{UPSTREAM} --tls-cert c.pem --tls-key k.pem"


def test_without_a_limit_the_bounds_are_the_largest() -> None:
    assert derive(settings_of(UPSTREAM), 0, None) == MemoryBounds(MOST_CONNECTIONS, MOST_BUFFERED)


def test_a_large_body_has_room_in_one_entitlements_share() -> None:
    bounds = derive(settings_of(f"{UPSTREAM} --max-body-bytes {400 * MIB}"), 0, None)
    assert bounds.buffered_bytes * 0.5 > 400 * MIB


@pytest.mark.parametrize("limit", [None, 256 * MIB, 8 << 30])
def test_an_explicit_option_wins(limit: int | None) -> None:
    settings = settings_of(f"{UPSTREAM} --max-connections 9 --max-buffered-bytes 90000000")
    assert derive(settings, 0, limit) == MemoryBounds(9, 90_000_000)


@given(
    st.integers(128 * MIB, 64 << 30),
    st.integers(0, 20_000),
    st.sampled_from(
        [UPSTREAM, TLS, f"{UPSTREAM} --max-body-bytes 1000000", f"{TLS} --max-connections 300", TRACED]
    ),
)
def test_all_bounds_together_fit_into_the_limit(limit: int, entitlements: int, options: str) -> None:
    settings = settings_of(options)
    try:
        bounds = derive(settings, entitlements, limit)
    except SettingsError:
        return
    each = CONNECTION_BYTES + settings.max_head_bytes + (TLS_BYTES if settings.tls_cert else 0)
    filled = IDLE_BYTES + bounds.connections * each + bounds.buffered_bytes + settings.max_body_bytes
    if settings.otlp_endpoint:
        filled += TRACING_BYTES + bounds.connections * TRACE_BYTES
    if settings.max_connections is None:
        assert filled <= limit
        assert FEWEST_CONNECTIONS <= bounds.connections <= MOST_CONNECTIONS
    assert bounds.buffered_bytes * settings.entitlement_share > settings.max_body_bytes


@pytest.mark.parametrize("options", [UPSTREAM, TLS, TRACED])
def test_a_limit_that_is_too_small_is_named_with_one_that_suffices(options: str) -> None:
    settings = settings_of(options)
    with pytest.raises(SettingsError, match="the memory limit of 96 MiB has no room") as caught:
        derive(settings, 10, 96 * MIB)
    found = re.search(r"raise it to (\d+) MiB", str(caught.value))
    assert found is not None
    enough = int(found[1])
    assert derive(settings, 10, enough * MIB).connections >= FEWEST_CONNECTIONS
    with pytest.raises(SettingsError):
        derive(settings, 10, (enough - 2) * MIB)


def test_more_entitlements_leave_less_for_connections() -> None:
    settings = settings_of(UPSTREAM)
    few, many = (derive(settings, count, 512 * MIB) for count in (10, 10_000))
    assert few.connections > many.connections
