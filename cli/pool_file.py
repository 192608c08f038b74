"""Reading a pool file for a command: the file or folder, with the reader of all programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime import config_files
from tokenpool.poolfile.reading import Parsed, parse_all


def add_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Declare the positional argument ``file``."""
    parser.add_argument(
        "file",
        type=Path,
        nargs="?" if optional else None,
        help="the pool file, or a folder of *.yaml files",
    )


def read(path: Path) -> Parsed:
    """The valid pool file. Raises ``PoolFileError``, ``OSError`` or ``UnicodeError``."""
    return parse_all(config_files.read(path))
