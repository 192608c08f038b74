"""The completion script works in a real bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMPLETE = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
complete -p tokenpool > /dev/null
function=$(complete -p tokenpool | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function tokenpool "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tokenpool us", {"usage"}),
        ("tokenpool ke", {"keys"}),
        ("tokenpool usage --per", {"--period"}),
        ("tokenpool keys ro", {"rotate"}),
        ("tokenpool usage --format f", {"focus"}),
    ],
)
def test_bash_completes_commands_options_and_values(words: str, offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    with script.open("w") as target:
        subprocess.run([sys.executable, "-m", "cli", "completion", "bash"], stdout=target, check=True)

    done = subprocess.run(
        ["bash", "-c", COMPLETE.format(script=script, words=words)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip

    assert {line.strip() for line in done.stdout.splitlines() if line.strip()} == offered, done.stderr
