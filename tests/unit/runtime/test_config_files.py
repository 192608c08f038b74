"""A configuration of one file or of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import config_files
from runtime.filewatch import FileWatch


def mount(folder: Path, version: str, **files: str) -> None:
    """Put files into a folder as kubelet does: links to the newest version, which is swapped in one step."""
    (folder / f"..{version}").mkdir(parents=True)
    for name, text in files.items():
        (folder / f"..{version}" / f"{name}.yaml").write_text(text)
    (folder / "..next").symlink_to(f"..{version}")
    os.replace(folder / "..next", folder / "..data")
    for name in files:
        if not (folder / f"{name}.yaml").is_symlink():
            (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")


def test_a_file_is_read_alone(tmp_path: Path) -> None:
    (tmp_path / "pool.conf").write_text("a")
    (tmp_path / "other.yaml").write_text("b")
    assert config_files.read(tmp_path / "pool.conf") == [(str(tmp_path / "pool.conf"), "a")]


def test_a_folder_is_read_in_the_order_of_names_without_hidden_entries_and_folders(tmp_path: Path) -> None:
    mount(tmp_path, "one", b="2", a="1")
    (tmp_path / "c.yml").write_text("3")
    (tmp_path / ".d.yaml").write_text("hidden")
    (tmp_path / "README.md").write_text("not read")
    (tmp_path / "e.yaml").mkdir()
    names = [str(tmp_path / name) for name in ("a.yaml", "b.yaml", "c.yml")]
    assert config_files.read(tmp_path) == list(zip(names, "123", strict=True))
    assert config_files.size(tmp_path) == 3


@pytest.mark.parametrize("name", [None, ".hidden.yaml", "pool.json"])
def test_a_folder_without_a_file_is_an_error(tmp_path: Path, name: str | None) -> None:
    if name is not None:
        (tmp_path / name).write_text("x")
    with pytest.raises(OSError, match=r"no file \*\.yaml or \*\.yml"):
        config_files.read(tmp_path)


def test_a_dangling_link_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"a\.yaml"):
        config_files.read(tmp_path)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    with pytest.raises(UnicodeError, match=r"a\.yaml"):
        config_files.read(tmp_path)


async def test_every_change_of_a_folder_is_noticed(tmp_path: Path) -> None:
    changes: list[None] = []

    async def changed() -> None:
        changes.append(None)

    mount(tmp_path, "one", a="1")
    watch = FileWatch((tmp_path,), changed)

    async def is_noticed() -> bool:
        before = len(changes)
        await watch.check()
        return len(changes) > before

    assert not await is_noticed()
    mount(tmp_path, "two", a="2")
    assert await is_noticed()
    (tmp_path / "b.yaml").write_text("1")
    assert await is_noticed()
    (tmp_path / "b.yaml").write_text("22")  # in place: the folder itself stays the same
    assert await is_noticed()
    (tmp_path / "b.yaml").unlink()
    assert await is_noticed()
    (tmp_path / "notes.txt").write_text("x")
    assert not await is_noticed()
