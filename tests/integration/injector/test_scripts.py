"""Edited scripts, run by a real shell: the engine gets the same words as before, and ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from injector import start
from tests.support.scripts import READ

OURS = ["--host", "127.0.0.1", "--port", "18000"]
RECORDS = """\
#!/bin/sh
printf '%s\\0' "$@" > "$RECORDS/$$"
"""
"""A program that notes its words in place of the engine's, and ends."""
SHELLS = [name for name in ("bash",) if shutil.which(name)]


def started(shell: str, script: str, arguments: list[str], folder: Path) -> list[list[str]]:
    """The words of each start of the engine, as the programs of the script see them."""
    folder.mkdir()
    programs = folder / "bin"
    programs.mkdir()
    for name in ("vllm", "python3"):
        (programs / name).write_text(RECORDS)
        (programs / name).chmod(0o755)
    records = folder / "records"
    records.mkdir()
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "RECORDS": str(records), "F": "f", "START": "true"}
    subprocess.run(
        [shell, "-c", script, "--", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        timeout=30,
        check=False,
    )
    every = [path.read_text().split("\0")[:-1] for path in records.iterdir()]
    return [words for words in every if words != ["--version"]]


@pytest.mark.parametrize("script", READ)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_starts_the_engine_with_the_same_words_and_ours(
    shell: str, script: str, tmp_path: Path
) -> None:
    arguments = ["--max-num-seqs", "8"]
    container = {"name": "x", "command": [shell, "-c", script, "--"], "args": arguments}
    fields = start.read(container).with_options(OURS, {"--host", "--port"})
    assert fields is not None
    (before,) = started(shell, script, arguments, tmp_path / "before")
    (after,) = started(shell, fields["command"][2], arguments, tmp_path / "after")
    assert after == [*before, *OURS]


def test_certificates_are_cut_out_of_a_script(tmp_path: Path) -> None:
    script = 'eval "exec vllm serve m --ssl-certfile /a \\\n --enable-ssl-refresh --ssl-keyfile=/b $@"'
    container = {"name": "x", "command": ["bash", "-c", script, "--"], "args": ["--x"]}
    fields = start.read(container).with_options(
        OURS, {"--ssl-certfile", "--ssl-keyfile"}, {"--enable-ssl-refresh"}
    )
    assert fields is not None
    (after,) = started("bash", fields["command"][2], ["--x"], tmp_path / "after")
    assert after == ["serve", "m", "--x", *OURS]
