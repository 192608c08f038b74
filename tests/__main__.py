"""Runs the tests in tiers: ``python -m tests TIER ...``, as the Makefile does.

One tier shows its output as it runs. Several tiers run beside each other, as far as the cores allow: a
line says which job began or ended, and the output of a failed job is shown in full. ``out/`` has all output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORES = 2
"""Jobs run as if the machine had two cores, so that a run takes about as long everywhere."""
POLL_S = 0.2
NICENESS = 19
"""The lowest priority that a process can have."""
MOST_TRIED_AGAIN = 5
"""A job with more failed tests is broken. No test of it runs again."""


@dataclass(frozen=True)
class Job:
    """One command of a run."""

    name: str
    command: Sequence[str]
    needs: frozenset[str] = frozenset()
    """Jobs that must have passed before."""
    cores: int = 1
    """Cores that no other job may use meanwhile; 0 for a job that mostly waits."""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_background: bool = False
    """Whether the job has the lowest priority and uses the time that other jobs leave idle.

    Its cores count among the jobs in the background only, so it may run beside a job that needs all cores.
    """
    tries_again: bool = False
    """Whether failed tests run once more, when all other jobs have ended, and the run names them.

    This is for tests with real processes, which other jobs may delay for seconds.
    """
    folder: Path = ROOT
    """Where the command runs."""
    after: frozenset[str] = frozenset()
    """Jobs that must have ended before, if the run has them."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    job: Job
    code: int | None
    """The exit code; none if it did not run, since a job that it needs failed."""
    seconds: float
    output: Path
    cpu_s: float = 0.0
    """The CPU time of its processes, in seconds. Daemons, such as dockerd, do not count."""
    tried_again: tuple[str, ...] = ()
    """The tests that failed and then passed alone."""

    @property
    def line(self) -> str:
        """One line for a person."""
        if self.code is None:
            return f"{self.job.name}: not run, a job that it needs failed"
        said = self.output.read_text(errors="replace").strip().splitlines()
        outcome = "passed" if self.code == 0 else f"FAILED ({self.code})"
        last = said[-1].strip("= ") if said else ""
        return f"{self.job.name}: {outcome} in {self.seconds:.0f} s, {self.cpu_s:.0f} s of CPU: {last}"


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", *arguments]


def _make(target: str) -> list[str]:
    return ["make", "--no-print-directory", target]


_SHARED = ("-n", str(CORES), "--dist", "worksteal")
# The threshold holds for both tiers together, see `make coverage`.
# A measured example takes twice the time. So a quarter of the examples is measured, and no simulation. The
# coverage of the other packages does not count. `make unit` and `unit-compiled` run all of them.
_COVERAGE = (
    "--cov",
    "--cov-report=",
    "--cov-fail-under=0",
    "--hypothesis-profile=measured",
    *(
        f"--ignore=tests/unit/{package}"
        for package in ("simulation", "loadgen", "injector", "experiments", "dashboard", "release")
    ),
)
_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "bytecode")}
"""Python keeps the bytecode of tests and sources, whatever the caller's setting is.

Otherwise each process compiles them again. Before its first test, pytest takes 8 s of CPU instead of 3 s.
A sidecar takes 0.75 s instead of 0.5 s before it serves.
"""
_COMPILED = _BYTECODE | {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{ROOT / '.compiled'}:{ROOT}"}
_AS_INSTALLED = "--import-mode=importlib"
"""Tests import the packages that the path names first, not those beside them."""


_LONG_SETUP = ("-o", "faulthandler_timeout=900")
"""The first test of containers builds the images, which took more than the usual 240 s beside other jobs."""
_OWN_ENGINES = ("tests/e2e/vllm/test_engine_pages.py",)
"""Tests that start vLLM with other options."""


def _measured(name: str) -> dict[str, str]:
    return _BYTECODE | {"COVERAGE_FILE": str(ROOT / "out" / f".coverage.{name}")}


# Jobs start in this order. Those in the background only compute or fetch, in the time that the others wait.
# Tests that assert durations come first: they wait most, and meanwhile the engine is installed.
JOBS = [
    Job("check", _make("check"), is_background=True),
    Job("engine", _make("engine"), cores=0, is_background=True),
    Job("provide", [sys.executable, "-m", "tests.provide"], is_background=True),
    Job("compile", _make("compiled"), is_background=True),
    Job(
        "unit",
        _pytest(*_SHARED, *_COVERAGE, "-m", "not thorough", "tests/unit"),
        environment=_measured("unit"),
        is_background=True,
    ),
    Job(
        "unit-compiled",
        _pytest(_AS_INSTALLED, *_SHARED, "tests/unit"),
        frozenset({"compile"}),
        environment=_COMPILED,
        is_background=True,
    ),
    # An object of a compiled class cannot be made from a value, so these searches run from source.
    Job(
        "explore",
        _pytest("tests/unit/simulation/test_explore.py"),
        environment=_BYTECODE,
        is_background=True,
    ),
    Job(
        "processes",
        _pytest("-m", "exclusive", "tests/integration"),
        cores=2,
        environment=_BYTECODE,
        tries_again=True,
    ),
    Job(
        "vllm",
        _pytest(_AS_INSTALLED, "tests/e2e/vllm", *(f"--ignore={file}" for file in _OWN_ENGINES)),
        frozenset({"engine", "compile"}),
        cores=2,
        environment=_COMPILED,
        tries_again=True,
    ),
    # It mostly waits: 60 of 380 s are its own CPU time. But it builds images, which would disturb tests that
    # assert durations.
    Job(
        "containers",
        _pytest(_AS_INSTALLED, *_LONG_SETUP, "tests/e2e/containers"),
        frozenset({"engine", "provide", "compile"}),
        cores=0,
        environment=_COMPILED,
        after=frozenset({"processes", "vllm"}),
        tries_again=True,
    ),
    # Its tests mostly wait for processes: in turn, 551 s of them took 257 s of CPU. So two run on one core.
    Job(
        "integration",
        _pytest(*_SHARED, *_COVERAGE, "-m", "not exclusive", "tests/integration"),
        environment=_measured("integration"),
        tries_again=True,
    ),
    Job(
        "sidecar-compiled",
        _pytest(_AS_INSTALLED, *_SHARED, "-m", "not exclusive", "tests/integration/sidecar"),
        frozenset({"compile"}),
        environment=_COMPILED,
        tries_again=True,
    ),
    # Mostly starts of engines, of 20 s each. No time is measured, so other jobs may run beside them.
    Job(
        "vllm-pages",
        _pytest(_AS_INSTALLED, *_OWN_ENGINES),
        frozenset({"engine", "compile"}),
        environment=_COMPILED,
        tries_again=True,
    ),
    Job(
        "browser",
        _pytest(_AS_INSTALLED, "tests/e2e/browser"),
        frozenset({"provide", "compile"}),
        environment=_COMPILED,
        tries_again=True,
    ),
    Job("coverage", _make("coverage"), frozenset({"unit", "integration"})),
]
TIERS = {
    "check": ["check"],
    "unit": ["unit"],
    "integration": ["integration", "processes"],
    "e2e": ["containers", "browser", "vllm-pages", "vllm"],
    "unit-compiled": ["unit-compiled", "explore", "sidecar-compiled"],
    "coverage": ["coverage"],
}


def selected(jobs: Sequence[Job], names: Iterable[str]) -> list[Job]:
    """The jobs of these names and all that they need, in order."""
    by_name = {job.name: job for job in jobs}
    wanted: set[str] = set()
    open_ = list(names)
    while open_:
        name = open_.pop()
        if name not in wanted:
            wanted.add(name)
            open_ += by_name[name].needs
    return [job for job in jobs if job.name in wanted]


def unmeasured(job: Job) -> Job:
    """The same job without a record of the branches that it executes."""
    return replace(job, command=[word for word in job.command if word not in _COVERAGE])


def run(jobs: Sequence[Job], out: Path, say: Callable[[str], None], *, cores: int = CORES) -> list[Ended]:
    """Run jobs beside each other, in order as far as what they need and the cores allow.

    Then the failed tests of some jobs run once more, and the jobs that waited for those.
    """
    out.mkdir(exist_ok=True)
    began = time.monotonic()

    def tell(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        say(f"[{minutes:2d}:{seconds:02d}] {text}")

    ended = _run_beside_each_other(jobs, {}, out, say, tell, cores)
    for first in list(ended.values()):
        if tests := _to_try_again(first, out):
            tell(f"{first.job.name}: once more, alone: {' '.join(tests)}")
            second = _try_again(first, tests, out)
            ended[first.job.name] = second
            tell(second.line)
            if second.code != 0:
                say(second.output.read_text(errors="replace"))
    left = [job for job in jobs if ended[job.name].code is None]
    passed = {name: each for name, each in ended.items() if each.code is not None}
    ended |= _run_beside_each_other(left, passed, out, say, tell, cores)
    return [ended[job.name] for job in jobs]


def _run_beside_each_other(
    jobs: Sequence[Job],
    before: Mapping[str, Ended],
    out: Path,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    cores: int,
) -> dict[str, Ended]:
    """How these jobs and those ``before`` ended."""
    waiting, running, ended = list(jobs), list[_Running](), dict(before)
    try:
        while waiting or running:
            for each in [each for each in running if each.has_ended()]:
                running.remove(each)
                ended[each.job.name] = end = each.end()
                tell(end.line)
                if end.code != 0:
                    say(end.output.read_text(errors="replace"))
            passed = {name: each.code == 0 for name, each in ended.items()}
            for job in startable(waiting, passed, [each.job for each in running], cores):
                waiting.remove(job)
                running.append(_Running(job, out / f"{job.name}.txt", _cache(job, out)))
                tell(f"{job.name}: started")
            for job in [job for job in waiting if any(n in ended and ended[n].code != 0 for n in job.needs)]:
                waiting.remove(job)
                ended[job.name] = Ended(job, None, 0.0, out / f"{job.name}.txt")
                tell(ended[job.name].line)
            time.sleep(POLL_S)
    finally:
        for each in running:
            each.interrupt()
    return ended


def _cache(job: Job, out: Path) -> list[str]:
    """Options of pytest with which it keeps the names of failed tests. Removes those of an earlier run."""
    folder = out.resolve() / f".failed.{job.name}"
    shutil.rmtree(folder, ignore_errors=True)
    return ["-o", f"cache_dir={folder}"] if job.tries_again else []


def _to_try_again(first: Ended, out: Path) -> list[str]:
    """The failed tests of a job that may run once more."""
    if first.code != pytest.ExitCode.TESTS_FAILED or not first.job.tries_again:
        return []
    failed = out / f".failed.{first.job.name}" / "v" / "cache" / "lastfailed"
    tests = list(json.loads(failed.read_text())) if failed.exists() else []
    return tests if len(tests) <= MOST_TRIED_AGAIN else []


def _try_again(first: Ended, tests: Sequence[str], out: Path) -> Ended:
    """Run tests of a job alone, one after the other."""
    program, options = first.job.command[:1], unmeasured(first.job).command[1:]
    kept = [word for word in options if word not in _SHARED and not (first.job.folder / word).exists()]
    again = replace(first.job, command=[*program, *kept, *tests])
    running = _Running(again, out / f"{first.job.name}.again.txt", [])
    while not running.has_ended():
        time.sleep(POLL_S)
    second = running.end()
    return replace(
        second,
        job=first.job,
        seconds=first.seconds + second.seconds,
        cpu_s=first.cpu_s + second.cpu_s,
        tried_again=tuple(tests) if second.code == 0 else (),
    )


def startable(
    waiting: Sequence[Job], passed: Mapping[str, bool], running: Sequence[Job] = (), cores: int = CORES
) -> list[Job]:
    """The jobs that can start now, given which others passed and which run.

    Cores are given in order: a job that waits for two of them keeps later jobs from taking one.
    """
    found = []
    free = {
        lane: cores - sum(job.cores for job in running if job.is_background == lane) for lane in (True, False)
    }
    unfinished = {job.name for job in (*waiting, *running)}
    for job in waiting:
        if not all(passed.get(name, False) for name in job.needs) or job.after & unfinished:
            continue
        if job.cores <= free[job.is_background] or job.cores == 0:
            found.append(job)
            free[job.is_background] -= job.cores
        else:
            free[job.is_background] = 0
    return found


class _Running:
    def __init__(self, job: Job, output: Path, options: Sequence[str]) -> None:
        self.job = job
        self._output = output
        self._began = time.monotonic()
        self._cpu_s = 0.0
        lowest = ["nice", "-n", str(NICENESS)] if job.is_background else []
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [*lowest, *job.command, *options],
                cwd=job.folder,
                env=os.environ | job.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=job.is_background,
            )
        if job.is_background:
            # Linux may share the cores among sessions first. Then the session needs a priority, too.
            with contextlib.suppress(OSError):
                Path(f"/proc/{self.process.pid}/autogroup").write_text(str(NICENESS))

    def has_ended(self) -> bool:
        """Whether the process has ended. ``Popen.poll`` would discard its CPU time."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_s = usage.ru_utime + usage.ru_stime
        return True

    def interrupt(self) -> None:
        """End a job in the background. Ctrl-C in the terminal reaches the others only."""
        if self.job.is_background:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()

    def end(self) -> Ended:
        seconds = time.monotonic() - self._began
        return Ended(self.job, self.process.returncode, seconds, self._output, self._cpu_s)


def run_in_turn(jobs: Iterable[Job]) -> int:
    """Run jobs one after the other, showing what they say, until one fails. Returns its exit code, or 0."""
    (ROOT / "out").mkdir(exist_ok=True)
    for job in jobs:
        began = time.monotonic()
        print(f"{job.name}: {' '.join(job.command)}", flush=True)
        code = subprocess.run(
            job.command, cwd=job.folder, env=os.environ | job.environment, check=False
        ).returncode
        print(f"{job.name}: {time.monotonic() - began:.0f} s", flush=True)
        if code != 0:
            return code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 if everything passed."""
    parser = argparse.ArgumentParser("python -m tests", description=__doc__)
    parser.add_argument("tiers", nargs="+", choices=TIERS)
    tiers = parser.parse_args(arguments).tiers
    jobs = selected(JOBS, [name for tier in tiers for name in TIERS[tier]])
    if "coverage" not in tiers:
        jobs = [unmeasured(job) for job in jobs]  # measuring takes twice the time
    if len(tiers) == 1:
        return run_in_turn(jobs)
    # The jobs in the background end with the run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ended = run(jobs, ROOT / "out", lambda line: print(line, flush=True))
    failed = [each.job.name for each in ended if each.code != 0]
    for each in ended:
        for test in each.tried_again:
            print(f"failed beside other jobs, passed alone: {test}")
    print(f"FAILED: {', '.join(failed)}" if failed else "everything passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
