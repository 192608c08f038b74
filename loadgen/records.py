"""The files of a run: requests.jsonl, state.jsonl, meta.json, summary.json, summary.csv and goals.json.

requests.jsonl has one line for each attempt, written at its end. The other files describe
the whole run. No file contains API keys.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from loadgen.decoding import UNDECODABLE
from loadgen.scenario import Header, Process, Scenario, Slo, Tenant, Trace

_Record = TypeVar("_Record")
REQUESTS, STATE, META, SUMMARY, GOALS, REPORT, TABLE = (
    "requests.jsonl", "state.jsonl", "meta.json", "summary.json", "goals.json", "report.html", "summary.csv",
)  # fmt: skip
PARTS = "parts"
"""The folder of the files of several processes, until they are merged."""
_PACKAGES = ("tokenpool", "aiohttp", "uvloop", "msgspec")
_encode = msgspec.json.Encoder().encode


class Outcome(StrEnum):
    """The outcome of an attempt."""

    SERVED = "served"
    SHED = "shed"
    """Status 429."""
    UNAVAILABLE = "unavailable"
    """Status 503, or 529 of Anthropic's API."""
    ERROR = "error"
    """Any other status than success, an error event in a stream, or a response without a completion."""
    BROKEN = "broken"
    """The connection could not be opened, or ended before the response."""
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    """An error event with the code ``preempted``: a request with a guarantee needed the capacity."""
    CANCELLED = "cancelled"
    """The client ended it, as the scenario's ``cancel`` says."""
    CUT = "cut"
    """The run ended before the request."""


AS_PLANNED = frozenset({Outcome.SERVED, Outcome.CANCELLED})
"""The request was served, or its client ended it as the scenario says."""
REFUSED = frozenset({Outcome.SHED, Outcome.UNAVAILABLE})
"""The server answered that it does not serve the request now."""
FAILED = frozenset({Outcome.ERROR, Outcome.BROKEN, Outcome.TIMEOUT, Outcome.PREEMPTED, Outcome.CUT})
"""The request was neither served nor refused."""


class Attempt(msgspec.Struct, omit_defaults=True):
    """One attempt of a request. Times are seconds from the start of the run.

    It changes only while the attempt is in flight.
    """

    tenant: str
    request: str
    """The request's number; in a closed loop after the number of its worker, as in ``w3.17``.

    A turn of a conversation has both numbers, as in ``c12.2``.
    """
    intended_s: float
    """The due time of the request, that is, of its first attempt."""
    due_s: float
    """The due time of this attempt: later than ``intended_s`` for a retry."""
    sent_s: float
    end_s: float
    input_tokens: int
    """As requested."""
    output_tokens: int
    """As requested."""
    attempt: int = 1
    is_last: bool = True
    outcome: Outcome = Outcome.CUT
    status: int = 0
    """0 without a response."""
    reason: str = ""
    """``x-tokenpool-reason``, or else the error's code, or a name of the failure (see `causes`)."""
    message: str = ""
    """The words of the server or of the library about a failure, as one line."""
    retry_after_s: float | None = None
    first_s: float | None = None
    """The time of the first token."""
    last_s: float | None = None
    """The time of the last token of a stream."""
    prompt_tokens: int = 0
    """Input tokens by the engine's count."""
    tokens: int = 0
    """Output tokens by the engine's count, or else the number of events."""
    is_counted: bool = False
    """Whether the engine reported its count of the output tokens."""
    url: int = 0
    gap_mean_s: float | None = None
    gap_p99_s: float | None = None
    gap_max_s: float | None = None
    gaps: dict[int, int] = {}
    """See `statistics.Histogram`."""
    is_measured: bool = True
    """Whether the request counts: false in the warm-up and the cool-down."""
    turn: int = 0
    """The turn of a conversation, from 1; 0 outside conversations."""


class FaultResult(msgspec.Struct, frozen=True):
    """A fault, with the time and the result of its action."""

    at_s: float
    what: str
    result: str


class PhaseMeta(msgspec.Struct, frozen=True):
    """A phase, for the report."""

    name: str
    from_s: float
    to_s: float


class TenantMeta(msgspec.Struct, frozen=True):
    """A tenant, for the report."""

    name: str
    tier: str = ""
    slo: Slo | None = None
    ignores_eos: bool = True
    """Whether its responses should have the requested length."""

    @classmethod
    def of(cls, tenant: Tenant) -> TenantMeta:
        """What the report needs of a tenant."""
        return cls(tenant.name, tenant.tier, tenant.slo, tenant.ignore_eos)


class Machine(msgspec.Struct, frozen=True):
    """The machine of the generator."""

    cpu: str
    cores: int
    kernel: str
    python: str


class LoopDelay(msgspec.Struct, frozen=True):
    """How late the generator's event loop was in a phase, or in the whole run: percentiles over time, s."""

    phase: str
    p50_s: float
    p99_s: float
    max_s: float


class Stall(msgspec.Struct, frozen=True):
    """A time in which the event loop did nothing that was due."""

    at_s: float
    seconds: float

    @property
    def until_s(self) -> float:
        """The end."""
        return self.at_s + self.seconds


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """A run: its scenario, its machine, and totals."""

    label: str
    name: str
    seed: int
    duration_s: float
    drain_s: float
    ended_s: float
    """The time of the last response, or of the run's early end."""
    is_interrupted: bool
    tenants: list[TenantMeta]
    phases: list[PhaseMeta]
    faults: list[FaultResult]
    urls: list[str]
    command: list[str]
    started: str
    """Wall-clock time, ISO 8601."""
    machine: Machine
    versions: dict[str, str]
    lag_p50_s: float
    lag_p99_s: float
    """Delays of measured attempts after their due time."""
    lag_max_s: float
    cpu: float
    """The generator's CPU time as a share of a core: the 95th percentile over single seconds.

    It is that of the busiest process, in the measured time.
    """
    processes: int = 1
    """The number of processes of the generator."""
    complaints: list[str]
    """Reasons why the run is unreliable; empty if the generator kept up. `trust` finds further ones."""
    waited: float = 0.0
    """The time for which the generator was ready and had no core, as a share of the measured time."""
    ran: float = 0.0
    """The time for which it ran, as a share of the measured time."""
    loop: list[LoopDelay] = []
    """The measured part of the whole run, and of each phase that it reached."""
    stalls: list[Stall] = []
    """Delays of the event loop from 20 ms, in order; not more than 1000."""
    notes: list[str] = []
    """What was changed before the run, such as lengths of a trace that were cut. In sentences."""
    unread_states: dict[str, int]
    """The number of failed reads of a state page, by URL."""
    scenario: dict[str, object]
    warm_up_s: float = 0.0
    cool_down_s: float = 0.0
    """The time before the end of the arrivals in which requests are not measured."""


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reading of a state page. Amounts are by dimension."""

    at_s: float
    source: str
    kind: str
    """``sidecar``, ``coordinator`` or ``engine``."""
    capacity: dict[str, float] = {}
    entitlements: dict[str, EntitlementSample] = {}
    engine: dict[str, float] = {}
    """``running``, ``waiting``, ``kv_usage`` and ``up``, if known; of a simulator also ``steps``,
    ``step_delay_s`` and ``lost_s``, as counted since its start."""


class EntitlementSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entitlement on a page."""

    limit: dict[str, float] = {}
    demand: dict[str, float] = {}
    in_use: dict[str, float] = {}
    level: float | None = None
    debt: float | None = None


def machine() -> Machine:
    """A description of this machine."""
    return Machine(_cpu_model(), len(os.sched_getaffinity(0)), platform.release(), platform.python_version())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of the generator and of its libraries."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def described(scenario: Scenario) -> dict[str, object]:
    """A scenario for meta.json: complete except for keys, values of headers and the lines of traces."""
    shown = _shown(scenario)
    assert isinstance(shown, dict)
    return shown


_HIDDEN = ("key", "wording")
"""Secrets, and what the tokenizer alone decides."""


def _shown(value: object) -> object:
    if isinstance(value, Trace):
        return {"file": value.file, "requests": len(value.requests), "block_tokens": value.block_tokens}
    if isinstance(value, Header):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        body = {f.name: _shown(getattr(value, f.name)) for f in fields(value) if f.name not in _HIDDEN}
        return {type(value).__name__.lower(): body} if isinstance(value, Process) else body
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value


class Lines:
    """A file of JSON lines that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("wb")

    def write(self, record: msgspec.Struct) -> None:
        """Add a line. Raises ``OSError`` with the file's name, such as for a full disk."""
        try:
            self._file.write(_encode(record) + b"\n")
        except OSError as error:
            raise _of_file(error, self._path) from None

    def close(self) -> None:
        """Close the file. Raises ``OSError`` with the file's name."""
        try:
            self._file.close()
        except OSError as error:
            raise _of_file(error, self._path) from None


def save(path: Path, record: object) -> None:
    """Write one record as indented JSON. Raises ``OSError`` with the file's name."""
    try:
        path.write_bytes(msgspec.json.format(_encode(record), indent=1) + b"\n")
    except OSError as error:
        raise _of_file(error, path) from None


def _of_file(error: OSError, path: Path) -> OSError:
    """An error of a write, which does not name its file itself."""
    return OSError(error.errno, error.strerror, str(path))


class RunUnreadable(ValueError):
    """A folder without a run. The text names the missing part."""


class Run(msgspec.Struct, frozen=True):
    """A run, as read from its folder."""

    folder: str
    meta: Meta
    attempts: list[Attempt]
    samples: list[Sample]


def load(folder: Path) -> Run:
    """Read a run's folder. Raises ``RunUnreadable``."""
    try:
        meta = msgspec.json.decode((folder / META).read_bytes(), type=Meta)
        attempts = list(_lines(folder / REQUESTS, Attempt))
        samples = list(_lines(folder / STATE, Sample)) if (folder / STATE).exists() else []
    except OSError as error:
        raise RunUnreadable(f"{folder} has no run ({error.strerror}: {error.filename}); "
                            "name a folder that 'loadgen run --out' wrote") from None  # fmt: skip
    except UNDECODABLE as error:
        raise RunUnreadable(f"{folder} cannot be read: {error}; run the scenario again") from None
    return Run(str(folder), meta, attempts, samples)


def _lines(path: Path, kind: type[_Record]) -> Iterator[_Record]:
    decode = msgspec.json.Decoder(kind).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)


def numbers(value: object) -> dict[str, float]:
    """The numbers of a mapping; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {str(k): float(v) for k, v in value.items() if isinstance(v, int | float)}
