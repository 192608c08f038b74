"""The memory limit is read from control groups of both versions, as a host and as a container see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import memory_limit

V1_NONE = "9223372036854771712\n"


def made(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system with these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "536870912\n"}, 536870912),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),
        ("", {"memory.max": "1000000\n"}, None),
        ("0::/a/b\n", {"memory.max": "max\n", "a/memory.max": "700\n", "a/b/memory.max": "900\n"}, 700),
        # A container may see the path of its host, but only its own group.
        ("0::/kubepods/pod1/c\n", {"memory.max": "800\n"}, 800),
        ("0::/../../other\n", {"memory.max": "800\n"}, 800),
        ("9:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": "600\n"}, 600),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": V1_NONE}, None),
        ("9:cpu,memory:/docker/x\n", {"memory/docker/x/memory.limit_in_bytes": "500\n"}, 500),
        ("9:memory:/docker/x\n", {"memory/memory.limit_in_bytes": "400\n"}, 400),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "400\n"}, None),
        ("nonsense\n0::/\n", {"memory.max": "not a number\n"}, None),
        ("0::/\n", {"memory.max": "0\n"}, None),
    ],
)
def test_the_smallest_limit_counts(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit.read(made(tmp_path, groups, files)) == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit.read(tmp_path) is None
