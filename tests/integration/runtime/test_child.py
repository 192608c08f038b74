"""Children answer in frames; one that cannot is an error that says how it ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from runtime.child import ChildFailed, frames
from tests.support.harness import until

CHILD = """
import os, sys, time
from runtime import child

def answer(request):
    yield request.upper()
    yield b""
    if request == b"die":
        sys.stdout.buffer.flush()
        os._exit(3)
    if request == b"break":
        sys.stdout.buffer.write(b"\\0\\0\\1\\0half")
        sys.stdout.buffer.flush()
        os._exit(0)
    if request == b"hang":
        sys.stdout.buffer.flush()
        time.sleep(60)
    yield b"x" * 1_000_000

if __name__ == "__main__":
    child.serve(answer)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_child_for_tests.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))


async def ask(request: bytes, longest_s: float = 20.0) -> list[bytes]:
    return [frame async for frame in frames("a_child_for_tests", request, longest_s)]


async def test_a_child_answers_in_frames_of_any_size() -> None:
    assert await ask(b"hello") == [b"HELLO", b"", b"x" * 1_000_000]


@pytest.mark.parametrize(
    ("request_", "words"),
    [(b"die", "ended with status 3"), (b"break", "in the middle of its answer")],
)
async def test_a_child_that_ends_without_its_answer_is_an_error(request_: bytes, words: str) -> None:
    with pytest.raises(ChildFailed, match=words):
        await ask(request_)


async def test_a_child_that_reads_no_request_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a_deaf_child.py").write_text("print(end='')")
    assert [frame async for frame in frames("a_deaf_child", b"x" * 1_000_000)] == []


async def test_a_child_whose_answer_is_not_needed_is_ended(tmp_path: Path) -> None:
    (tmp_path / "a_child_with_an_id.py").write_text(
        "import os, time\n"
        f"open({str(tmp_path / 'new')!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'pid')!r})\n"
        "time.sleep(60)\n"
    )
    pid = tmp_path / "pid"

    async def asks() -> None:
        async for _ in frames("a_child_with_an_id", b""):
            pass

    task = asyncio.create_task(asks())
    await until(pid.exists, 20.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: not Path(f"/proc/{pid.read_text()}").exists())


async def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(ChildFailed, match="did not answer within 1 s"):
        await ask(b"hang", 1.0)


async def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ChildFailed, match="ended with status 1"):
        _ = [frame async for frame in frames("no_such_module_anywhere", b"")]


async def test_a_child_that_cannot_start_is_an_error() -> None:
    with pytest.raises(ChildFailed, match="no process"):
        _ = [frame async for frame in frames("a_child_for_tests", b"", program=os.devnull)]
