"""The pool file: it turns a text into valid records, or into problems with their lines.

``reading`` makes records from YAML, ``checks`` compares the records with each other, and ``explain``
describes them. Pure: the sidecar reads variables and key files.
"""

from __future__ import annotations

from tokenpool.poolfile.explain import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import Parsed, parse
from tokenpool.yaml_nodes import Problem

__all__ = ["Parsed", "PoolFileError", "Problem", "explain", "parse"]
