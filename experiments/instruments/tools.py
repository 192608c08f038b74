"""The instruments: how each is called for a workload, and where its results are.

All send streaming completions at a constant rate, ignore the end-of-sequence token, and count output tokens
by the server's usage if they can. Each has one process for its requests, because it has one core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from demo import install_engine
from experiments.instruments import readers
from experiments.instruments.environments import Package, Unavailable, provided
from experiments.instruments.readers import Figures
from experiments.instruments.workload import Files, Workload
from toolbox.processes import module

_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Target:
    """The server under load."""

    url: str
    model: str


@dataclass(frozen=True)
class Call:
    """One run of an instrument."""

    workload: Workload
    target: Target
    files: Files
    folder: Path
    """For its results; absolute, and empty."""
    seed: int


@dataclass(frozen=True)
class Instrument:
    """A load generator."""

    name: str
    package: Package | None
    """``None`` for one that is here already."""
    command: Callable[[Path, Call], list[str]]
    """The command, with the folder of its programs."""
    read: Callable[[Path], Figures]
    """Raises ``OSError``, ``LookupError`` or ``ValueError`` for results without figures."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def programs(self, interpreters: Sequence[str]) -> Path:
        """The folder of its programs. Raises ``Unavailable``."""
        return Path() if self.package is None else provided(self.package, interpreters)


def _loadgen(_: Path, call: Call) -> list[str]:
    load = call.workload
    scenario = {
        "name": "instruments",
        "model": call.target.model,
        "duration_s": load.seconds,
        "drain_s": 20,
        "tenants": [
            {
                "name": "all",
                "key": "none",
                "arrivals": {"constant": {"rate": load.rate}},
                "input": load.input_tokens,
                "output": load.output_tokens,
            }
        ],
    }
    file = call.folder / "scenario.yaml"
    file.write_text(yaml.safe_dump(scenario))
    options = ["--url", call.target.url, "--out", str(call.folder / "run"), "--seed", str(call.seed)]
    return [*module("loadgen"), "run", str(file), *options]


def _read_loadgen(folder: Path) -> Figures:
    return readers.loadgen(_json(folder / "run" / "summary.json"), _lines(folder / "run" / "requests.jsonl"))


_VLLM_BENCH = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""``vllm bench serve``. The program ``vllm`` itself does not start in the build for CPUs."""


def _vllm_bench(programs: Path, call: Call) -> list[str]:
    load = call.workload
    options = {
        "backend": "openai",
        "base-url": call.target.url,
        "endpoint": "/v1/completions",
        "model": call.target.model,
        "tokenizer": str(call.files.tokenizer),
        "dataset-name": "random",
        "random-input-len": load.input_tokens,
        "random-output-len": load.output_tokens,
        "num-prompts": load.requests,
        "request-rate": load.rate,
        "burstiness": 1e6,  # the shape of a gamma distribution: constant intervals
        "result-dir": str(call.folder),
        "result-filename": "result.json",
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "metric-percentiles": "50,99",
        "ready-check-timeout-sec": 0,
        "seed": call.seed,
    }
    flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    return [str(programs / "python"), "-c", _VLLM_BENCH, *_options(options), *flags]


def _guidellm(programs: Path, call: Call) -> list[str]:
    load = call.workload
    options = {
        "backend": f"kind=openai_http,target={call.target.url},model={call.target.model}"
        ",request_format=/v1/completions",
        "profile": f"kind=constant,rate={load.rate:g}",
        "constraint": f"kind=max_requests,count={load.requests}",
        "tokenizer": f"kind=huggingface_auto,model={call.files.tokenizer}",
        "data": f"kind=json_file,path={call.files.prompts}",
        "output": f"kind=json,path={call.folder / 'report.json'}",
    }
    return [str(programs / "guidellm"), "run", *_options(options), "--disable-console"]


def _aiperf(programs: Path, call: Call) -> list[str]:
    load = call.workload
    options = {
        "model": call.target.model,
        "url": call.target.url,
        "endpoint-type": "completions",
        "tokenizer": str(call.files.tokenizer),
        "input-file": str(call.files.prompts),
        "custom-dataset-type": "single-turn",
        "request-rate": load.rate,
        "arrival-pattern": "constant",
        "request-count": load.requests,
        "extra-inputs": json.dumps({"ignore_eos": True, "max_tokens": load.output_tokens}),
        "artifact-dir": str(call.folder),
        "export-level": "records",
        "workers-max": 1,
        "record-processors": 1,
        "ui": "none",
        "random-seed": call.seed,
    }
    flags = ["--streaming", "--use-server-token-count", "--no-server-metrics", "--no-gpu-telemetry"]
    return [str(programs / "aiperf"), "profile", *_options(options), *flags]


def _read_aiperf(folder: Path) -> Figures:
    return readers.aiperf(
        _json(folder / "profile_export_aiperf.json"), _lines(folder / "profile_export.jsonl")
    )


def _inference_perf(programs: Path, call: Call) -> list[str]:
    load = call.workload

    def always(tokens: int) -> dict[str, Any]:
        sizes = {"mean": tokens, "min": tokens, "max": tokens, "std_dev": 0}
        return {"type": "fixed", "total_count": load.requests, **sizes}

    settings = {
        "api": {"type": "completion", "streaming": True},
        "data": {
            "type": "random",
            "input_distribution": always(load.input_tokens),
            "output_distribution": always(load.output_tokens),
        },
        "load": {
            "type": "constant",
            "interval": 0,
            "stages": [{"rate": load.rate, "duration": max(round(load.seconds), 1)}],
            "num_workers": 1,
            "worker_max_concurrency": max(load.requests, 100),
        },
        "server": {
            "type": "vllm",
            "model_name": call.target.model,
            "base_url": call.target.url,
            "ignore_eos": True,
        },
        "tokenizer": {"pretrained_model_name_or_path": str(call.files.tokenizer)},
        "report": {
            "request_lifecycle": {
                "per_stage": False,
                "per_request": True,
                "percentiles": [50, 99],
                "use_server_output_tokens": True,
                "per_request_fields": {"request": False, "response": False, "response_chunks": False},
            }
        },
        "storage": {"local_storage": {"path": str(call.folder)}},
    }
    file = call.folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    return [str(programs / "inference-perf"), "-c", str(file)]


def _read_inference_perf(folder: Path) -> Figures:
    return readers.inference_perf(
        _json(folder / "summary_lifecycle_metrics.json"), _json(folder / "per_request_lifecycle_metrics.json")
    )


class VllmBench(Instrument):
    """``vllm bench serve`` of the environment that ``make engine`` makes."""

    def programs(self, interpreters: Sequence[str]) -> Path:
        """The folder of its programs. Raises ``Unavailable``."""
        if not install_engine.is_installed():
            raise Unavailable("vLLM is not installed; run 'make engine'")
        return install_engine.PYTHON.parent


INSTRUMENTS = (
    Instrument("loadgen", None, _loadgen, _read_loadgen),
    VllmBench(
        "vllm bench serve",
        None,
        _vllm_bench,
        lambda folder: readers.vllm_bench(_json(folder / "result.json")),
        _OFFLINE | {"VLLM_NO_USAGE_STATS": "1"},
    ),
    Instrument(
        "GuideLLM",
        Package("guidellm==0.8.1", needs_torch=True),
        _guidellm,
        lambda folder: readers.guidellm(_json(folder / "report.json")),
        _OFFLINE | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"},
    ),
    # aiperf looks for the folder of a tokenizer on the Hub when HF_HUB_OFFLINE is set.
    Instrument("aiperf", Package("aiperf==0.13.0"), _aiperf, _read_aiperf, {"DO_NOT_TRACK": "1"}),
    Instrument(
        "inference-perf",
        Package("inference-perf==0.7.0", (3, 12)),
        _inference_perf,
        _read_inference_perf,
        _OFFLINE,
    ),
)


def _options(named: Mapping[str, object]) -> list[str]:
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def _json(file: Path) -> Any:
    return msgspec.json.decode(file.read_bytes())


def _lines(file: Path) -> list[Any]:
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
