"""The engine's page ``/v1/models``: bytes in, the context window out. No I/O."""

from __future__ import annotations

import msgspec

from sidecar.engine.metrics_page import PageUnusable

MOST_BYTES = 1024 * 1024
"""A larger page is unusable."""


class _Model(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


def context_window(page: bytes) -> int:
    """The smallest context window of the engine's models, in tokens. Raises ``PageUnusable``."""
    try:
        models = msgspec.json.decode(page, type=_Models)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PageUnusable(str(error)) from error
    windows = [m.max_model_len for m in models.data if m.max_model_len and m.max_model_len > 0]
    if not windows:
        raise PageUnusable("it has no max_model_len")
    return min(windows)
