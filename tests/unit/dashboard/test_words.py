"""Sentences of the live page that no view test covers."""

from __future__ import annotations

from dashboard.words import not_enforced


def test_decisions_that_are_not_enforced_are_a_sentence() -> None:
    assert not_enforced({}) == "decisions are shown, not enforced"
    assert not_enforced({"shed": 12, "admit": 3400}) == (
        "decisions are shown, not enforced: 3,400 admit, 12 shed"
    )
