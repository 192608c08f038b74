"""The page of usage with its plots: its text, and the policy for browsers. It reads its numbers itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from dashboard.server import content_security_policy


@dataclass(frozen=True, slots=True)
class Page:
    """A page that needs nothing from elsewhere."""

    text: str
    policy: str
    """The value of ``Content-Security-Policy``."""


def usage_page() -> Page:
    """The page. It reads ``/usage/report`` of its own origin."""
    text = resources.files("dashboard").joinpath("usage.html").read_text(encoding="utf-8")
    return Page(text, content_security_policy(text))
