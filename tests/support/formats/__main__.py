"""``python -m tests.support.formats vN`` writes the formats of the current code into a new folder."""

from __future__ import annotations

import sys

from tests.support.formats import VERSIONS, write

if __name__ == "__main__":
    write(VERSIONS / sys.argv[1])
