"""The files of earlier results: no command overwrites them without ``--force``."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from loadgen import exports
from loadgen.rates import report as rates
from loadgen.records import GOALS, META, PARTS, REPORT, REQUESTS, STATE, SUMMARY, TABLE

RESULTS = frozenset(
    {
        REQUESTS,
        STATE,
        META,
        SUMMARY,
        GOALS,
        REPORT,
        TABLE,
        *exports.FILES.values(),
        rates.REPORT,
        rates.DATA,
        rates.TABLE,
    }
)
"""The names that ``run``, ``sweep`` and ``capacity`` write into their folder."""
RATES = "rate-*-run*"
"""The folders of the runs of ``sweep`` and ``capacity``. ``PARTS`` stays if several processes are killed."""


_FIXES = {
    errno.ENOSPC: "free space on the disk, or give another --out",
    errno.EDQUOT: "free space on the disk, or give another --out",
    errno.EACCES: "give a path that you may read and write",
    errno.EPERM: "give a path that you may read and write",
    errno.EROFS: "give an --out on a disk that can be written",
    errno.ENOENT: "create its folder first, or correct the path",
    errno.ENOTDIR: "name a folder, not a file, before the last /",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "raise the limit of open files with ulimit -n, or use more --processes",
    errno.ENFILE: "close other programs, because the machine has too many open files",
}


def problem(error: OSError) -> str:
    """The text for a file that cannot be read or written: its name, the problem and the fix."""
    named = f"{error.filename}: " if error.filename is not None else ""
    fix = _FIXES.get(error.errno or 0, "check the path and the disk")
    return f"{named}{error.strerror or error}; {fix}"


class OutputExists(Exception):
    """Results would be overwritten. The text names the path and the fix."""


def check_file(path: Path, *, force: bool) -> None:
    """Raise ``OutputExists`` if a file is there and must stay."""
    if path.is_dir():
        raise OutputExists(f"--out: {path} is a folder; name a file")
    if path.exists() and not force:
        raise OutputExists(f"--out: {path} exists; give another --out, or --force to overwrite it")


def check_folder(folder: Path, *, force: bool) -> None:
    """Raise ``OutputExists`` if a folder has results that must stay."""
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"--out: {folder} is a file; name a folder")
    found = earlier(folder)
    if found and not force:
        raise OutputExists(
            f"--out: {folder} has the results of an earlier run ({found[0].name}); give another --out, or "
            "--force to delete them"
        )


def clear(folder: Path) -> None:
    """Delete earlier results, so that none of them is taken for a new one. Other files stay."""
    for path in earlier(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def earlier(folder: Path) -> list[Path]:
    """The results in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name in RESULTS or _is_folder_of_runs(path))


def _is_folder_of_runs(path: Path) -> bool:
    return path.is_dir() and (path.name == PARTS or path.match(RATES))
