"""A real vLLM on the CPU, as a child process: for the demo, the tests and the experiments."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from demo import install_engine
from toolbox.ports import free_port
from toolbox.processes import Process

MODEL = "tiny"
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # On two cores the engine's processes would wait for each other in busy loops.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    # The bytecode of its packages is beside them. To compile them again takes 17 s.
    "PYTHONPYCACHEPREFIX": "",
}


class VllmFailed(RuntimeError):
    """vLLM cannot be started. The text gives the reason."""


class VllmProcess(Process):
    """One vLLM with its children. Its context begins when it is ready, and ends the process.

    ``model`` is a model of ``random_model``, and also its served name.
    """

    def __init__(
        self,
        log: Path,
        port: int | None = None,
        max_num_seqs: int = 8,
        max_model_len: int = 2048,
        extra: Sequence[str] = (),
        model: str = MODEL,
    ) -> None:
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self._model = model
        options = {
            "model": str(_home(model)),
            "served-model-name": model,
            "load-format": "dummy",
            "dtype": "float32",
            "max-model-len": str(max_model_len),
            "max-num-seqs": str(max_num_seqs),
            "host": "127.0.0.1",
            "port": str(self.port),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        command = [str(install_engine.PYTHON), "-m", "vllm.entrypoints.openai.api_server", *flags]
        super().__init__(
            log.stem,
            [*command, "--enforce-eager", *extra],
            log.parent,
            probe=f"{self.url}/health",
            environment=_ENVIRONMENT,
            is_group=True,
        )

    def start(self) -> Self:
        """Start, after making the model if it is missing. Raises ``VllmFailed``."""
        _make_model(self._model)
        return super().start()


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
        raise VllmFailed(f"the {model} model could not be made\n{done.stderr}")


def main() -> int:
    """Run one engine in the foreground: ``python -m demo.vllm_process [PORT]``."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    engine = VllmProcess(install_engine.ROOT / "out" / "engine.log", port).start()
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
