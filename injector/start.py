"""How a container starts its server: a list of words, or a shell that runs a plain command. Pure.

``read`` finds the words of the server's command, also inside a shell script. ``Start.with_options`` gives the
container's fields with other options. A script is edited only where exactly one command of it starts vLLM,
outside every condition, loop and function. Everything else in the script stays as it is.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from injector import command_line, shell
from injector.shape import Json

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_PREFIXES = frozenset({"exec", "env", "nohup"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_MENTION = re.compile(r"vllm\s+serve|vllm\.entrypoints")
_HARMLESS = frozenset({"echo", "printf", "pkill", "pgrep", ":"})
_REFERENCE = re.compile(r"\$\((\w+)\)|\$\{(\w+)\}|\$(\w+)")
_ALL_ARGUMENTS = frozenset({"$@", "$*", "${@}", "${*}"})


MAX_SCRIPT_CHARS = 32 * 1024
"""Longer scripts are not read. Reading takes about 1 ms per 1,000 characters; KServe's script has 10,000."""


@dataclass(frozen=True, slots=True)
class _Script:
    """The place of a server's command in a script."""

    field: str
    """``command`` or ``args``."""
    index: int
    """The index of the script in that list."""
    text: str
    words: tuple[shell.Word, ...]
    end: int
    """The place after the command's last word."""


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a container's server."""

    container: Json
    words: tuple[str, ...]
    """Its command and options. References to literal environment variables are replaced by their values."""
    is_shell: bool
    """Whether a shell starts it."""
    script: _Script | None
    """The place of the command; ``None`` without a shell, and for a script that cannot be edited."""

    @property
    def is_read(self) -> bool:
        """Whether ``words`` are the server's own."""
        return not self.is_shell or self.script is not None

    @property
    def is_vllm(self) -> bool:
        """Whether it certainly starts vLLM. The image decides if there is no command."""
        if self.is_shell or self.container.get("command"):
            return self.is_read and command_line.starts_vllm(self.words)
        return command_line.is_vllm_image(self.container.get("image") or "")

    @property
    def unknown(self) -> tuple[str, ...]:
        """The words whose values are not known before the container runs, and may be options."""
        return tuple(dict.fromkeys(word for word in self.words if re.fullmatch(r"\$\S+", word)))

    def with_options(
        self, options: Sequence[str], drop: Set[str], switches: Set[str] = frozenset()
    ) -> dict[str, Any] | None:
        """The container's changed ``command`` and ``args``: options at the end, others dropped.

        ``None`` if the options to drop cannot be cut out of a script. vLLM uses the last value of an option,
        so the values of a script need not be cut.
        """
        if self.script is not None:
            edited = _edited(self.container, self.script, options, switches, drop)
            return edited if self._is_edited(edited, options, drop, switches) else None
        command, args = self.container.get("command"), self.container.get("args")
        if args is None and command:
            return {"command": [*command_line.without(command, drop, switches), *options]}
        fields: dict[str, Any] = {"args": [*command_line.without(args or [], drop, switches), *options]}
        if command and (kept := command_line.without(command, drop, switches)) != command:
            fields["command"] = kept
        return fields

    def _is_edited(
        self, fields: dict[str, Any], options: Sequence[str], drop: Set[str], switches: Set[str]
    ) -> bool:
        """Whether the edited script reads as it should: a cut across quotes may go wrong."""
        after = read({**self.container, **fields})
        given = {word for word in options if word.startswith("--")}
        return (
            after.script is not None
            and after.words[-len(options) :] == tuple(options)
            and not command_line.removed(after.words, drop - given, switches)
        )


def read(container: Json) -> Start:
    """The start of a container."""
    command, args = list(container.get("command") or ()), list(container.get("args") or ())
    every = [*command, *args]
    known = _literals(container)
    if not every or command_line.base(every[0]) not in _SHELLS:
        return Start(container, _resolved(every, known), is_shell=False, script=None)
    at = _script_index(every)
    found = _command(every[at]) if at is not None else None
    if at is None or found is None:
        return Start(container, tuple(every), is_shell=True, script=None)
    words, end = found
    field, index = ("command", at) if at < len(command) else ("args", at - len(command))
    arguments = every[at + 2 :]
    values: list[str] = []
    for word in words:
        values += arguments if word.value in _ALL_ARGUMENTS else [word.value]
    script = _Script(field, index, every[at], words, end)
    return Start(container, _resolved(values, known), is_shell=True, script=script)


def _script_index(words: Sequence[str]) -> int | None:
    """The index of the script in ``sh -c SCRIPT``; ``None`` for a script in a file."""
    takes_script = names_option = False
    for index, word in enumerate(words[1:], start=1):
        if names_option:
            names_option = False  # the name after -o
        elif word.startswith("-") and not word.startswith("--") and len(word) > 1:
            takes_script |= "c" in word
            names_option = word.endswith("o")
        elif word == "--" and takes_script:
            continue
        elif not word.startswith("--"):
            return index if takes_script else None
    return None


@functools.lru_cache(maxsize=64)
def _command(script: str) -> tuple[tuple[shell.Word, ...], int] | None:
    """The words of the one command that starts vLLM, and the place after it."""
    every = shell.commands(script) if len(script) <= MAX_SCRIPT_CHARS else None
    if every is None:
        return None
    found = None
    for command in every:
        words = _without_prefixes(command.words)
        values = [word.value for word in words]
        if command_line.is_vllm_command(values):
            if found is not None or command.depth or "--" in values:
                return None
            found = words, words[-1].end
        elif values[:1] == ["eval"] and len(words) == 2 and _MENTION.search(values[1]):
            inner = _evaluated(words[1])
            if found is not None or command.depth or inner is None:
                return None
            found = inner
        elif values and values[0] not in _HARMLESS and _MENTION.search(" ".join(values)):
            return None
    return found


def _without_prefixes(words: tuple[shell.Word, ...]) -> tuple[shell.Word, ...]:
    at = 0
    while at < len(words) and (words[at].value in _PREFIXES or _ASSIGNMENT.match(words[at].value)):
        at += 1
    return words[at:]


def _evaluated(outer: shell.Word) -> tuple[tuple[shell.Word, ...], int] | None:
    """The command in the text of an ``eval``, with its places in the script around it."""
    found = _command(outer.value)
    if found is None or outer.value[found[1] :].strip():
        return None

    def moved(word: shell.Word) -> shell.Word:
        places = tuple(outer.places[at] for at in word.places)
        return shell.Word(
            word.value, places, outer.places[word.start], outer.places[word.end - 1] + 1, word.expands
        )

    return tuple(map(moved, found[0])), outer.places[found[1] - 1] + 1


def _literals(container: Json) -> dict[str, str]:
    """The environment variables with a literal value, by name."""
    every = container.get("env") or []
    return {
        each["name"]: each["value"] for each in every if isinstance(each.get("value"), str) and each["value"]
    }


def _resolved(words: Sequence[str], known: Mapping[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for word in words:
        text = _REFERENCE.sub(lambda found: known.get(found[1] or found[2] or found[3], found[0]), word)
        # A word that is only a reference may become several options in a shell.
        made += _split(text) if text != word and _REFERENCE.fullmatch(word) else [text]
    return tuple(made)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


def _edited(
    container: Json, script: _Script, options: Sequence[str], switches: Set[str], drop: Set[str]
) -> dict[str, Any]:
    text = script.text
    text = text[: script.end] + "".join(f" {word}" for word in options) + text[script.end :]
    values = [word.value for word in script.words]
    # The last value of an option counts, so only options that are not given again are cut.
    cut = command_line.removed(values, drop - {word for word in options if word.startswith("--")}, switches)
    for index in sorted(cut, reverse=True):
        word = script.words[index]
        text = text[: word.start] + text[word.end :]
    return {
        script.field: [
            text if index == script.index else word for index, word in enumerate(container[script.field])
        ]
    }
