"""The options of a coordinator that name the lease store."""

from __future__ import annotations

import argparse

import pytest

from coordinator import settings
from runtime.options import SettingsError


def read(options: str) -> settings.Settings:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    return settings.read(parser.parse_args(options.split()), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", r"--store must be given, e\.g\. .*; or give --store-file"),
        ("--store-password-file f", r"--store must be given"),
        ("--store redis://r --store-file f", r"--store and --store-file are both given"),
        ("--store memory", r"memory is for a lone sidecar"),
    ],
)
def test_the_store_is_named_once(options: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(f"--config p {options}")


def test_a_file_may_name_the_store() -> None:
    made = read("--config p --store-file f --store-password-file g")
    assert made.store is None
    assert str(made.store_file) == "f"
