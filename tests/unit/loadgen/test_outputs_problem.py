"""The texts for files that cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from loadgen import outputs
from loadgen.records import Lines, Sample, save

FULL = Path("/dev/full")


def test_a_full_disk_is_named_with_the_file() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "out/requests.jsonl")
    assert outputs.problem(error) == (
        "out/requests.jsonl: No space left on device; free space on the disk, or give another --out"
    )


def test_another_problem_has_a_fix() -> None:
    assert outputs.problem(OSError("odd")) == "odd; check the path and the disk"


def test_a_record_on_a_full_disk_names_its_file() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        save(FULL, {"a": 1})


def test_a_line_on_a_full_disk_names_its_file() -> None:
    lines = Lines(FULL)
    lines.write(Sample(0.0, "http://h", "engine"))  # it stays in a buffer
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        lines.close()
