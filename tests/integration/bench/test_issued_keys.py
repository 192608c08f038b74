"""The benchmark of issued keys runs, with few keys."""

from __future__ import annotations

import json

import pytest

from bench.issued_keys import main


def test_all_keys_are_restored_and_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--keys", "1200"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["known"] == 1200
    assert 0 < found["look_up_us"] < 1000
