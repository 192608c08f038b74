"""``tokenpool simulate`` reads recorded requests, and predicts who is shed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cli import recorded
from cli.__main__ import main
from cli.command import CommandFailed

POOL = """\
pools:
- name: chat
  models: [llama]
  replica: {tokens_per_second: 200, kv_tokens: 8192, concurrency: 4}
entitlements:
- {name: acme, pool: chat, tier: guaranteed, guarantee: {concurrency: 1}}
- {name: beta, pool: chat, tier: elastic}
- {name: cheap, pool: chat, tier: spot}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,40,10
2023-11-16 18:17:04.4799600,20,8
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(POOL)
    return path


def records(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "records.csv"
    path.write_text("\n".join(["entitlement,time,input_tokens,output_tokens", *lines]))
    return str(path)


def overload(tmp_path: Path, per_s: int = 10) -> str:
    """Ten seconds: acme once a second, beta and cheap ``per_s`` times, with 50 tokens each."""
    lines = [f"acme,{at},40,10" for at in range(10)]
    lines += [f"{name},{at / per_s},40,10" for name in ("beta", "cheap") for at in range(10 * per_s)]
    return records(tmp_path, *lines)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, object]]:
    assert main(["simulate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {each["entitlement"]: each for each in found["entitlements"]}


def test_traces_of_azure_are_read(tmp_path: Path) -> None:
    path = tmp_path / "code.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode()))

    first, second = recorded.read([f"acme={path}"], "chat")

    assert (first.at_s, first.entitlement, first.input_tokens, first.output_tokens) == (0.0, "acme", 40, 10)
    assert second.at_s == pytest.approx(0.5)


def test_named_files_begin_together(tmp_path: Path) -> None:
    for name, day in (("a", "16"), ("b", "17")):
        (tmp_path / f"{name}.csv").write_text(AZURE.replace("-16 ", f"-{day} "))

    read = recorded.read([f"{name}={tmp_path / name}.csv" for name in "ab"], "chat")

    assert [round(each.at_s, 3) for each in read] == [0.0, 0.0, 0.5, 0.5]


def test_a_usage_record_arrived_before_it_was_settled(tmp_path: Path) -> None:
    path = tmp_path / "usage.csv"
    path.write_text(
        "time,entitlement,input_tokens,output_tokens,queue_s,sequence_seconds\n"
        "2026-11-29T12:00:10Z,slow,1,1,0.5,9.5\n2026-11-29T12:00:05Z,quick,1,1,,0.5\n"
    )

    read = recorded.read([str(path)], "chat")

    assert [(each.entitlement, each.at_s) for each in read] == [("slow", 0.0), ("quick", 4.5)]


def test_requests_of_other_pools_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("time,pool,entitlement,input_tokens,output_tokens\n1,chat,acme,1,1\n2,other,acme,1,1\n")

    assert len(recorded.read([str(path)], "chat")) == 1
    with pytest.raises(CommandFailed, match="no request for pool 'nothing'"):
        recorded.read([str(path)], "nothing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,input_tokens\n", ":1: there is no column output_tokens"),
        ("time,input_tokens,output_tokens\n1,2,3\n", "ENTITLEMENT="),
        ("time,entitlement,input_tokens,output_tokens\n1,a,x,3\n", ":2: "),
        ("time,entitlement,input_tokens,output_tokens\n1,a\n", ":2: "),
        ("time,entitlement,input_tokens,output_tokens\nnan,a,1,1\n", ":2: 'nan' is not a time"),
        ("time,entitlement,input_tokens,output_tokens\n1,a,-1,1\n", "not a number of tokens"),
        ("", "no column time"),
    ],
)
def test_an_unreadable_record_names_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)

    with pytest.raises(CommandFailed, match=words):
        recorded.read([str(path)], "chat")


def test_in_overload_the_tiers_decide(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(capsys, str(pool), "--records", overload(tmp_path))

    assert found["acme"]["refused"] == 0
    assert found["cheap"]["refused_share"] > found["beta"]["refused_share"] > 0  # type: ignore[operator]
    assert sum(found["cheap"]["reasons"].values()) == found["cheap"]["refused"]  # type: ignore[attr-defined]


def test_a_group_shares_a_ceiling(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each alone fits into the pool, and both together do not fit into their group."""
    groups = "groups:\n- {name: team, pool: chat, ceiling: {concurrency: 1}}\n"
    members = POOL.replace("tier: elastic}", "tier: elastic, group: team}").replace(
        "tier: spot}", "tier: elastic, group: team}"
    )
    pool.write_text(members + groups)
    lines = [f"{name},{at * 0.5},40,10" for name in ("beta", "cheap") for at in range(20)]

    found = predicted(capsys, str(pool), "--records", records(tmp_path, *lines), "--replicas", "4")

    assert found["beta"]["refused"] + found["cheap"]["refused"] > 5  # type: ignore[operator]
    assert "concurrency" in found["beta"]["reasons"]  # type: ignore[operator]

    pool.write_text(members.replace(", group: team", ""))
    found = predicted(capsys, str(pool), "--records", records(tmp_path, *lines), "--replicas", "4")
    assert found["beta"]["refused"] == found["cheap"]["refused"] == 0


def test_enough_replicas_refuse_nothing(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, str(pool), "--records", overload(tmp_path), "--replicas", "10")

    assert all(each["refused"] == 0 for each in found.values())


def test_a_lower_rate_refuses_less(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(capsys, str(pool), "--records", overload(tmp_path), "--rate", "0.1")

    assert all(each["refused"] == 0 for each in found.values())


def test_the_same_seed_gives_the_same_answer(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (str(pool), "--records", overload(tmp_path), "--seed", "7")

    assert predicted(capsys, *given) == predicted(capsys, *given)


def test_an_entitlement_that_was_removed_is_refused(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, str(pool), "--records", records(tmp_path, "gone,0,10,10", "acme,1,10,10"))

    assert found["gone"]["reasons"] == {"unknown_key": 1}
    assert found["acme"]["served"] == 1


def test_a_record_of_refused_requests_alone_is_answered(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, str(pool), "--records", records(tmp_path, "gone,0,10,10"))

    assert found["gone"]["tier"] is None


def test_a_request_beyond_the_window_never_fits(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "engine.json"
    engine.write_text('{"window": 512, "blocks": 512, "step_s": 0.01}')

    found = predicted(
        capsys,
        str(pool),
        "--engine",
        str(engine),
        "--records",
        records(tmp_path, "acme,0,600,10", "acme,1,9,9"),
    )

    assert found["acme"]["reasons"] == {"never_fits": 1}


def test_the_text_compares_with_the_file_in_force(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(POOL.replace("tier: spot", "tier: elastic, ceiling: {concurrency: 1}"))

    assert main(["simulate", str(changed), "--records", overload(tmp_path), "--baseline", str(pool)]) == 0

    out = capsys.readouterr().out
    assert "before" in out
    assert "concurrency: The entitlement's limit of concurrent sequences is in use." in out


def test_rules_that_are_not_simulated_are_named(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = records(tmp_path, "acme,0,40,10")
    assert main(["simulate", str(pool), "--records", one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []

    beta = (
        "tier: elastic, enforce: false, models: [llama], quotas: [{tokens: 1, per: day}],"
        " api_keys: [{env: BETA, concurrency: 1}]}"
    )
    pool.write_text(POOL.replace("tier: elastic}", beta))
    assert main(["simulate", str(pool), "--records", one]) == 0

    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note.partition(" has ")[2].partition(",")[0] for note in notes] == [
        "quotas",
        "keys with a limit of their own",
        "entitlements with models",
        "enforce: false",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("tokens_per_second: 200, ", ""),
            "the speed of an engine is unknown; set replica.tokens_per_second",
        ),
        ((", concurrency: 4", ""), "the number of sequences of an engine is unknown"),
    ],
)
def test_what_the_simulation_lacks_is_named(
    change: tuple[str, str], words: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.write_text(POOL.replace(*change))

    assert main(["simulate", str(pool), "--records", overload(tmp_path)]) == 2

    assert words in capsys.readouterr().err


def test_an_unknown_pool_is_named(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(pool), "--pool", "x", "--records", overload(tmp_path)]) == 2

    assert "there is no pool 'x'; there is chat" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--replicas=0", "--rate=0", "--rate=x"])
def test_impossible_numbers_are_refused(option: str, pool: Path) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", str(pool), "--records", "r.csv", option])
