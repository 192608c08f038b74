"""One worker in the process of the test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.options import Addresses, Origin
from sidecar.app import Sidecar
from sidecar.settings import Settings
from sidecar.worker import Place, Worker, new_notifier, new_table
from sidecar.workers.supervisor import private_folder
from tests.fakes.scripted_engine import FakeEngine
from tests.integration.sidecar.workers.pod import POOL
from tests.support.build import from_source
from tests.support.harness import until
from tokenpool.store.memory import MemoryStore


@from_source
async def test_a_defect_in_a_decision_does_not_end_the_row_of_a_worker(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without fresh rows, the others would take it for a worker that has ended."""
    file, folder = tmp_path / "pool.yaml", private_folder()
    file.write_text(POOL)
    place = Place(
        index=0,
        workers=2,
        pod="p",
        folder=str(folder),
        table=new_table(2),
        notifiers=(new_notifier(), new_notifier()),
        listen=(("127.0.0.1", 0),),
        living=0,
    )
    settings = Settings(
        config=file, upstream=Origin("127.0.0.1", engine.port), listen=Addresses.of("127.0.0.1", 0), workers=2
    )
    sidecar = Sidecar(settings, MemoryStore(1.5), worker=Worker(place))
    await sidecar.start()
    try:
        queue = sidecar.control.queue
        sidecar.control.queue = None  # type: ignore[assignment]
        await until(lambda: "this worker's row could not be stated" in caplog.text)
        sidecar.control.queue = queue
        assert not any(task.done() for task in sidecar._tasks)
    finally:
        await sidecar.stop()
        shutil.rmtree(folder)
