"""A folder of pool files as ``--config``: read, checked and reloaded, by a sidecar and a coordinator."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.pool_file import PoolFileInvalid
from coordinator.pool_file import read as read_for_coordinator
from sidecar.__main__ import main
from sidecar.configuration import ConfigurationInvalid
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import POOL, admin, ask, request, sidecar_for

POOLS, _, TENANTS = POOL.partition("entitlements:\n")
LATE = "entitlements:\n  - {name: late, pool: chat, tier: elastic, api_keys: [late-key]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pool.d"
    made.mkdir()
    (made / "00-pools.yaml").write_text(POOLS)
    (made / "tenants.yml").write_text(f"entitlements:\n{TENANTS}")
    return made


async def test_a_folder_is_in_force_and_each_change_of_it(
    engine: FakeEngine, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with sidecar_for(engine.port, tmp_path, config=folder) as sidecar:
        assert (await ask(sidecar, request())).status == 200
        assert (await ask(sidecar, request(key="late-key"))).status == 401
        (folder / "late.yaml").write_text(LATE.replace("elastic", "silver"))
        await sidecar.pool_file_watcher.check()
        assert f"{folder / 'late.yaml'}:2: entitlements[0].tier is 'silver'" in caplog.text
        assert 'tokenpool_config_current{pool="chat"} 0.0' in (await admin(sidecar, "/metrics"))[1]
        assert (await ask(sidecar, request())).status == 200
        (folder / "late.yaml").write_text(LATE)  # the invalid file was never in force, and is watched
        await sidecar.pool_file_watcher.check()
        assert (await ask(sidecar, request(key="late-key"))).status == 200
        (folder / "late.yaml").unlink()
        await sidecar.pool_file_watcher.check()
        assert (await ask(sidecar, request(key="late-key"))).status == 401
        assert 'tokenpool_config_current{pool="chat"} 1.0' in (await admin(sidecar, "/metrics"))[1]


async def test_a_key_that_cannot_be_read_is_named_with_its_file(
    engine: FakeEngine, tmp_path: Path, folder: Path
) -> None:
    (folder / "late.yaml").write_text(LATE.replace("late-key", "{env: TOKENPOOL_NOT_SET}"))
    with pytest.raises(ConfigurationInvalid, match=r"late\.yaml:2: the variable TOKENPOOL_NOT_SET"):
        async with sidecar_for(engine.port, tmp_path, config=folder):
            pass


def test_a_coordinator_publishes_the_same_file_for_a_folder(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "pool.yaml"
    whole.write_text(POOL)
    made = read_for_coordinator(folder)
    assert (made.version, made.content) == (
        read_for_coordinator(whole).version,
        read_for_coordinator(whole).content,
    )
    (folder / "late.yaml").write_text(LATE.replace("late,", "g,"))
    with pytest.raises(
        PoolFileInvalid, match=r"tenants\.yml:2: entitlement 'g' was defined on .*late\.yaml:2"
    ):
        read_for_coordinator(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PoolFileInvalid, match=r"--config .*: the folder has no file"):
        read_for_coordinator(tmp_path / "empty")


def test_check_explains_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    assert "pool chat" in capsys.readouterr().out
    (folder / "tenants.yml").write_text("entitlements: 3\n")
    assert main(["check", str(folder)]) == 2
    assert f"{folder / 'tenants.yml'}:1: entitlements is not a list" in capsys.readouterr().err
