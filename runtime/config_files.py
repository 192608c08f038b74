"""A configuration on disk: one file, or a folder of YAML files such as the mount of a ConfigMap.

The files of a folder are its entries ``*.yaml`` and ``*.yml``, in the order of their names. Hidden entries
are skipped: kubelet keeps the versions of a mount in them. Folders inside a folder are not read.
"""

from __future__ import annotations

import errno
from pathlib import Path

ENDINGS = (".yaml", ".yml")
_ATTEMPTS = 3
"""Kubelet replaces all files of a mount in one step. A read in the middle of it is repeated."""


def files(path: Path) -> list[Path]:
    """The files of a configuration. Raises ``OSError`` if a folder cannot be listed."""
    if not path.is_dir():
        return [path]
    found = (each for each in path.iterdir() if each.suffix in ENDINGS and not each.name.startswith("."))
    return sorted((each for each in found if not each.is_dir()), key=lambda each: each.name)


def read(path: Path) -> list[tuple[str, str]]:
    """The name and the text of each file, all of one version.

    Raises ``OSError``, also for a folder without such a file. Raises ``UnicodeError``, which names the file.
    """
    texts: list[tuple[str, str]] = []
    for attempt in range(_ATTEMPTS):
        try:
            before = [(each, mark(each)) for each in files(path)]
            texts = [(str(each), _text(each)) for each, _ in before]
            if before == [(each, mark(each)) for each in files(path)]:
                break
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1 or not path.is_dir():
                raise
    if not texts:
        raise FileNotFoundError(errno.ENOENT, "the folder has no file *.yaml or *.yml", str(path))
    return texts


def size(path: Path) -> int:
    """The bytes of all files. Raises ``OSError``."""
    return sum(each.stat().st_size for each in files(path))


def mark(path: Path) -> object:
    """A value that changes with a file, or with the files of a folder, also behind the links of a mount."""
    try:
        if path.is_dir():
            return tuple((each.name, mark(each)) for each in files(path))
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnicodeError(f"{path}: {error}") from None
