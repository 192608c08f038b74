"""The states of a connection, and the comparison that stands for their table on the request path."""

from __future__ import annotations

import pytest

from sidecar.proxy.connection_state import SERVING, Serving


@pytest.mark.parametrize("before", Serving)
@pytest.mark.parametrize("after", Serving)
def test_a_connection_serves_one_thing_at_a_time(before: Serving, after: Serving) -> None:
    is_legal = (before is Serving.NOTHING) is not (after is Serving.NOTHING)

    assert (after in SERVING[before]) is is_legal
