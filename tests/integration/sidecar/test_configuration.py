"""A pool file is read in a child process, and put in force in one step that costs what changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dashboard.snapshot import Wanted
from runtime.child import SMALL_FILE
from runtime.options import Origin
from sidecar.configuration import MOST_WARNINGS, ConfigurationInvalid, load, load_apart, published
from sidecar.controller.accounts import PER_STEP
from sidecar.proxy.connection_manager import PER_SWEEP
from sidecar.settings import Settings
from tests.fakes.scripted_engine import FakeEngine
from tests.support.harness import POOL, admin, ask, request, sidecar_for, until
from tests.support.sidecar_builders import configuration, controller, owner
from tokenpool.entitlements import PoolFile, Tier
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile.reading import parse


def settings(folder: Path, text: str = POOL, **options: object) -> Settings:
    file = folder / "pool.yaml"
    file.write_text(text)
    return Settings(config=file, upstream=Origin("127.0.0.1", 1), **options)  # type: ignore[arg-type]


def many(number: int, **changes: str) -> str:
    rows = "".join(
        f"  - {{name: t{i}, pool: chat, tier: {changes.get(f't{i}', 'spot')}, api_keys: [key-{i}]}}\n"
        for i in range(number)
    )
    return POOL + rows


def parsed(text: str) -> PoolFile:
    return parse(text).file


async def test_a_child_reads_what_this_process_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "from-env")
    key = tmp_path / "key"
    key.write_text("from-file")
    text = many(450).replace("[e-key]", f"[{{env: A_KEY}}, {{file: {key}}}]")
    ours = settings(tmp_path, text)

    here, apart = load(ours), await load_apart(ours)

    assert apart.file == here.file
    assert (apart.pool, apart.watched, apart.version) == (here.pool, here.watched, here.version)
    assert apart.version == encode_file(here.file)[0]
    for found in (here.keys, apart.keys):
        assert len(found) == 450 + 4
        assert owner(found, b"from-env") == owner(found, b"from-file") == "e"
        assert owner(found, b"key-449") == "t449"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (POOL.replace("tier: spot", "tier: sport"), "did you mean 'spot'"),
        (POOL.replace("[e-key]", "[{env: NOT_SET_ANYWHERE}]"), "NOT_SET_ANYWHERE is not set"),
        (POOL.replace("name: chat", "name: x"), "which is not defined"),
        ("\ufeff[", "not YAML"),
    ],
)
async def test_child_and_parent_report_errors_in_the_same_words(
    tmp_path: Path, text: str, words: str
) -> None:
    long = text + "\n# " + "x" * SMALL_FILE  # so that a child reads it
    ours = settings(tmp_path, long)
    with pytest.raises(ConfigurationInvalid, match=words) as here:
        load(ours)
    with pytest.raises(ConfigurationInvalid, match=words) as apart:
        await load_apart(ours)
    assert str(here.value) == str(apart.value)


async def test_a_small_file_is_read_without_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = settings(tmp_path)
    monkeypatch.setattr("runtime.child.sys.executable", "/no/such/program")
    assert (await load_apart(ours)).file == load(ours).file
    ours.config.unlink()
    with pytest.raises(ConfigurationInvalid, match=r"pool\.yaml"):
        await load_apart(ours)


async def test_a_pool_that_the_file_does_not_have_is_an_error(tmp_path: Path) -> None:
    ours = settings(tmp_path, pool="other")
    with pytest.raises(ConfigurationInvalid, match="--pool other: the pool file has only chat"):
        await load_apart(ours)


async def test_without_a_child_process_the_file_is_read_in_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "no-such-codec")  # no interpreter begins with that
    ours = settings(tmp_path, many(450))

    assert (await load_apart(ours)).file == load(ours).file
    assert "the work is done in this process" in caplog.text

    ours.config.write_text("{")
    with pytest.raises(ConfigurationInvalid, match="not YAML"):
        await load_apart(ours)


async def test_a_published_file_comes_with_the_keys_that_can_be_read_here(tmp_path: Path) -> None:
    ours = settings(tmp_path)
    version, content = encode_file(parsed(many(250)))

    made = await published(content, ours, "chat")

    file = decode_file(content)
    assert (made.file, made.pool, made.version, made.watched) == (file, file.pools[0], version, ())
    assert owner(made.keys, b"key-7") == "t7"
    with pytest.raises(ConfigurationInvalid, match="published pool file"):
        await published(b"\xc1", ours, "chat")


async def test_in_a_published_file_the_earlier_entitlement_keeps_a_shared_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only sidecars know a key in a variable, so a coordinator cannot refuse a resource with its digest."""
    monkeypatch.setenv("A_KEY", "shared")
    digest = hashlib.sha256(b"shared").hexdigest()
    late = f'  - {{name: late, pool: chat, tier: spot, api_keys: ["sha256:{digest}", late-key]}}\n'
    text = POOL.replace("[e-key]", "[{env: A_KEY}]") + late
    _, content = encode_file(parsed(text))

    made = await published(content, settings(tmp_path), "chat")

    assert owner(made.keys, b"shared") == "e"
    assert owner(made.keys, b"late-key") == "late"
    assert "a key of 'late' is also a key of 'e', and stays there" in caplog.text
    with pytest.raises(ConfigurationInvalid, match="the same key"):
        await load_apart(settings(tmp_path, text))


async def test_in_a_published_file_the_administrators_keep_a_shared_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ADMIN_KEY", "shared")
    late = "  - {name: late, pool: chat, tier: spot, api_keys: [shared, late-key]}\n"
    text = POOL + late + "administrator_keys: [{env: ADMIN_KEY}]\n"
    _, content = encode_file(parsed(text))

    made = await published(content, settings(tmp_path), "chat")

    assert (owner(made.administrators, b"shared"), owner(made.keys, b"shared")) == ("administrator", None)
    assert owner(made.keys, b"late-key") == "late"
    assert "a key of 'late' is also a key of 'the administrators', and stays there" in caplog.text
    with pytest.raises(ConfigurationInvalid, match="the same key"):
        await load_apart(settings(tmp_path, text))


def test_many_warnings_are_not_all_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(settings(tmp_path, many(300)))
    assert len(caplog.records) == MOST_WARNINGS + 1
    assert "there are more warnings" in caplog.text


def test_accounts_are_made_a_few_at_a_time_before_the_swap() -> None:
    made, new = controller(POOL), configuration(many(500))
    kept = dict(made.accounts)

    steps = sum(1 for _ in made.prepare(new))

    assert steps == -(-503 // PER_STEP)
    assert made.accounts == kept  # nothing is in force yet
    made.configure(new)
    assert list(made.accounts) == [e.name for e in new.file.entitlements]
    assert all(made.accounts[name] is account for name, account in kept.items())


@pytest.mark.parametrize("is_prepared", [True, False])
def test_only_changed_accounts_are_changed(*, is_prepared: bool) -> None:
    made = controller(many(20))
    before = dict(made.accounts)
    records = {name: account.entitlement for name, account in before.items()}
    held = made.accounts["t3"]
    ledger = made.control.ledger
    held.concurrency_in_use = ledger.preemptible_in_use = ledger.concurrency_in_use = 2
    changed = configuration(many(19, t3="elastic"))
    if is_prepared:
        list(made.prepare(changed))

    made.configure(changed)

    assert "t19" not in made.accounts
    assert all(made.accounts[name] is before[name] for name in made.accounts)
    kept = [name for name in made.accounts if made.accounts[name].entitlement is records[name]]
    assert set(before) - set(kept) == {"t3", "t19"}
    assert held.entitlement.tier is Tier.ELASTIC
    assert ledger.preemptible_in_use == 0


def test_accounts_that_were_prepared_before_another_change_are_not_used() -> None:
    made = controller(POOL)
    first, second = configuration(many(2)), configuration(many(1))
    list(made.prepare(first))
    made.configure(second)
    new = made.accounts["t0"]

    made.configure(first)

    assert made.accounts["t0"] is new
    assert "t1" in made.accounts


def test_changed_prices_apply_to_all_accounts() -> None:
    made = controller(POOL)
    made.configure(
        configuration(POOL.replace("entitlements:", "    pricing: {output_weight: 4}\nentitlements:"))
    )

    assert made.accounts["s"].pricer._pricing.output_weight == 4


async def test_the_state_page_shows_the_requested_entitlements(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=many(30)) as sidecar:
        assert (await ask(sidecar, request(key="e-key"))).status == 200
        active = json.loads((await admin(sidecar, "/debug/state?active=1"))[1])  # it is idle again soon
        every = json.loads((await admin(sidecar, "/debug/state"))[1])
        some = json.loads((await admin(sidecar, "/debug/state?entitlement=t7&entitlement=g"))[1])
        status, unknown = await admin(sidecar, "/debug/state?entitlement=nobody")
        snapshot = sidecar.admin.snapshot().pools[0]

    assert list(every["entitlements"]) == list(sidecar.controller.accounts)
    assert list(some["entitlements"]) == ["t7", "g"]
    assert list(active["entitlements"]) == ["e"]
    assert (status, json.loads(unknown)["error"]) == (404, "pool 'chat' has no entitlement 'nobody'")
    # An idle entitlement's limits are those of the last plan.
    assert some["entitlements"]["t7"]["limit"]["concurrency"] > 6
    assert some["entitlements"]["t7"]["level"] > 0
    assert (len(snapshot.entitlements), snapshot.total) == (33, 33)


async def test_the_live_page_of_many_lists_those_that_were_used(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=many(200)) as sidecar:
        for key in ("e-key", "key-150"):
            assert (await ask(sidecar, request(key=key))).status == 200
        await until(lambda: len(sidecar.controller.control.active) > 0)
        snapshot = sidecar.admin.snapshot(Wanted()).pools[0]

    assert {each.name for each in snapshot.entitlements} == {"e", "t150"}
    assert snapshot.total == 203
    assert snapshot.guarantees == (10_000, 10_000, 4)
    assert snapshot.tallies[""].outcomes == {"e": {"finished": 1}, "t150": {"finished": 1}}


async def test_idle_connections_are_examined_in_steps(engine: FakeEngine, tmp_path: Path) -> None:
    class Idle:
        looked = 0

        def sweep(self, now: float) -> None:
            self.looked += 1

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        idle = [Idle() for _ in range(3 * PER_SWEEP)]
        sidecar.manager.connections.update(idle)  # type: ignore[arg-type]
        steps = sum(1 for _ in sidecar.manager.sweep(0.0))
        sidecar.manager.connections.difference_update(idle)  # type: ignore[arg-type]

    assert steps == 3
    assert {each.looked for each in idle} == {1}
