"""Options that contradict each other are refused with the option, the reason and the fix."""

from __future__ import annotations

import pytest

from runtime.options import SettingsError
from sidecar.__main__ import _parser
from sidecar.settings import Settings, read
from tests.support.harness import settings_of


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--tick 1 --lease-lifetime 2", r"--lease-lifetime: 2 s is less than three ticks of 1 s"),
        ("--tls-cert c.pem", r"--tls-cert is given without --tls-key"),
        ("--tls-key k.pem", r"--tls-key is given without --tls-cert"),
        ("--max-body-bytes 1000 --max-buffered-bytes 2000", r"--max-buffered-bytes: 0.5 of 2000 bytes"),
        ("--store http://redis", r"--store"),
        ("--store redis://r --store-file f", r"--store and --store-file are both given"),
        ("--store-password-file f", r"--store-password-file needs"),
    ],
)
def test_contradictory_options_are_refused(options: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(f"--upstream http://engine {options}")


@pytest.mark.parametrize("store", ["memory", "redis://redis:6379"])
def test_a_store_is_memory_or_an_address(store: str) -> None:
    assert settings_of(f"--upstream http://engine --store {store}").store == store


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://[::1]:4318", "https://[::1]:4318/v1/traces"),
        ("https://traces.example/otlp/v1/traces", "https://traces.example/otlp/v1/traces"),
    ],
)
def test_the_path_of_a_collector_is_added_if_there_is_none(given: str, used: str) -> None:
    assert settings_of(f"--upstream http://engine --otlp-endpoint {given}").otlp_endpoint == used


@pytest.mark.parametrize(
    "url", ["collector:4318", "grpc://collector:4317", "http://", "http://key@collector", "http://c/?a=b"]
)
def test_anything_else_is_no_collector(url: str) -> None:
    with pytest.raises(SettingsError, match="is not the URL of a collector"):
        settings_of(f"--upstream http://engine --otlp-endpoint {url}")


def without_a_file(options: str) -> Settings:
    command = ["run", "--upstream", "http://engine", *options.split()]
    return read(_parser().parse_args(command), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", r"--config must be given, e\.g\. .*; or --store and --pool"),
        ("--pool p --store memory", r"--config must be given"),
        ("--store redis://r", r"--pool must be given without --config"),
    ],
)
def test_a_pool_file_may_be_missing_only_with_a_store_and_a_pool(options: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        without_a_file(options)


@pytest.mark.parametrize("store", ["--store redis://r", "--store-file f"])
def test_a_sidecar_with_a_store_needs_no_pool_file(store: str) -> None:
    made = without_a_file(f"--pool p {store}")
    assert made.config is None
    assert made.has_store
