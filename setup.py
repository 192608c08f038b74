"""The build: pure Python by default; with ``TOKENPOOL_COMPILE=1`` the wheel's data path is machine code.

``TOKENPOOL_OPTIMIZE=0`` compiles without optimizations, as tests of the image do. It takes less time.

mypyc compiles the modules that ``runtime/data_path.py`` lists. Their behaviour stays the same;
a request takes half of the CPU time (docs/decisions/). Compiling needs a C compiler and Python's headers.
"""

from __future__ import annotations

import os
import runpy
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())


def extensions() -> list[Extension]:
    """The modules to compile."""
    from mypyc.build import mypycify  # noqa: PLC0415 - only a compiled build needs it

    # -O2 and -O3 compile longer and gain nothing: most of the time is spent in Python's own library.
    # The list is run by its path: pip does not have this folder on the path, nor the dependencies installed.
    modules = runpy.run_path("runtime/data_path.py")["MODULES"]
    files = [f"{module.replace('.', '/')}.py" for module in modules]
    opt_level = os.environ.get("TOKENPOOL_OPTIMIZE", "1")
    return mypycify(files, opt_level=opt_level, debug_level="0", group_name="tokenpool")


compiles = os.environ.get("TOKENPOOL_COMPILE") == "1"
setup(
    # pip also asks for metadata; without extensions that saves a minute.
    ext_modules=extensions() if compiles and "bdist_wheel" in sys.argv else [],
    # The compiler reads the types of the dependencies.
    setup_requires=["mypy>=2,<3", *PROJECT["project"]["dependencies"]] if compiles else [],
)
