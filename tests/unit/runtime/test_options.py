"""One field describes an option completely, for the command line, the environment and the documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from runtime import options
from runtime.options import SettingsError, option


@options.record
class Example:
    file: Path = option("a file")
    limit: int = option("limit, bytes", default=1024)
    wait: float | None = option("time limit, s", default=None)
    part: float = option("a part, 0 to 1", default=0.5, read=options.share)
    loud: bool = option("log more", default=False)


def read(*arguments: str, **environment: str) -> Example:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, Example)
    return options.read(Example, parser.parse_args(arguments), environment, example="example --file f")


def test_options_are_described_in_the_order_of_fields() -> None:
    seen = [
        (each.flag, each.variable, each.type_text, each.default_text, each.help)
        for each in options.describe(Example)
    ]

    assert seen == [
        ("--file", "TOKENPOOL_FILE", "Path", "", "a file"),
        ("--limit", "TOKENPOOL_LIMIT", "int", "1024", "limit, bytes"),
        ("--wait", "TOKENPOOL_WAIT", "float | None", "", "time limit, s"),
        ("--part", "TOKENPOOL_PART", "float", "0.5", "a part, 0 to 1"),
        ("--loud", "TOKENPOOL_LOUD", "bool", "false", "log more"),
    ]
    assert [each.is_required for each in options.describe(Example)] == [True, False, False, False, False]
    assert [each.is_switch for each in options.describe(Example)] == [False, False, False, False, True]


def test_the_command_line_wins_over_the_environment() -> None:
    made = read("--file", "a", "--limit", "7", "--loud", TOKENPOOL_LIMIT="8", TOKENPOOL_WAIT="0.5")

    assert made == Example(file=Path("a"), limit=7, wait=0.5, loud=True)


def test_a_missing_option_is_named_with_an_example() -> None:
    with pytest.raises(SettingsError, match="--file must be given"):
        read()


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("TOKENPOOL_LIMIT", "1.5", "TOKENPOOL_LIMIT: '1.5' is not a whole number above 0"),
        ("TOKENPOOL_WAIT", "soon", "TOKENPOOL_WAIT: 'soon' is not a number above 0"),
        ("TOKENPOOL_PART", "2", "TOKENPOOL_PART: '2' is above 1"),
        ("TOKENPOOL_LOUD", "maybe", "TOKENPOOL_LOUD: 'maybe' is neither true nor false"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_source(variable: str, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read("--file", "a", **{variable: text})
