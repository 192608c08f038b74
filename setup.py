"""The build: pure Python as a rule, and with ``TOKENPOOL_COMPILE=1`` the data path as machine code.

mypyc compiles modules as they are typed; what they do stays the same, and a request takes half of its time
(docs/decisions.md). It takes a C compiler and Python's headers. Which modules, and what those must not have,
is said in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())


def extensions() -> list[Extension]:
    """The modules to compile."""
    from mypyc.build import mypycify  # noqa: PLC0415 - needed for this alone

    # More than -O1 takes longer and gains nothing: most of the work is done in Python's own library.
    modules = PROJECT["tool"]["tokenpool"]["compiled"]
    return mypycify(modules, opt_level="1", debug_level="0", group_name="tokenpool")


compiles = os.environ.get("TOKENPOOL_COMPILE") == "1"
setup(
    # pip also asks for metadata, which costs a minute less without.
    ext_modules=extensions() if compiles and "bdist_wheel" in sys.argv else [],
    # To be compiled, modules must find the types of what they import.
    setup_requires=["mypy>=2,<3", *PROJECT["project"]["dependencies"]] if compiles else [],
)
