"""Pictures are well-formed SVG, keep their data, and draw what is given."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox.pictures import HEAD, PANEL, TITLE, Line, Panel, Phase, Picture, drawing, keep, read


def made(
    *points: tuple[float, float | None], name: str = "a", is_log: bool = False, **fields: object
) -> Picture:
    panel = Panel("debt", (Line(name, points),), is_log=is_log, has_dots=True)
    return msgspec.structs.replace(Picture("A heading", "below", "seconds", (panel,)), **fields)


def heights(text: str) -> list[float]:
    return [float(each) for each in re.findall(r'<circle [^>]*cy="([\d.]+)"', text)]


def test_a_higher_value_is_drawn_higher() -> None:
    low, middle, high = heights(drawing(made((0, -1.0), (1, 0.0), (2, 3.0))))
    assert HEAD + TITLE <= high < middle < low <= HEAD + TITLE + PANEL


def test_a_gap_ends_a_line() -> None:
    text = drawing(made((0, 1.0), (1, None), (2, 1.0)))
    (path,) = re.findall(r'<path d="([^"]+)" fill="none"', text)
    assert path.count("M") == 2
    assert "L" not in path


def test_a_line_without_values_is_left_out_and_keeps_its_name() -> None:
    text = drawing(made((0, None)))
    assert 'fill="none"' not in text
    assert ">a</text>" in text


def test_a_logarithmic_axis_leaves_out_zero_and_spaces_factors_evenly() -> None:
    one, two, four = heights(drawing(made((1, 0.0), (2, 1.0), (3, 2.0), (4, 4.0), is_log=True)))
    assert one - two == pytest.approx(two - four, abs=0.2)


def test_a_given_range_may_begin_above_zero_and_keeps_values_inside() -> None:
    panel = Panel("covered", (Line("a", ((0, 70.0), (1, 80.0), (2, 90.0), (3, 99.0))),), has_dots=True)
    picture = made(panels=(msgspec.structs.replace(panel, ends=(80.0, 100.0)),))
    below, low, middle, above = heights(drawing(picture))
    assert below == low > middle > above
    assert ">90</text>" in drawing(picture)
    assert ">0</text>" in drawing(picture)  # of the horizontal axis only
    assert ">40</text>" not in drawing(picture)


def test_given_places_of_the_axis_are_marked() -> None:
    text = drawing(made((0.25, 1.0), (4.0, 1.0), ticks=(0.25, 4.0)))
    assert ">0.25</text>" in text
    assert ">4</text>" in text


def test_names_are_escaped() -> None:
    text = drawing(made((0, 1.0), name="<b>&", phases=(Phase("<i>", 0, 1),)))
    assert "&lt;b&gt;&amp;" in text
    assert "<i>" not in text


def test_a_picture_survives_json() -> None:
    picture = made((0, 1.0), (1, None), phases=(Phase("peak", 0, 1),))
    again = msgspec.json.decode(msgspec.json.encode(picture), type=Picture)
    assert again == picture
    assert drawing(again) == drawing(picture)


def test_a_kept_picture_is_drawn_again_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "made.svg"
    keep(made((0, 1 / 3), (1, None), phases=(Phase("peak", 0, 1),)), file)
    again = read(file.with_suffix(".json"))
    assert again.panels[0].lines[0].points == ((0, 0.3333), (1, None))
    assert drawing(again) == file.read_text()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6, allow_subnormal=False), st.none() | st.floats(-1e9, 1e9, allow_subnormal=False)
        ),
        max_size=20,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_numbers_give_well_formed_svg(
    points: list[tuple[float, float | None]], is_log: bool, is_log_axis: bool
) -> None:
    text = drawing(msgspec.structs.replace(made(*points, is_log=is_log), is_log=is_log_axis))
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "nan" not in text
    assert "inf" not in text
