"""Draws the curves of experiments again: ``python -m docs.curves`` reads ``images/*.curves.json``.

An experiment writes both files (``toolbox/pictures.py``). The data are kept beside each drawing, so that a
changed style needs no new run.
"""

from __future__ import annotations

from pathlib import Path

from toolbox.pictures import drawing, read

FOLDER = Path(__file__).parent / "images"


def files() -> list[Path]:
    """The data of all curves."""
    return sorted(FOLDER.glob("*.curves.json"))


def main() -> None:
    """Write the drawings."""
    for file in files():
        file.with_suffix(".svg").write_text(drawing(read(file)))
        print(file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
