"""The runner of the tiers with real processes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.__main__ import MOST_TRIED_AGAIN, NICENESS, Job, run


def python(name: str, code: str, *needs: str, cores: int = 1, **environment: str) -> Job:
    return Job(name, [sys.executable, "-c", code], frozenset(needs), cores, environment)


def test_jobs_run_and_say_how_they_ended(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [
        python("good", "import os; print('all', os.environ['HOW'])", HOW="well"),
        python("bad", "print('what went wrong'); print('1 failed'); raise SystemExit(3)"),
        python("later", "print('reached')", "good"),
        python("never", "print('reached')", "bad"),
        python("nor this", "print('reached')", "never"),
    ]
    ended = {each.job.name: each for each in run(jobs, tmp_path / "out", said.append)}

    assert {name: each.code for name, each in ended.items()} == {
        "good": 0, "bad": 3, "later": 0, "never": None, "nor this": None,
    }  # fmt: skip
    assert (tmp_path / "out" / "good.txt").read_text() == "all well\n"
    lines = "\n".join(said)
    assert re.search(r"good: passed in \d s, \d s of CPU: all well", lines)
    assert re.search(r"bad: FAILED \(3\) in \d s, \d s of CPU: 1 failed", lines)
    assert "what went wrong\n1 failed\n" in said
    assert "never: not run, a job that it needs failed" in lines
    assert lines.index("good: passed") < lines.index("later: started")


def test_jobs_that_need_the_machine_to_themselves_get_it(tmp_path: Path) -> None:
    """Each notes its start and end in one file."""
    note = tmp_path / "note"
    code = (
        f"import sys; f = open({str(note)!r}, 'a', buffering=1); f.write(sys.argv[1] + ' ');"
        "f.write('-' + sys.argv[1] + ' ')"
    )
    jobs = [
        Job(name, [sys.executable, "-c", code, name], cores=cores)
        for name, cores in [("a", 2), ("b", 1), ("c", 1)]
    ]
    assert all(each.code == 0 for each in run(jobs, tmp_path / "out", lambda _: None))
    assert note.read_text().split()[:2] == ["a", "-a"]


def suite(name: str, folder: Path, code: str, *needs: str) -> Job:
    """A job of pytest with one file of tests."""
    file = folder / f"test_{name}.py"
    file.write_text(code)
    options = ("--rootdir=.", f"--config-file={os.devnull}")
    command = [sys.executable, "-m", "pytest", "-q", *options, file.name]
    return Job(name, command, frozenset(needs), tries_again=True, folder=folder)


ONCE = """
import pathlib
def test_passes(): pass
def test_fails_once():
    mark = pathlib.Path(__file__).with_suffix(".mark")
    if not mark.exists():
        mark.touch()
        assert False
"""


def test_a_failed_test_runs_once_more_alone_and_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [
        suite("once", tmp_path, ONCE),
        suite("always", tmp_path, "def test_fails(): assert False"),
        suite(
            "many", tmp_path, "".join(f"def test_{n}(): assert False\n" for n in range(MOST_TRIED_AGAIN + 1))
        ),
        suite("broken", tmp_path, "import nothing_of_this_name"),
        python("after", "print('reached')", "once"),
    ]
    ended = {each.job.name: each for each in run(jobs, tmp_path / "out", said.append)}

    assert {name: each.code for name, each in ended.items()} == {
        "once": 0, "always": 1, "many": 1, "broken": 2, "after": 0,
    }  # fmt: skip
    assert ended["once"].tried_again == ("test_once.py::test_fails_once",)
    assert not any(each.tried_again for name, each in ended.items() if name != "once")
    again = {line.split("] ")[1] for line in said if "once more" in line}
    assert again == {
        "once: once more, alone: test_once.py::test_fails_once",
        "always: once more, alone: test_always.py::test_fails",
    }
    assert "1 passed" in (tmp_path / "out" / "once.again.txt").read_text()


def test_a_job_in_the_background_has_the_lowest_priority(tmp_path: Path) -> None:
    code = "import os; print(os.nice(0))"
    jobs = [Job(str(each), [sys.executable, "-c", code], is_background=each) for each in (False, True)]
    assert all(each.code == 0 for each in run(jobs, tmp_path, lambda _: None))
    first, other = ((tmp_path / f"{each}.txt").read_text() for each in (False, True))
    assert (int(first), int(other)) == (os.nice(0), NICENESS)


def test_an_interrupted_run_ends_its_jobs_in_the_background(tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.touch()
    sleeping = Job("sleeping", ["sh", "-c", f"sleep 60; rm {note}"], is_background=True)

    def say(text: str) -> None:
        if "started" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([sleeping], tmp_path / "out", say)
    assert note.exists()
