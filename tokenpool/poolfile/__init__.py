"""The pool file: text in, valid records or located problems out.

``reading`` makes records of YAML, ``checks`` compares the records with each other, ``explain`` describes them
for people. Pure: the sidecar reads variables and key files.
"""

from __future__ import annotations

from tokenpool.poolfile.explain import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import Parsed, parse
from tokenpool.yaml_nodes import Problem

__all__ = ["Parsed", "PoolFileError", "Problem", "explain", "parse"]
