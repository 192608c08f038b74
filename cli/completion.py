"""``tokenpool completion``: the completion script of a shell, made by shtab from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from cli import command

SHELLS = ("bash", "zsh", "fish")


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(commands, "completion", run, "print the completion script of a shell")
    parser.add_argument("shell", choices=SHELLS)
    parser.epilog = 'For bash, put this into ~/.bashrc: eval "$(tokenpool completion bash)"'


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit status."""
    made = script(arguments.parser, arguments.shell)
    if arguments.json:
        command.print_json({"shell": arguments.shell, "script": made})
    else:
        print(made)
    return command.OK


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for this parser. Raises ``CommandFailed`` without shtab."""
    try:
        import shtab  # noqa: PLC0415 - the extra `cli`; no other command needs it
    except ModuleNotFoundError as error:
        raise command.CommandFailed(
            "completion: shtab is not installed; run: pip install 'tokenpool[cli]'"
        ) from error
    for each in actions(parser):
        if each.type is Path:
            each.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for each in commands(parser).values():
        yield from each._actions  # noqa: SLF001 - argparse has no public list of arguments


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parsers by the words of their commands. That of the program itself has no words."""
    found = {prefix.strip(): parser}
    for each in parser._actions:  # noqa: SLF001
        if isinstance(each, argparse._SubParsersAction):  # noqa: SLF001
            for name, one in each.choices.items():
                found.update(commands(one, f"{prefix}{name} "))
    return found
