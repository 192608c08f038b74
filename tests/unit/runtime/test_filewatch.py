"""Watched files: each change is reported once, also a change during the owner's read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runtime.filewatch import FileWatch


class Owner:
    def __init__(self, *paths: Path) -> None:
        self.told = 0
        self.was_told = asyncio.Event()
        self.watch = FileWatch(paths, self.changed)

    async def changed(self) -> None:
        self.told += 1
        self.was_told.set()


async def test_a_change_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    owner = Owner(file)
    for content, told in (("a", 1), ("ab", 2), (None, 3), ("a", 4)):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        await owner.watch.check()
        await owner.watch.check()
        assert owner.told == told


async def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("a")
    owner = Owner(file)
    file.write_text("ab")
    await owner.watch.check()

    file.write_text("abc")  # the owner has read "ab", and names what it watches from now
    other.write_text("x")
    owner.watch.follow((file, other))
    await owner.watch.check()

    assert owner.told == 2


async def test_a_requested_reload_is_immediate(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "file")
    running = asyncio.create_task(owner.watch.run())
    owner.watch.request_reload()
    async with asyncio.timeout(5):
        await owner.was_told.wait()
    running.cancel()

    assert owner.told == 1
