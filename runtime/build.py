"""This process's build, for ``--version`` and ``/metrics``: version, compiled or not, Python, platform."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime import data_path

UNKNOWN_VERSION = "unknown"
"""The version of a package that is not installed, as in a checkout on ``PYTHONPATH``."""


@dataclass(frozen=True, slots=True)
class Build:
    """One build."""

    version: str
    compiled: bool
    """Whether every module of the data path is machine code."""
    python: str
    platform: str

    def line(self, program: str) -> str:
        """The text of ``--version``."""
        how = "compiled" if self.compiled else "not compiled"
        return f"{program} {self.version}, {how}, Python {self.python}, {self.platform}"


@cache
def this_build() -> Build:
    """The build of this process. Imports no module of the data path, only their packages."""
    try:
        number = version("tokenpool")
    except PackageNotFoundError:
        number = UNKNOWN_VERSION
    where = f"{platform.system()} {platform.machine()}"
    return Build(number, are_compiled(data_path.MODULES), platform.python_version(), where)


def are_compiled(modules: Sequence[str]) -> bool:
    """Whether Python imports each of these modules from machine code."""
    return all(map(_is_compiled, modules))


def _is_compiled(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)


class BuildInfo(Collector):
    """The metric ``tokenpool_build_info``: always 1; the labels are the information."""

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: the metric."""
        build = this_build()
        info = GaugeMetricFamily(
            "tokenpool_build_info",
            "1, with the version of tokenpool, whether its data path is compiled, and the Python version.",
            labels=("version", "compiled", "python"),
        )
        info.add_metric((build.version, str(build.compiled).lower(), build.python), 1.0)
        yield info


class _Version(argparse.Action):
    """Prints the build, and exits. Finding the build takes milliseconds, so it is done only on request."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(this_build().line(parser.prog))
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Give a command line the option ``--version``."""
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print version, build, Python and platform, and exit"
    )
