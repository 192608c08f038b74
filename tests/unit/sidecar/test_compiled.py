"""The tested build is the requested one: machine code, if it was built and is first on the path."""

import os
from pathlib import Path

import sidecar.controller.controller
import sidecar.proxy.connection
import tokenpool.accounting.ledger

COMPILED = Path(__file__).parents[3] / ".compiled"


def test_the_tested_data_path_is_the_requested_build() -> None:
    first = Path(os.environ.get("PYTHONPATH", "").partition(":")[0])
    is_compiled = first == COMPILED and (COMPILED / ".made").exists()

    for module in (sidecar.controller.controller, sidecar.proxy.connection, tokenpool.accounting.ledger):
        assert str(module.__file__).endswith(".so") == is_compiled
