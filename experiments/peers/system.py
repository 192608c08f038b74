"""What a system under test is, and what it needs to start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from experiments.peers.environment import FILES, HOME
from toolbox.processes import Process


@dataclass(frozen=True)
class Capacity:
    """What the engine does without a proxy, as an operator would measure it."""

    requests_per_s: float
    """Requests of the usual size, with all slots in use."""
    tokens_per_s: float
    """Input and output tokens of these requests."""
    alone_s: float
    """The time of one such request on an idle engine, in seconds."""
    alone_p99_ttft_s: float | None = None
    """The guaranteed tenant's P99 time to first token without other tenants, once it is known."""


@dataclass(frozen=True)
class Place:
    """Where a system runs."""

    folder: Path
    """For its files."""
    upstream: int
    """The engine's port."""
    capacity: Capacity
    home: Path = HOME
    """The environment with the peers' programs."""


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class System:
    """One system under test."""

    name: str
    start: Callable[[Place], AbstractContextManager[Proxy]] | None = None
    """``None``: no proxy."""
    program: str = ""
    """The program that must be installed, if any."""
    engine: Sequence[str] = ()
    """The engine's flags."""
    priorities: Mapping[str, int] = field(default_factory=dict)
    """The field ``priority`` of requests, by tier."""
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further headers of requests, by tier."""


def filled(name: str, **values: object) -> str:
    """A configuration file with these values. Raises ``KeyError`` if one is missing."""
    return Template((FILES / name).read_text()).substitute({key: str(value) for key, value in values.items()})
