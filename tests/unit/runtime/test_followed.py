"""Files with credentials: the newest content that could be used is in force."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from runtime.followed import Credentials, FollowedFiles


class Accepted:
    """Uses the content of a file, unless it is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_text()
        self.refused: set[str] = set()

    async def __call__(self) -> tuple[Path, ...]:
        content = self.path.read_text()
        if content in self.refused:
            raise ConnectionError(f"{content} is refused")
        if not content:
            raise ValueError("the file is empty")
        self.content = content
        return (self.path,)


def mounted(folder: Path, content: str) -> Path:
    """A file as kubelet mounts it: a link to a folder that a later version replaces at once."""
    (folder / "..first").mkdir()
    (folder / "..first" / "key").write_text(content)
    (folder / "..data").symlink_to("..first")
    (folder / "key").symlink_to("..data/key")
    return folder / "key"


def swap(folder: Path, content: str) -> None:
    """Replace the folder behind the links, as kubelet does."""
    (folder / "..second").mkdir()
    (folder / "..second" / "key").write_text(content)
    (folder / "..new").symlink_to("..second")
    os.replace(folder / "..new", folder / "..data")


def value(files: FollowedFiles) -> float:
    everything = Credentials()
    everything.files.append(files)
    [family] = everything.metrics()
    [sample] = family.samples
    assert (sample.name, sample.labels) == ("tokenpool_credentials_current", {"of": "store"})
    assert bool(everything.problems()) == (sample.value == 0)
    return sample.value


async def test_a_swapped_folder_is_put_in_force(tmp_path: Path) -> None:
    path = mounted(tmp_path, "one")
    accepted = Accepted(path)
    files = FollowedFiles("store", [path], accepted)
    await files.watch.check()
    assert accepted.content == "one"
    swap(tmp_path, "two")
    await files.watch.check()
    assert accepted.content == "two"
    assert value(files) == 1


@pytest.mark.parametrize("fault", ["empty", "gone", "not UTF-8"])
async def test_an_unusable_file_leaves_the_old_content_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    accepted = Accepted(path)
    files = FollowedFiles("store", [path], accepted)
    match fault:
        case "empty":
            path.write_text("")
        case "gone":
            path.unlink()
        case _:
            path.write_bytes(b"\xff")
    for _ in range(3):
        await files.watch.check()
    assert accepted.content == "one"
    assert value(files) == 0
    assert files.problem is not None
    assert files.problem.startswith("the new credentials of the store cannot be used: ")
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    path.write_text("two")
    await files.watch.check()
    assert accepted.content == "two"
    assert files.problem is None
    assert value(files) == 1


async def test_a_refused_content_is_tried_again_without_another_change(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    accepted = Accepted(path)
    accepted.refused.add("two")
    files = FollowedFiles("store", [path], accepted)
    path.write_text("two")
    await files.watch.check()
    await files.watch.check()
    assert (accepted.content, value(files)) == ("one", 0)
    accepted.refused.clear()
    await files.watch.check()
    assert (accepted.content, value(files)) == ("two", 1)
