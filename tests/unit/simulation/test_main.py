"""The table of the command ``python -m simulation``."""

from simulation.__main__ import _HEAD, _line, row
from simulation.figures import Figures
from simulation.mixes import small_tenants


def test_each_column_has_a_figure() -> None:
    assert len(_line(row("a run", small_tenants(seed=1), Figures()))) == len(_HEAD)
