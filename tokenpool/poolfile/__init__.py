"""The pool file: text in, valid records or located problems out.

``nodes`` reads YAML without losing lines, ``reading`` makes records of it, ``checks`` holds the records
against each other, ``explain`` tells a human what they amount to. Pure: variables and key files are read
by the sidecar.
"""

from __future__ import annotations

from tokenpool.poolfile.explain import explain
from tokenpool.poolfile.problems import PoolFileError, Problem
from tokenpool.poolfile.reading import Parsed, parse

__all__ = ["Parsed", "PoolFileError", "Problem", "explain", "parse"]
