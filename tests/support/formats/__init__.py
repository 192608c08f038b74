"""The formats that processes of two versions share, as version 1 wrote them.

``v1/`` has the bytes of one example of each record, the columns of all positional records, and the text of
every Redis script. ``python -m tests.support.formats v2`` writes the folder of a new version from the current
code. A folder of a released version never changes.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import NONCE_BYTES, VERSION, Kind, encode_ask, frame, numbered
from tokenpool.amounts import Amount, Dimension
from tokenpool.leases.wire import (
    SidecarReport,
    encode_file,
    encode_hint,
    encode_prices,
    encode_report,
    encode_statistics,
)
from tokenpool.planning.scaling import Need
from tokenpool.planning.stabiliser import PublishedHint, ScaleHint, StabiliserState
from tokenpool.poolfile import parse
from tokenpool.pricing.statistics import EntitlementStatistics, OutputStatistics, Statement, TargetStatistics
from tokenpool.store import scripts
from tokenpool.store.quota_script import QUOTA_LAYOUTS

VERSIONS = Path(__file__).parent
CURRENT = "v1"
NEW_SCRIPTS = {
    "CREDENTIALS",
    "PUT_CREDENTIALS",
    "REMOVE_CREDENTIALS",
    "USAGE_SEND",
    "USAGE_RECEIVE",
    "USAGE_STORED",
}
"""The scripts that the last version does not have."""

POOL = """
pools:
  - name: chat
    models: [small, large]
    replica: {tokens_per_second: 1000, kv_tokens: auto, concurrency: {auto: 8}}
    replicas: {min: 1, max: 4}
    pricing: {input_weight: 0.5, image_tokens: 700}
entitlements:
  - name: gold
    pool: chat
    tier: guaranteed
    weight: 2
    guarantee: {tokens_per_second: 100, kv_tokens: 1000, concurrency: 2}
    ceiling: {concurrency: 16}
    slo: {ttft_ms: 500}
    output_estimate: 0.95
    api_keys: [plain-key, {env: GOLD_KEY}, {file: /keys/gold}]
  - {name: bulk, pool: chat, tier: spot, preemptible: false, output_estimate: max}
anonymous: bulk
administrator_keys: [root-key]
"""
REPORT = SidecarReport(
    Amount(1000.0, 65536.0, 8.0),
    Amount(1000.0, math.inf, 8.0),
    engine_up=True,
    running=3.0,
    waiting=1.0,
    kv_usage=0.25,
    mode="joined",
    file_version="0123456789abcdef",
    outcomes={"gold": {"finished": 7, "no_room": 2}},
    first_tokens={"gold": (1.5, (1, 0, 2))},
)
STATISTICS = EntitlementStatistics(
    0.9,
    (
        TargetStatistics(
            "/v1/chat/completions",
            "small",
            prompts=4,
            output=OutputStatistics((5, 9), 2, 10, 1, 0.91),
            experts={77: OutputStatistics((5,), 1)},
        ),
    ),
)
HINT = PublishedHint(
    ScaleHint(3, Need(3, Dimension.CONCURRENCY, 5, 2), "three are needed"),
    1,
    4,
    StabiliserState(3, ((0.5, 2), (0.0, 3)), ((10.0, 4),)),
)
ASK = AskFields(7, "guaranteed", False, 2, 4096, 1500, "beyond", ((1, 2, 3),))


def records() -> dict[str, bytes]:
    """The examples, as the current code writes them."""
    return {
        "report": encode_report(REPORT),
        "statistics": encode_statistics(STATISTICS),
        "prices": encode_prices(Statement(3, {"gold": encode_statistics(STATISTICS)})),
        "file": encode_file(parse(POOL).file)[1],
        "hint": encode_hint(HINT),
        "hello": frame(Kind.HELLO, bytes([VERSION]) + b"n" * NONCE_BYTES),
        "ask": encode_ask(ASK),
        "offer": numbered(Kind.OFFER, 7),
    }


def columns() -> dict[str, Sequence[str]]:
    """The columns of the positional records in the lease store, in their order."""
    made = {layout.prefix: list(layout.columns) for layout in scripts.SCRIPT_LAYOUTS}
    made |= {f"QUOTA_{layout.prefix}": list(layout.columns) for layout in QUOTA_LAYOUTS}
    made["ASK"] = list(AskFields.__struct_fields__)
    return made


def texts() -> dict[str, str]:
    """The text of each Redis script, by the name of its constant."""
    return {name: each.text for name, each in vars(scripts).items() if isinstance(each, scripts.Script)}


def _common(every: Mapping[str, str]) -> str:
    """The lines with which all scripts begin: constants and the common part."""
    lines = zip(*(text.splitlines(keepends=True) for text in every.values()), strict=False)
    return "".join(some[0] for some in itertools.takewhile(lambda some: len(set(some)) == 1, lines))


def golden(version: str = CURRENT) -> Mapping[str, bytes]:
    """The examples as this version wrote them."""
    return {path.stem: path.read_bytes() for path in (VERSIONS / version).glob("*.bin")}


def golden_columns(version: str = CURRENT) -> Mapping[str, Sequence[str]]:
    """The columns of this version."""
    found: dict[str, Sequence[str]] = json.loads((VERSIONS / version / "columns.json").read_text())
    return found


def golden_texts(version: str = CURRENT) -> Mapping[str, str]:
    """The scripts of this version."""
    found = {path.stem: path.read_text() for path in (VERSIONS / version).glob("*.lua")}
    common = found.pop("common")
    return {name: common + text for name, text in found.items()}


def write(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir()
    for name, content in records().items():
        (folder / f"{name}.bin").write_bytes(content)
    common = _common(texts())
    (folder / "common.lua").write_text(common)
    for name, text in texts().items():
        (folder / f"{name}.lua").write_text(text.removeprefix(common))
    (folder / "columns.json").write_text(json.dumps(columns(), indent=1) + "\n")
