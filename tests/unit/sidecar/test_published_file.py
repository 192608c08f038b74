"""The published pool file: in force once it can be enforced here, and tried again while it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.options import Origin
from sidecar.configuration import Configuration
from sidecar.published_file import LONGEST_RETRY_S, READ_EVERY_S, PublishedFile
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from tests.support.harness import POOL
from tests.support.sidecar_builders import configuration, owner, reporter
from tokenpool.leases.wire import encode_file
from tokenpool.poolfile.reading import parse
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

VARIABLE = "KEY_OF_A_PUBLISHED_FILE"
WITH_VARIABLE = POOL.replace("[e-key]", f"[{{env: {VARIABLE}}}]")


class Published(MemoryStore):
    """A lease store that counts how often its pool file is read."""

    def __init__(self) -> None:
        super().__init__(1.5, time.monotonic)
        self.reads = 0
        self.error: Exception | None = None

    async def file(self) -> tuple[str, bytes] | None:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return await super().file()

    async def put(self, text: str) -> str:
        """Publish a pool file; returns its version."""
        version, content = encode_file(parse(text).file)
        assert await self.publish_file(version, content, 1)
        return version


class Enforced:
    """Records the configurations that are put in force."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.enforced: list[Configuration] = []
        self.on_prepare: Callable[[], None] | None = None

    def prepare(self, configuration: Configuration) -> Iterator[None]:
        self.prepared.append(configuration.version)
        if self.on_prepare is not None:
            self.on_prepare()
        yield

    def enforce(self, configuration: Configuration) -> None:
        self.enforced.append(configuration)

    @property
    def versions(self) -> list[str]:
        return [each.version for each in self.enforced]


class Case:
    """One sidecar's published file, with a clock that the test moves."""

    def __init__(self, folder: Path, *, has_own: bool = True) -> None:
        self.now = 100.0
        self.telemetry = Telemetry(10)
        self.telemetry.clock = lambda: self.now
        self.reporter = reporter(self.telemetry)
        self.store = Published()
        self.enforced = Enforced()
        own = folder / "pool.yaml" if has_own else None
        settings = Settings(config=own, upstream=Origin("127.0.0.1", 1))
        self.own = configuration(POOL, encode_file(parse(POOL).file)[0])
        self.file = PublishedFile(
            settings, self.store, self.telemetry, self.reporter, self.own, self.enforced
        )

    async def announce(self, text: str) -> str:
        """Publish a pool file; the next answer names it, and it is read."""
        version = await self.store.put(text)
        self.file.announced(version)
        await self.file.read()
        return version


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


OTHER = POOL.replace("[e-key]", "[another-key]")


async def test_a_published_file_is_put_in_force_and_reported(case: Case) -> None:
    version = await case.announce(OTHER)

    assert case.enforced.prepared == case.enforced.versions == [version]
    assert owner(case.enforced.enforced[0].keys, b"another-key") == "e"
    assert (case.file.version, case.reporter.file_version) == (version, version)
    assert case.telemetry.config_differs
    assert case.telemetry.reloads == {"ok": 1}


async def test_the_sidecars_own_file_is_not_put_in_force_again_when_it_is_published(case: Case) -> None:
    version = await case.announce(POOL)

    assert (case.enforced.versions, case.file.version) == ([], version)
    assert not case.telemetry.config_differs


async def test_a_file_is_read_only_if_another_version_is_announced(case: Case) -> None:
    version = await case.announce(OTHER)
    reads = case.store.reads

    case.file.news.clear()
    case.file.announced(version)
    case.file.announced("")  # an answer of a store without a file
    await case.file.read()

    assert not case.file.news.is_set()
    assert case.store.reads == reads
    case.file.announced("another")
    assert case.file.news.is_set()


async def test_a_refused_file_is_tried_again_at_doubled_intervals(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key may come later: a variable needs a restart, a mounted file does not."""
    version = await case.announce(WITH_VARIABLE)
    assert (case.file.refused_version, case.file.version) == (version, "")
    assert case.enforced.versions == []
    begun, waits, reads = case.now, [], case.store.reads
    while len(waits) < 7:
        case.now += 0.5
        case.file.announced(version)
        await case.file.read()
        if case.store.reads > reads:
            waits.append(case.now - begun)
            begun, reads = case.now, case.store.reads
    assert waits == [READ_EVERY_S, 4.0, 8.0, 16.0, 32.0, LONGEST_RETRY_S, LONGEST_RETRY_S]
    assert case.telemetry.reloads == {"invalid": 1}  # one file, however often it is tried
    assert sum("cannot be enforced here" in record.getMessage() for record in caplog.records) == 1

    monkeypatch.setenv(VARIABLE, "at-last")
    case.now += LONGEST_RETRY_S
    await case.file.read()

    assert case.enforced.versions == [case.file.version] == [version]
    assert case.file.refused_version == ""
    assert owner(case.enforced.enforced[0].keys, b"at-last") == "e"


async def test_another_file_is_tried_at_once_though_one_was_refused(case: Case) -> None:
    await case.announce(WITH_VARIABLE)

    version = await case.announce(OTHER)

    assert (case.enforced.versions, case.file.refused_version) == ([version], "")


async def test_a_refused_file_leaves_the_published_one_before_in_force(case: Case) -> None:
    good = await case.announce(OTHER)

    await case.announce(WITH_VARIABLE)

    assert (case.file.version, case.reporter.file_version, case.enforced.versions) == (good, good, [good])


async def test_the_own_file_is_in_force_until_one_is_published(case: Case) -> None:
    changed = configuration(OTHER, "own-2")

    case.file.own_file_changed(changed)

    assert case.enforced.enforced == [changed]
    assert case.reporter.file_version == "own-2"
    assert not case.telemetry.config_differs


async def test_a_change_of_the_own_file_reads_the_keys_of_the_published_one_again(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "first")
    version = await case.announce(WITH_VARIABLE)
    case.file.news.clear()
    monkeypatch.setenv(VARIABLE, "second")

    case.file.own_file_changed(configuration(OTHER, "own-2"))
    assert case.file.news.is_set()
    assert case.enforced.versions == [version]  # not the own file
    await case.file.read()

    assert case.enforced.versions == [version] * 2
    found = [owner(each.keys, b"second") for each in case.enforced.enforced]
    assert found == [None, "e"]
    assert case.telemetry.config_differs
    assert sum("own pool file differs" in record.getMessage() for record in caplog.records) == 1

    case.file.own_file_changed(configuration(WITH_VARIABLE.replace(VARIABLE, "HOME"), version))
    assert not case.telemetry.config_differs


@pytest.mark.parametrize("error", [StoreDown("stopped"), ValueError("a defect")])
async def test_a_read_that_fails_is_repeated(case: Case, error: Exception) -> None:
    case.store.error = error
    await case.announce(OTHER)
    assert case.enforced.versions == []

    case.store.error = None
    await case.file.read()

    assert len(case.enforced.versions) == 1


async def test_without_an_own_file_the_first_published_one_is_in_force_and_none_differs(
    tmp_path: Path,
) -> None:
    case = Case(tmp_path, has_own=False)
    assert (case.file.version, case.reporter.file_version) == (case.own.version, case.own.version)
    await case.announce(POOL)
    assert case.enforced.versions == []  # it is in force already
    version = await case.announce(OTHER)
    assert case.enforced.versions == [version]
    assert not case.telemetry.config_differs
    case.file.read_again()  # a key file has changed
    await case.file.read()
    assert case.enforced.versions == [version, version]
    await case.announce(POOL)
    assert case.enforced.versions == [version, version, case.own.version]
    assert case.enforced.enforced[-1] is not case.own  # its key files are read again


async def test_a_key_file_that_changes_during_a_read_is_read_again(tmp_path: Path) -> None:
    case = Case(tmp_path, has_own=False)
    case.enforced.on_prepare = case.file.read_again
    version = await case.announce(OTHER)
    case.enforced.on_prepare = None
    await case.file.read()
    assert case.enforced.versions == [version, version]
    await case.file.read()
    assert case.enforced.versions == [version, version]
