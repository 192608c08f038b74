"""Example scenarios, one for each common question. ``docs/examples`` links to them.

The first comment line of a file is its question. The other comment lines at its start say what it shows and
how it is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from loadgen import outputs

ORDER = ("guarantee", "knee", "fair", "replica-dies", "trace", "conversations", "gate")
"""The questions, in the order of the list."""


class UnknownQuestion(ValueError):
    """There is no example of this name. The text lists the names."""


@dataclass(frozen=True, slots=True)
class Example:
    """One packaged scenario."""

    name: str
    """The name of its file."""
    text: str
    companions: tuple[Traversable, ...]
    """Further files, which the scenario names."""

    @property
    def question(self) -> str:
        """What the scenario answers."""
        return self.text.partition("\n")[0].removeprefix("# ")


def find(question: str) -> Example:
    """The example of a question. Raises ``UnknownQuestion``."""
    if question not in ORDER:
        raise UnknownQuestion(f"no example answers '{question}'; use one of {', '.join(ORDER)}")
    folder = resources.files(__name__)
    companions = (each for each in folder.iterdir() if each.name.startswith(f"{question}.jsonl"))
    return Example(
        f"{question}.yaml", (folder / f"{question}.yaml").read_text(encoding="utf-8"), tuple(companions)
    )


def listed() -> str:
    """All questions, and how to get the example of one."""
    width = max(map(len, ORDER))
    lines = [f"  {name:<{width}}  {find(name).question}" for name in ORDER]
    return "\n".join(["Questions:", *lines, "", "'loadgen init QUESTION' writes a scenario."])


def written(example: Example, out: Path, *, force: bool) -> list[Path]:
    """Write an example, and its companions beside it. Raises ``OutputExists`` before anything is written."""
    files = {out: example.text} | {
        out.parent / each.name: each.read_text(encoding="utf-8") for each in example.companions
    }
    for path in files:
        outputs.check_file(path, force=force)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def next_steps(example: Example, paths: list[Path]) -> str:
    """The result of ``init`` for a terminal."""
    file = paths[0]
    return "\n".join(
        [
            f"{example.question} The scenario is {' with '.join(map(str, paths))}.",
            "Change the model and the keys to yours. The comments at its start say how to run it.",
            f"  loadgen check {file}",
        ]
    )
