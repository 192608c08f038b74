"""JSON patches: applying the difference of two documents to the first gives the second."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.patch import PatchInvalid, apply, difference

KEYS = st.text(st.sampled_from("ab/~"), max_size=3)
DOCUMENTS = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["x", "y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(before=DOCUMENTS, after=DOCUMENTS)
def test_a_difference_applied_gives_the_other_document(before: Any, after: Any) -> None:
    assert apply(before, difference(before, after)) == after


@given(document=DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: Any) -> None:
    assert difference(document, document) == []


def test_operations_come_in_the_order_of_their_paths() -> None:
    before = {"b": 1, "a": [{"x": 1}], "c": ["q"]}
    after = {"d": 2, "a": [{"x": 2}, {"y": 1}], "c": ["q", "r"]}
    assert difference(before, after) == [
        {"op": "replace", "path": "/a/0/x", "value": 2},
        {"op": "add", "path": "/a/1", "value": {"y": 1}},
        {"op": "remove", "path": "/b"},
        {"op": "replace", "path": "/c", "value": ["q", "r"]},
        {"op": "add", "path": "/d", "value": 2},
    ]


def test_keys_with_slashes_and_tildes_are_escaped() -> None:
    (operation,) = difference({}, {"tokenpool.io/a~b": 1})
    assert operation["path"] == "/tokenpool.io~1a~0b"


def test_a_value_can_be_appended_and_inserted() -> None:
    patch = [{"op": "add", "path": "/a/-", "value": 3}, {"op": "add", "path": "/a/0", "value": 1}]
    assert apply({"a": [2]}, patch) == {"a": [1, 2, 3]}


def test_the_document_itself_is_not_changed() -> None:
    before = {"a": [{"b": 1}]}
    apply(before, [{"op": "replace", "path": "/a/0/b", "value": 2}])
    assert before == {"a": [{"b": 1}]}


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"op": "move", "path": "/a", "from": "/b"}, "is not an add, remove or replace"),
        ({"op": "remove"}, "is not an add, remove or replace"),
        ({"op": "remove", "path": "/b"}, "/b: there is no 'b'"),
        ({"op": "replace", "path": "/b/c", "value": 1}, "/b/c: there is no 'b'"),
        ({"op": "add", "path": "/n/x", "value": 1}, "/n/x: 1 has no members"),
        ({"op": "add", "path": "/a/7", "value": 1}, "/a/7: 7 is not an index of the list"),
        ({"op": "remove", "path": "/a/x"}, "/a/x: 'x' is not an index of the list"),
    ],
)
def test_an_operation_that_does_not_fit_is_named(operation: dict[str, Any], words: str) -> None:
    with pytest.raises(PatchInvalid, match=words):
        apply({"a": [1], "n": 1}, [operation])


def test_a_part_that_a_document_has_twice_is_changed_once() -> None:
    shared = {"path": "/health"}
    document = {"a": shared, "b": shared}
    patch = [{"op": "replace", "path": "/a/path", "value": "/readyz"}]
    assert apply(document, patch) == {"a": {"path": "/readyz"}, "b": {"path": "/health"}}
    assert document["a"] == {"path": "/health"}
