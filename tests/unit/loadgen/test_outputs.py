"""Results of an earlier run stay, unless ``--force`` is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen import examples, outputs
from loadgen.__main__ import main
from loadgen.engine import calibrate
from loadgen.outputs import OutputExists


@pytest.mark.parametrize("name", ["meta.json", "requests.jsonl", "report.html", "rates.csv", "rate-4-run1/a"])
def test_a_folder_with_results_is_refused_and_named_with_the_fix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    name = name.partition("/")[0]
    with pytest.raises(OutputExists) as raised:
        outputs.check_folder(tmp_path, force=False)
    assert str(tmp_path) in str(raised.value)
    assert name in str(raised.value)
    assert "give another --out, or --force" in str(raised.value)
    outputs.check_folder(tmp_path, force=True)


def test_an_absent_folder_and_one_with_other_files_are_free(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").touch()
    outputs.check_folder(tmp_path, force=False)
    outputs.check_folder(tmp_path / "new", force=False)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputExists, match="is a file; name a folder"):
        outputs.check_folder(tmp_path / "file", force=force)
    with pytest.raises(OutputExists, match="is a folder; name a file"):
        outputs.check_file(tmp_path, force=force)


def test_only_results_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "goals.json").touch()
    (tmp_path / "rate-4-run1").mkdir()
    (tmp_path / "rate-4-run1" / "meta.json").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report.html").symlink_to(tmp_path / "notes.txt")

    outputs.clear(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "elsewhere"}


def test_a_comparison_does_not_overwrite_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.write_text("earlier")

    assert main(["compare", str(tmp_path), "--out", str(page)]) == 2
    assert f"--out: {page} exists; give another --out, or --force" in capsys.readouterr().err

    # With --force, the command goes on: the folder has no run.
    assert main(["compare", str(tmp_path), "--out", str(page), "--force"]) == 2
    assert "--out:" not in capsys.readouterr().err
    assert page.read_text() == "earlier"


def test_init_lists_the_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    told = capsys.readouterr().out
    for name in examples.ORDER:
        assert f"  {name} " in told
        assert examples.find(name).question in told


def test_init_writes_an_example_and_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "trace"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"trace.yaml", "trace.jsonl"}
    assert "loadgen check trace.yaml" in capsys.readouterr().out
    assert main(["check", "trace.yaml"]) == 0

    assert main(["init", "trace", "--out", "mine.yaml"]) == 2  # its trace is there
    assert "--out: trace.jsonl exists" in capsys.readouterr().err
    assert not (tmp_path / "mine.yaml").exists()


def test_init_does_not_overwrite_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    assert main(["init", "knee", "--out", str(out)]) == 2
    assert f"--out: {out} exists; give another --out, or --force" in capsys.readouterr().err
    assert out.read_text() == "mine"

    assert main(["init", "knee", "--out", str(out), "--force"]) == 0
    assert out.read_text() == examples.find("knee").text


def test_init_of_an_unknown_question_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "nee"]) == 2
    assert "no example answers 'nee'; use one of guarantee, knee, fair" in capsys.readouterr().err


def test_init_names_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "knee", "--out", str(tmp_path / "none" / "a.yaml")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["fast", "0", "nan", "-1"])
def test_a_factor_that_is_none_is_named(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "s.yaml", f"--scale-rate={text}"])
    assert ended.value.code == 2
    assert f"argument --scale-rate: {text} is not a number above 0" in capsys.readouterr().err


def test_a_calibration_does_not_overwrite_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "costs.json").write_text("earlier")
    with pytest.raises(SystemExit) as ended:
        calibrate.main(["--url", "http://127.0.0.1:1", "--out", str(tmp_path / "costs.json")])
    assert ended.value.code == 2
    assert "costs.json exists; give another --out, or --force" in capsys.readouterr().err
