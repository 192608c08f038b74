"""Pictures of traces: ``python -m docs.traces`` makes the requests anew, and draws the collected spans.

Sidecars run in this process with scripted engines, as in ``tests/integration/sidecar/tracing/scenarios.py``.
A collector receives the spans over OTLP/HTTP. ``images/traces.json`` keeps them. ``--draw`` draws that file
again, without new requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakes.scripted_engine import FakeEngine
from tests.integration.sidecar.tracing import scenarios
from toolbox.collector import Span, collecting

FOLDER = Path(__file__).parent / "images"
FILE = FOLDER / "traces.json"
PACE_S = 0.03
"""The time for a token in the pictures, in seconds."""
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860.0, 210.0, 90.0, 64.0, 46.0, 16.0
INK, FAINT, LINES = "#24292f", "#57606a", "#e5e8eb"
COLOURS = {"server": "#57606a", "client": "#0969da"}
STAGES = {"authenticate": "#8250df", "price": "#8250df", "queue": "#bf8700", "handover": "#1a7f37"}
FAILED = "#cf222e"
TITLES = {
    "shed": "Shed: its wait in the queue ran out",
    "queued": "Queued: it waited until another request ended",
    "handed_over": "Handed over: another replica had room first",
    "preempted": "Preempted: a spot stream ended for a guarantee",
}
SHOWN = {
    "server": (
        "tokenpool.entitlement",
        "http.response.status_code",
        "tokenpool.reason",
        "tokenpool.ending",
        "gen_ai.usage.output_tokens",
    ),
    "client": (
        "gen_ai.operation.name",
        "tokenpool.peer",
        "gen_ai.response.time_to_first_chunk",
        "error.type",
    ),
    "internal": (
        "tokenpool.cost.input_tokens",
        "tokenpool.cost.output_tokens",
        "tokenpool.queue.reason",
        "tokenpool.queue.lacks",
        "tokenpool.peer",
    ),
}
"""The attributes that a picture shows, by the kind of the span."""


class Row(NamedTuple):
    """One span, with times in milliseconds since the start of its request."""

    name: str
    kind: str
    start: float
    end: float
    status: str
    attributes: dict[str, Any]


def rows(spans: list[Span]) -> list[Row]:
    """The spans of one trace, the request first."""
    start = spans[0].start_ns
    return [
        Row(
            span.name,
            span.kind,
            round((span.start_ns - start) / 1e6, 3),
            round((span.end_ns - start) / 1e6, 3),
            span.status,
            span.attributes,
        )
        for span in spans
    ]


async def collected() -> dict[str, list[Row]]:
    """Run the scenarios, and return the rows of each."""
    engine, second = FakeEngine(), FakeEngine()
    found = {}
    runs: dict[str, Callable[..., Coroutine[Any, Any, list[Span]]]] = {
        "shed": scenarios.shed,
        "queued": scenarios.queued,
        "handed_over": scenarios.handed_over,
        "preempted": scenarios.preempted,
    }
    await engine.start()
    await second.start()
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs.items():
            engines = (engine, second) if name == "handed_over" else (engine,)
            async with collecting() as collector:
                found[name] = rows(await run(*engines, Path(folder), collector, PACE_S))
    await engine.stop()
    await second.stop()
    return found


def read() -> dict[str, list[Row]]:
    """The rows of the file."""
    return {name: [Row(*row) for row in given] for name, given in json.loads(FILE.read_text()).items()}


# --- drawing ---


def text(
    x: float, y: float, words: str, fill: str, *, size: int = 12, weight: int = 400, anchor: str = "start"
) -> str:
    """One line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(words)}</text>'
    )


def said(ms: float) -> str:
    """A duration for readers."""
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def details(row: Row) -> str:
    """The attributes of a span that a picture shows."""
    parts = []
    for name in SHOWN[row.kind]:
        if name in row.attributes:
            value = row.attributes[name]
            shown = f"{value:.3f} s" if isinstance(value, float) else str(value)
            parts.append(f"{name.removeprefix('tokenpool.').removeprefix('http.')} {shown}")
    return " · ".join(parts)


def tick(length: float) -> int:
    """The distance of the marks on the time axis, in milliseconds: at most eight of them."""
    return next(step for step in (10, 20, 50, 100, 200, 500, 1000, 2000) if length / step <= 8)


def drawing(name: str, given: list[Row]) -> str:
    """The picture of one trace."""
    length = max(row.end for row in given)
    bottom = TOP + ROW * len(given)
    height = bottom + 30

    def place(ms: float) -> float:
        return LEFT + ms / length * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}"'
        f' height="{height:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(TITLES[name])}</title>",
        f'<rect width="{WIDTH:g}" height="{height:g}" rx="8" fill="#ffffff"/>',
        text(20, 30, TITLES[name], INK, size=17, weight=600),
    ]
    for ms in range(0, int(length) + 1, tick(length)):
        parts.append(f'<path d="M{place(ms):.1f} {TOP - 12:g}V{bottom:g}" stroke="{LINES}"/>')
        parts.append(text(place(ms), bottom + 18, f"{ms} ms", FAINT, anchor="middle"))
    for number, row in enumerate(given):
        y = TOP + ROW * number
        colour = FAILED if row.status == "error" else STAGES.get(row.name) or COLOURS.get(row.kind, INK)
        x, width = place(row.start), max(place(row.end) - place(row.start), 2.0)
        indent = 20 if row.kind == "server" else 34
        weight = 600 if row.kind == "server" else 400
        label = row.name.replace("POST /v1/chat/completions", "POST /v1/chat/…")
        if row.kind == "client":
            label += " (engine)"
        parts += [
            text(indent, y + 13, label, INK, size=13, weight=weight),
            f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{BAR:g}" rx="2" fill="{colour}"/>',
            text(min(x + width + 6, WIDTH - RIGHT + 6), y + 13, said(row.end - row.start), INK),
            text(LEFT, y + BAR + 14, details(row), FAINT, size=11),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def path(name: str) -> Path:
    """The picture of one trace."""
    return FOLDER / f"trace-{name.replace('_', '-')}.svg"


def main() -> int:
    """Write the spans and the pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.traces", description=__doc__)
    parser.add_argument("--draw", action="store_true", help="draw the spans of images/traces.json again")
    if not parser.parse_args().draw:
        found = asyncio.run(collected())
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    for name, given in read().items():
        path(name).write_text(drawing(name, given))
        print(path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
