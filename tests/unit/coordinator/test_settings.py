"""The options of a coordinator that depend on each other."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from coordinator import settings
from coordinator.settings import Settings
from runtime.options import SettingsError

STORE = ("--store", "redis://127.0.0.1:6379")
KUBERNETES = (*STORE, "--entitlements-from", "kubernetes")


def read(*words: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    settings.add_arguments(parser)
    return settings.read(parser.parse_args(words), {})


def test_resources_are_off_unless_they_are_asked_for() -> None:
    made = read(*STORE, "--config", "pool.yaml")
    assert (made.config, made.entitlements_from, made.entitlements_namespaces) == (
        Path("pool.yaml"),
        None,
        None,
    )


def test_with_resources_the_pool_file_is_optional() -> None:
    assert read(*KUBERNETES).config is None
    both = read(*KUBERNETES, "--config", "pool.yaml", "--entitlements-namespaces", "a, team-b,a")
    assert (both.config, both.entitlements_namespaces) == (Path("pool.yaml"), ("a", "team-b"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            (*STORE, "--config", "p", "--usage-store", "a.db", "--usage-store-file", "url"),
            "--usage-store and --usage-store-file are both given",
        ),
        (
            (*STORE, "--config", "p", "--usage-store", "mysql://x"),
            "--usage-store: mysql:// is not a usage store",
        ),
        ((*STORE, "--config", "p", "--usage-keep-days", "1"), "--usage-keep-days: 1 is less than 2"),
        (STORE, "--config must be given, e.g. .*; or give --entitlements-from kubernetes"),
        ((*STORE, "--entitlements-from", "etcd"), "--entitlements-from: 'etcd' is not one of kubernetes"),
        (
            (*STORE, "--config", "pool.yaml", "--entitlements-namespaces", "a"),
            "--entitlements-namespaces: give --entitlements-from kubernetes, too",
        ),
        (
            (*KUBERNETES, "--entitlements-namespaces", "a,,b"),
            "--entitlements-namespaces: '' is not a namespace",
        ),
        (
            (*KUBERNETES, "--entitlements-namespaces", "A"),
            "--entitlements-namespaces: 'A' is not a namespace",
        ),
        (
            ("--store", "redis://r", "--config", "p", "--tls-cert", "c.pem"),
            "--tls-cert is given without --tls-key; a certificate and its key go together",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        read(*words)


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
        read("--config", "p", *options.split())


def test_a_file_may_name_the_store() -> None:
    made = read("--config", "p", "--store-file", "f", "--store-password-file", "g")
    assert made.store is None
    assert str(made.store_file) == "f"
