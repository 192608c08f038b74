"""Usage records follow the pool file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.options import Origin
from sidecar.configuration import Configuration
from sidecar.settings import Settings
from sidecar.usage_records import UsageRecords
from tests.support.sidecar_builders import configuration, controller
from tokenpool.store import Store
from tokenpool.store.address import open_store
from tokenpool.store.memory import MemoryStore

OFF = configuration()
ON = replace(OFF, pool=replace(OFF.pool, usage_records=True))
UPSTREAM = Origin("127.0.0.1", 1)


def made(folder: Path, store: Store | None, first: Configuration) -> UsageRecords:
    settings = Settings(config=Path("p"), upstream=UPSTREAM, usage_spool=folder)
    return UsageRecords(settings, store, controller().settlement, lambda: 0.0, first)


def shared() -> Store:
    return open_store("redis://127.0.0.1:1", "chat", 1.5, 0.1)


async def test_they_are_off_by_default(tmp_path: Path) -> None:
    records = made(tmp_path, shared(), OFF)

    assert records.carrier is None
    assert records._settlement.usage is None
    assert list(records.metrics()) == []
    assert records.degraded() == []
    await records.stop()
    assert list(tmp_path.iterdir()) == []


async def test_a_pool_file_turns_them_on_and_off(tmp_path: Path) -> None:
    records = made(tmp_path, shared(), OFF)
    records.start()
    records.follow(ON)
    assert records.carrier is not None
    recorder = records.carrier.recorder
    assert records._settlement.usage is recorder
    assert recorder.is_on

    records.follow(OFF)
    assert not recorder.is_on
    records.follow(ON)
    assert records.carrier.recorder is recorder
    assert recorder.is_on
    await records.stop()
    assert list((tmp_path / "chat").iterdir()) == []


async def test_a_lone_sidecar_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = made(tmp_path, None, ON)

    assert records.carrier is None
    assert "no usage records without a lease store" in caplog.text


async def test_a_store_in_memory_has_no_stream(tmp_path: Path) -> None:
    assert made(tmp_path, MemoryStore(1.5), ON).carrier is None
