"""The pool file of a coordinator, read by a child process."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.pool_file import PoolFileInvalid, read, read_apart
from tests.unit.coordinator.test_pages import MANY


async def test_a_child_and_this_process_read_a_file_alike(tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(MANY)
    assert await read_apart(file) == read(file)

    file.write_text("{")
    with pytest.raises(PoolFileInvalid, match="not YAML"):
        await read_apart(file)


async def test_without_a_child_the_file_is_read_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "no-such-codec")  # no interpreter begins with that
    file = tmp_path / "pool.yaml"
    file.write_text(MANY)
    assert await read_apart(file) == read(file)
    assert "the work is done in this process" in caplog.text
