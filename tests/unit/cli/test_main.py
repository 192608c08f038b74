"""The frame of the command line: every command has ``--json``, a help and a completion."""

from __future__ import annotations

import argparse
import json

import pytest

from cli import command, completion
from cli.__main__ import COMMANDS, main, make_parser, perform
from runtime.options import SettingsError


def commands() -> dict[str, argparse.ArgumentParser]:
    return completion.commands(make_parser())


LEAVES = [name for name, parser in commands().items() if parser.get_default("run") is not None]


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_json(name: str) -> None:
    assert "--json" in commands()[name].format_help()


@pytest.mark.parametrize("name", LEAVES)
def test_every_argument_has_a_help(name: str) -> None:
    for action in commands()[name]._actions:
        assert action.help or action.choices, action


def test_each_module_is_a_command() -> None:
    tops = {name.split()[0] for name in commands() if name}
    assert len(tops) == len(COMMANDS)


def test_without_a_command_the_usage_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])

    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def ending_with(error: BaseException) -> int:
    """The status of a command that raises this error."""

    def run(arguments: argparse.Namespace) -> int:
        raise error

    return perform(argparse.Namespace(run=run))


def test_an_interrupt_has_its_own_status() -> None:
    assert ending_with(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("error", [command.CommandFailed("no"), OSError("no"), SettingsError("no")])
def test_a_failure_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending_with(error) == 2

    assert capsys.readouterr().err == "tokenpool: no\n"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_completion_script_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0

    script = capsys.readouterr().out
    assert all(name.split()[0] in script for name in LEAVES)


def test_the_completion_script_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["shell"] == "bash"


def test_a_table_aligns_its_columns() -> None:
    assert command.table(["name", "n"], [["a", "10"], ["long", "5"]]) == "name   n\na     10\nlong   5"
