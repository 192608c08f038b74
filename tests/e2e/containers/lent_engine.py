"""Mounts the vLLM of `make engine` into containers, which takes seconds instead of the minutes of a build.

This needs the same Python version in the container. With another version, or with CONTAINERS_ENGINE_IMAGE=1,
the image of docker/engine.Dockerfile is built and used.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from demo import install_engine
from tests.e2e.containers import standins
from tests.e2e.containers.docker_daemon import ROOT, ContainerEngine

_WITHIN = "/opt/engine/site-packages"
_ENVIRONMENT = {
    "PYTHONPATH": _WITHIN,
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/tmp",
    "USER": "engine",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}
"""The environment of the image of docker/engine.Dockerfile."""


def beside(engine: ContainerEngine, folder: Path) -> Path | None:
    """An additional compose file for compose.yaml; ``None`` if the vLLM cannot be mounted."""
    if os.environ.get("CONTAINERS_ENGINE_IMAGE") or not install_engine.is_installed():
        return None
    packages = next((install_engine.HOME / "lib").glob("python3.*")) / "site-packages"
    asked = "import sys; print('python3.' + str(sys.version_info.minor))"
    within = engine.client.containers.run(standins.PYTHON, ["python3", "-c", asked], remove=True)
    if within.decode().strip() != packages.parent.name:
        return None
    model = folder / "tiny"
    subprocess.run(
        [install_engine.PYTHON, ROOT / "demo" / "random_model.py", model, "tiny"], check=True, timeout=120
    )
    folder.chmod(0o755)
    for path in (model, *model.iterdir()):
        path.chmod(0o755)
    lent = {
        "user": "65532:65532",
        "environment": _ENVIRONMENT,
        "volumes": [f"{packages}:{_WITHIN}:ro", f"{model}:/opt/models/tiny:ro"],
    }
    file = folder / "lent.yaml"
    file.write_text(yaml.safe_dump({"services": {"engine-1": lent, "engine-2": lent}}))
    return file
