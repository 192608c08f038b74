"""The build that is under test."""

import pytest

import tokenpool.control.driver

IS_COMPILED = str(tokenpool.control.driver.__file__).endswith(".so")

from_source = pytest.mark.skipif(
    IS_COMPILED, reason="it replaces a part by a broken one, which a compiled class does not accept"
)
"""Marks a test that needs the data path as source. `make unit` and `make integration` run it."""
