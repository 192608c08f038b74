"""The pods of other projects: injected, refused with the fix, or unchanged."""

from __future__ import annotations

import pytest

from injector import start
from injector.decisions import Denial, Injection
from injector.patch import apply
from injector.sidecar_container import NAME
from tests.support.pods import container, decided, option, resolve, sidecar
from tests.support.stacks import SHAPES, Injects, LeavesAlone, Refuses, Shape


def of(kind: type) -> list[Shape]:
    return [shape for shape in SHAPES if isinstance(shape.expected, kind)]


@pytest.mark.parametrize("shape", of(Injects), ids=lambda shape: shape.name)
def test_a_pod_of_another_project_gets_a_sidecar_on_its_port(shape: Shape) -> None:
    expected, decision = shape.expected, decided(shape.pod)
    assert isinstance(expected, Injects)
    assert isinstance(decision, Injection), decision
    after = apply(shape.pod, decision.patch)
    made = sidecar(after)
    assert resolve(after, expected.port) == (NAME, expected.port)
    words = start.read(container(after, expected.engine)).words
    assert words[-4:] == (
        "--host",
        "127.0.0.1",
        "--port",
        option(made["args"], "--upstream").rpartition(":")[2],
    )
    assert ("--expose-engine-metrics" in made["args"]) == expected.exposes_metrics
    assert ("--tls-cert" in made["args"]) == expected.is_tls
    assert not [word for word in words if word.startswith("--ssl")]
    assert {note.reason for note in decision.notes} == expected.notes
    assert decided(after) == Injection()


@pytest.mark.parametrize("shape", of(Refuses), ids=lambda shape: shape.name)
def test_a_pod_of_another_project_is_refused_with_the_field_and_the_fix(shape: Shape) -> None:
    expected, decision = shape.expected, decided(shape.pod)
    assert isinstance(expected, Refuses)
    assert isinstance(decision, Denial), decision
    assert decision.reason == expected.reason
    assert all(words in decision.message for words in expected.words), decision.message
    assert len(decision.message) < 1024  # of an Event


@pytest.mark.parametrize("shape", of(LeavesAlone), ids=lambda shape: shape.name)
def test_a_worker_of_another_project_stays_unchanged(shape: Shape) -> None:
    expected, decision = shape.expected, decided(shape.pod)
    assert isinstance(expected, LeavesAlone)
    assert isinstance(decision, Injection), decision
    assert decision.patch == ()
    assert [note.reason for note in decision.notes] == [expected.reason]
