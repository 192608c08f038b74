"""A real vLLM on the CPU, as a child process: for the demo and the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from demo import install_engine

MODEL = "tiny"
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # On two cores the engine's own processes would spin against each other.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}


class EngineFailed(RuntimeError):
    """The engine did not come up; the text ends with its log's last lines."""


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Engine:
    """One engine process. As a context manager it stops at the end."""

    log: Path
    port: int = field(default_factory=free_port)
    max_num_seqs: int = 8
    max_model_len: int = 2048
    extra: Sequence[str] = ()
    model: str = MODEL
    """One of those that ``random_model`` makes; also the name under which it is served."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, to pause or kill it."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start the process; ``wait_ready`` waits until it serves."""
        _make_model(self.model)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = _spawn(self._command(), log)
        return self

    def _command(self) -> list[str]:
        options = {
            "model": str(_home(self.model)),
            "served-model-name": self.model,
            "load-format": "dummy",
            "dtype": "float32",
            "max-model-len": str(self.max_model_len),
            "max-num-seqs": str(self.max_num_seqs),
            "host": "127.0.0.1",
            "port": str(self.port),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        module = "vllm.entrypoints.openai.api_server"
        return [str(install_engine.PYTHON), "-m", module, *flags, "--enforce-eager", *self.extra]

    def wait_ready(self, timeout: float = 180.0) -> Self:
        """Wait until ``/health`` answers. Raises ``EngineFailed``."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise EngineFailed(f"the engine ended while starting\n{self._log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        self.stop()
        raise EngineFailed(f"the engine was not ready within {timeout:.0f} s\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def stop(self, grace: float = 10.0) -> None:
        """End the process and its children."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self.start().wait_ready()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _home(model: str) -> Path:
    return install_engine.ROOT / ".cache" / f"{model}-model"


def _make_model(model: str) -> None:
    home = _home(model)
    if (home / "config.json").exists():
        return
    maker = Path(__file__).with_name("random_model.py")
    done = subprocess.run(
        [install_engine.PYTHON, maker, home, model], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise EngineFailed(f"the {model} model could not be made\n{done.stderr}")


def _spawn(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=os.environ | _ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def main() -> int:
    """Run one engine in the foreground: ``python -m demo.engine [PORT]``."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    engine = Engine(log=install_engine.ROOT / "out" / "engine.log", port=port).start()
    try:
        engine.wait_ready()
        print(f"engine: {engine.url}, model {MODEL}; Ctrl-C ends it", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        engine.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
