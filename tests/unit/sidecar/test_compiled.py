"""Whether what is tested here is what was asked for: machine code, where it was made and is named first."""

import os
from pathlib import Path

import sidecar.controller.controller
import sidecar.proxy.connection
import tokenpool.accounting.ledger

COMPILED = Path(__file__).parents[3] / ".compiled"


def test_the_data_path_under_test_is_the_one_that_was_asked_for() -> None:
    first = Path(os.environ.get("PYTHONPATH", "").partition(":")[0])
    is_compiled = first == COMPILED and (COMPILED / ".made").exists()

    for module in (sidecar.controller, sidecar.proxy.connection, tokenpool.accounting.ledger):
        assert str(module.__file__).endswith(".so") == is_compiled
