"""Lends containers the vLLM that `make engine` installed for the other tests: seconds instead of minutes.

That needs the same Python within and without. Where it is another one, or CONTAINERS_ENGINE_IMAGE=1 asks
for it, the image of docker/engine.Dockerfile is built and used.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from demo import install_engine
from tests.e2e.containers import standins
from tests.e2e.containers.engine import ROOT, ContainerEngine

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
"""What the image of docker/engine.Dockerfile sets."""


def beside(engine: ContainerEngine, folder: Path) -> Path | None:
    """A compose file to be read beside compose.yaml; ``None`` where nothing can be lent."""
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
