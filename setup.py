"""The build: pure Python as a rule, and with ``TOKENPOOL_COMPILE=1`` the data path as machine code.

mypyc compiles modules as they are typed; what they do stays the same, and a request takes half of its time in
the interpreter (docs/decisions.md). It needs a C compiler and Python's headers.

It can do nothing with structs for the decoder, whose annotations it leaves out, nor with subclasses of built-in
types, nor with keywords of a class: modules that have those stay as they are, and are apart from those that run
for every request.
"""

from __future__ import annotations

import os
import sys

from setuptools import Extension, setup

COMPILED = [
    *(f"tokenpool/{name}.py" for name in ("admission", "cost", "door", "entitlements", "estimators")),
    *(f"tokenpool/{name}.py" for name in ("experience", "feedback", "grants", "ledger", "preemption")),
    "tokenpool/retries.py",
    *(f"sidecar/{name}.py" for name in ("gate", "stored", "telemetry", "usage")),
    *(f"sidecar/dialects/{name}.py" for name in ("bodies", "dialect", "openai", "prefixes")),
    *(f"sidecar/http/{name}.py" for name in ("answers", "bounds", "doorman", "downstream", "exchange")),
    *(f"sidecar/http/{name}.py" for name in ("framing", "heads", "known", "reading", "upstream", "waiting")),
]
"""What a request passes through. Plans take as long either way, so the planner is not among them."""


def extensions() -> list[Extension]:
    """The modules to compile."""
    from mypyc.build import mypycify  # noqa: PLC0415 - needed for this alone

    return mypycify(COMPILED, opt_level="2", debug_level="0", group_name="tokenpool")


compiles = os.environ.get("TOKENPOOL_COMPILE") == "1"
setup(
    # pip also asks for metadata, which costs a minute less without.
    ext_modules=extensions() if compiles and "bdist_wheel" in sys.argv else [],
    setup_requires=["mypy>=2,<3"] if compiles else [],
)
