"""``tokenpool check`` and ``tokenpool explain`` name file, line and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from cli.explain import as_json
from tokenpool.amounts import UNBOUNDED
from tokenpool.entitlements import KeyRef, KeySource
from tokenpool.outcomes import Reason

VALID = """\
pools:
- {name: chat, models: [llama]}
entitlements:
- {name: acme, pool: chat, tier: guaranteed, guarantee: {concurrency: 4}, api_keys: [secret-of-acme]}
"""
INVALID = """\
pools:
- {name: chat, models: [llama]}
entitlements:
- {name: acme, pool: chat, tier: golden, api_keys: [{env: ACME}]}
"""


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(VALID)
    return path


@pytest.fixture
def invalid(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(INVALID)
    return path


def test_a_valid_file_passes(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(valid)]) == 0

    assert capsys.readouterr().out.splitlines()[-1].startswith("valid")


def test_a_problem_has_its_file_and_line_and_fix(invalid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(invalid)]) == 1

    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{invalid}:4: entitlements[0].tier")
    assert "guaranteed, elastic, spot" in first
    assert last == "invalid, 1 problem"


def test_json_has_the_same_problems(invalid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(invalid), "--json"]) == 1

    seen = json.loads(capsys.readouterr().out)
    assert seen["valid"] is False
    [problem] = seen["problems"]
    assert problem["file"] == str(invalid)
    assert problem["line"] == 4
    assert problem["fix"]


def test_problems_of_a_folder_name_their_files(
    valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zeta.yaml").write_text("entitlements:\n- {name: zeta, pool: chat, tier: golden}\n")

    assert main(["check", str(tmp_path), "--json"]) == 1

    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {problem["file"] for problem in problems} == {str(tmp_path / "zeta.yaml")}


def test_a_missing_file_is_an_error_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 2

    assert "none.yaml" in capsys.readouterr().err


def test_explain_shows_the_promises(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(valid)]) == 0

    assert "acme: guaranteed" in capsys.readouterr().out


def test_explain_as_json_has_no_secrets(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(valid), "--json"]) == 0

    text = capsys.readouterr().out
    assert "secret-of-acme" not in text
    [entitlement] = json.loads(text)["entitlements"]
    assert entitlement["guarantee"]["concurrency"] == 4
    assert entitlement["ceiling"]["concurrency"] is None


def test_explain_of_an_invalid_file_prints_its_problems(
    invalid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(invalid)]) == 1

    assert f"{invalid}:4: " in capsys.readouterr().err


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(reason: Reason, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--reason", reason.value, "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["meaning"] == reason.meaning


@pytest.mark.parametrize("arguments", [[], ["--reason", "bad_mood"]])
def test_explain_without_a_known_subject_says_what_to_give(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2

    assert "explain:" in capsys.readouterr().err


def test_an_unbounded_amount_is_null() -> None:
    assert set(as_json(UNBOUNDED).values()) <= {None}


def test_a_record_has_no_secret_fields() -> None:
    assert "value" not in as_json(KeyRef(KeySource.PLAIN, "secret"))
