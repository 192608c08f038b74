"""Merges the files of the parts of a run into the files of one run.

No figure is an average of the parts' figures. Delays are computed from the attempts of all parts again, and
the use of the processor is that of the busiest process, because each process has a core of its own. The delay
of the event loop is that of the worst process, because its tokens are a part of every percentile.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from loadgen.records import META, REQUESTS, STATE, Meta, save
from loadgen.statistics import percentile
from loadgen.trust import complaints, worst


class _Times(msgspec.Struct):
    due_s: float
    sent_s: float
    end_s: float
    is_measured: bool = True


_decode = msgspec.json.Decoder(_Times).decode


def merge(out: Path, parts: Sequence[Path]) -> Meta:
    """Write the files of a run from the folders of its parts."""
    lags = sorted(_merge_requests(out / REQUESTS, [part / REQUESTS for part in parts]))
    (out / STATE).write_bytes((parts[0] / STATE).read_bytes())
    metas = [msgspec.json.decode((part / META).read_bytes(), type=Meta) for part in parts]
    meta = merged(metas, lags)
    save(out / META, meta)
    return meta


def merged(metas: Sequence[Meta], lags: Sequence[float]) -> Meta:
    """The description of the whole run. ``lags`` are the delays of all measured attempts, s, in order."""
    first = metas[0]
    late = percentile(lags, 0.99) if lags else 0.0
    cpu = max(meta.cpu for meta in metas)
    starved = max(metas, key=lambda meta: meta.waited)
    changes = {
        "ended_s": max(meta.ended_s for meta in metas),
        "is_interrupted": any(meta.is_interrupted for meta in metas),
        "processes": len(metas),
        "lag_p50_s": percentile(lags, 0.5) if lags else 0.0,
        "lag_p99_s": late,
        "lag_max_s": lags[-1] if lags else 0.0,
        "cpu": cpu,
        "complaints": complaints(late, cpu),
        "waited": starved.waited,
        "ran": starved.ran,
        "loop": worst(each for meta in metas for each in meta.loop),
        "stalls": sorted((stall for meta in metas for stall in meta.stalls), key=lambda stall: stall.until_s),
    }
    return msgspec.structs.replace(first, **changes)


def _merge_requests(out: Path, files: Sequence[Path]) -> Iterator[float]:
    """Write all lines in the order of their ends. Yields the delay of each measured attempt, s."""
    with ExitStack() as stack:
        sources = [stack.enter_context(file.open("rb")) for file in files]
        target = stack.enter_context(out.open("wb"))
        for _, times, line in heapq.merge(*map(_lines, sources), key=lambda item: item[0]):
            target.write(line)
            if times.is_measured:
                yield times.sent_s - times.due_s


def _lines(source: BinaryIO) -> Iterator[tuple[float, _Times, bytes]]:
    for line in source:
        times = _decode(line)
        yield times.end_s, times, line
