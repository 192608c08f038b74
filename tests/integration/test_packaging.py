"""What builds of the package contain and claim. A compiled wheel is tested if `make compiled` built one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from runtime import data_path
from tests.pythons import claimed, interpreter

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA_PATH = [f"{module.replace('.', '/')}.py" for module in data_path.MODULES]
WHEELS = sorted((ROOT / ".compiled" / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built: a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    for package in {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def built(sources: Path, target: Path, kind: str) -> Path:
    """Build a wheel or an sdist without a compiler, and without the network."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TOKENPOOL_COMPILE", "PYTHONPATH")}
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=sources, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def test_a_source_install_is_pure_python(sources: Path, tmp_path: Path) -> None:
    wheel = built(sources, tmp_path, "wheel")

    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert not [name for name in names if name.endswith((".so", ".c", ".h"))]
    assert {*DATA_PATH, "dashboard/page.html", "dashboard/usage.html", "sidecar/py.typed"} <= names
    scenarios = {path.name for path in (ROOT / "docs" / "examples").iterdir() if path.is_symlink()}
    assert scenarios
    assert {f"loadgen/examples/{name}" for name in scenarios} <= names
    assert {path.name for path in (ROOT / "tokenpool" / "store").glob("*.lua")} <= {
        Path(name).name for name in names
    }


def test_an_sdist_has_what_a_compiled_build_needs(sources: Path, tmp_path: Path) -> None:
    with tarfile.open(built(sources, tmp_path, "sdist")) as files:
        names = {name.partition("/")[2] for name in files.getnames()}

    assert {
        *DATA_PATH,
        "runtime/data_path.py",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "dashboard/page.html",
    } <= names


def test_every_folder_of_an_installed_package_is_listed() -> None:
    """A folder that is missing is found only where the package is installed, as in the image."""
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    tops = {name.partition(".")[0] for name in listed}
    folders = {path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} == listed


@pytest.mark.skipif(not WHEELS, reason="no compiled wheel: run 'make compiled'")
def test_a_compiled_wheel_is_for_this_platform_and_says_that_it_is_compiled(tmp_path: Path) -> None:
    (wheel,) = WHEELS
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-{tag}-{tag}-{platform}.whl")

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], timeout=60, check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", str(wheel)], timeout=120, check=True)
    # A path file lends it the dependencies, not the checkout: Python reads no path files in a lent folder.
    purelib = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    (Path(purelib) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for program in PROJECT["project"]["scripts"]:
        done = subprocess.run(
            [environment / "bin" / program, "--version"],
            env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert re.fullmatch(rf"{program} {PROJECT['project']['version']}, compiled, Python .*\n", done.stdout)
    checked = subprocess.run(
        [environment / "bin" / "tokenpool-sidecar", "check", ROOT / "docker" / "pool.yaml"],
        env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "checkout" in checked.stdout


def test_the_package_the_makefile_and_the_image_claim_the_tested_pythons() -> None:
    """``make pythons`` tests what the classifiers name; nothing else names another version."""
    versions = claimed(PROJECT)
    first, *_, last = versions
    named = re.search(r"another Python \((.*) are tested\)", (ROOT / "Makefile").read_text())
    image = re.search(r"ARG PYTHON_IMAGE=python:([\d.]+)-slim", (ROOT / "docker" / "Dockerfile").read_text())

    assert PROJECT["project"]["requires-python"] == f">={first}"
    assert named is not None
    assert named[1] == f"{', '.join(versions[:-1])} and {last}"
    assert image is not None
    assert image[1] in versions


def test_a_python_that_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert interpreter("3.12") is None
    found = tmp_path / "versions" / "3.12.1" / "bin" / "python"
    found.parent.mkdir(parents=True)
    found.touch()
    assert interpreter("3.12") == found
