"""The texts that can be the URL of a server or of a state page."""

from __future__ import annotations

import pytest

from loadgen.fields import ScenarioError
from loadgen.server_urls import check, check_server


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "https://h/", "http://h:1/v1", "http://[::1]:8000", "http://h/base"]
)
def test_a_server_has_a_url(url: str) -> None:
    check_server(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "h:8000", "ftp://h", "http://", "http://[::1", "http://h:abc", "http://h:99999", "http://h:0",
        "http://a b/", "http://h/\n", "http://h/\x1b[31m",
    ],
)  # fmt: skip
def test_another_text_is_an_error(url: str) -> None:
    with pytest.raises(ScenarioError, match="is not the URL of a server; write http://host:port"):
        check(url)


def test_a_password_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises(ScenarioError, match="user name; remove it, and write the key") as raised:
        check_server("http://me:secret@h:1/")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://h/?key=1", "http://h/#a"])
def test_a_query_is_for_state_pages_only(url: str) -> None:
    check(url)
    with pytest.raises(ScenarioError, match="has a part after"):
        check_server(url)
