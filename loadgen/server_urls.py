"""The URLs of ``--url`` and ``--state``: what can be the address of a server. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from loadgen.fields import ScenarioError


def base(url: str) -> str:
    """The beginning of the URLs of a server's endpoints. ``/v1`` at its end is left out: each path has it."""
    return url.rstrip("/").removesuffix("/v1")


def check(url: str) -> None:
    """Raise ``ScenarioError`` if a text cannot be the URL of a page."""
    try:
        parts = urlsplit(url)
        is_wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # a port or an IPv6 address that is none
        is_wrong = True
    if is_wrong or not url.isprintable() or " " in url:
        raise ScenarioError(f"{url!r} is not the URL of a server; write http://host:port")


def check_server(url: str) -> None:
    """The same for a server, whose URL is the beginning of those of its endpoints."""
    check(url)
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        # The URL is not shown: it contains a password.
        raise ScenarioError(
            f"the --url of {parts.hostname} contains a user name; "
            "remove it, and write the key as the tenant's 'key:' in the scenario"
        )
    if parts.query or parts.fragment:
        raise ScenarioError(f"{url!r} has a part after '?' or '#'; write http://host:port")
