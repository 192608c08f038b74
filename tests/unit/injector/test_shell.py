"""Scripts of a shell: the command that starts the engine is found, or the script is not read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import shell, start
from tests.support.scripts import READ, UNREAD

OURS = ["--host", "127.0.0.1", "--port", "18000"]


def found(script: str) -> start.Start:
    return start.read({"name": "x", "command": ["sh", "-c"], "args": [script]})


@pytest.mark.parametrize("script", READ)
def test_a_plain_command_in_a_script_is_found_and_edited_in_place(script: str) -> None:
    read = found(script)
    assert read.is_vllm
    fields = read.with_options(OURS, {"--host", "--port"})
    assert fields is not None
    (made,) = fields["args"]
    # Nothing but the options is new.
    assert made.replace(" " + " ".join(OURS), "", 1) == script
    assert found(made).words == (*read.words, *OURS)


@pytest.mark.parametrize("script", UNREAD)
def test_a_script_that_starts_it_otherwise_is_not_read(script: str) -> None:
    read = found(script)
    assert read.script is None
    assert not read.is_vllm


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (["sh", "-c", "vllm serve m"], 2),
        (["/bin/bash", "-lc", "--", "vllm serve m"], 3),
        (["bash", "-euo", "pipefail", "-c", "vllm serve m", "--"], 4),
        (["bash", "-e", "-o", "pipefail", "-c", "vllm serve m"], 5),
        (["bash", "--noprofile", "-c", "vllm serve m", "name", "--port", "9"], 3),
    ],
)
def test_the_script_is_found_among_the_shells_own_options(words: list[str], index: int) -> None:
    for split in (1, len(words)):
        read = start.read({"name": "x", "command": words[:split], "args": words[split:]})
        fields = read.with_options(OURS, {"--host", "--port"})
        assert fields is not None
        (changed,) = fields.values()
        every = [*words[:split], *changed] if "args" in fields else changed
        assert every[index] == "vllm serve m --host 127.0.0.1 --port 18000"


@pytest.mark.parametrize(
    "words", [["bash", "/start.sh"], ["sh"], ["bash", "-x", "start.sh", "-c", "vllm serve m"]]
)
def test_a_script_in_a_file_is_not_read(words: list[str]) -> None:
    assert start.read({"name": "x", "command": words}).script is None


def test_the_words_after_a_script_are_its_arguments() -> None:
    read = start.read(
        {"name": "x", "command": ["sh", "-c", 'vllm serve m "$@" --x', "--"], "args": ["--port", "9"]}
    )
    assert read.words == ("vllm", "serve", "m", "--port", "9", "--x")


@pytest.mark.parametrize(
    "script",
    [
        "vllm serve " + '"$(' * 10_000,
        "vllm serve " + "${a:-" * 10_000,
        "vllm serve m; " + "x " * 20_000,
        "ray start " * 4_000,
    ],
)
def test_a_script_that_is_long_or_deep_is_not_read(script: str) -> None:
    assert found(script).script is None


@given(script=st.text(alphabet="vs m\n;&|<>(){}'\"\\$`#=!-[]"))
def test_any_text_is_read_or_refused_without_an_error(script: str) -> None:
    read = shell.commands(script)
    for command in read or ():
        for word in command.words:
            assert 0 <= word.start <= word.end <= len(script)
            assert "".join(script[at] for at in word.places) == word.value


@given(
    before=st.lists(
        st.sampled_from(["echo a", "A=1", "if true; then echo; fi", "x=$(ls | wc -l)", "# vllm serve"])
    ),
    after=st.sampled_from(["", "\n", " # comment", " | tee log", " > log 2>&1", "\n# end\n"]),
    words=st.lists(
        st.sampled_from(["--a", '"b c"', "'d;e'", "$F", "${G:-h i}", "$(cat m)", "\\\n --k", "l\\ m"])
    ),
)
def test_the_text_around_the_command_stays(before: list[str], after: str, words: list[str]) -> None:
    command = " ".join(["vllm serve", *words])
    script = "".join(f"{line}\n" for line in before) + command + after
    fields = found(script).with_options(OURS, set())
    assert fields is not None
    (made,) = fields["args"]
    assert made == "".join(f"{line}\n" for line in before) + command + " " + " ".join(OURS) + after
