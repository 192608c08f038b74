"""The list of models (``GET /v1/models``), reduced to the models that its caller may use."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from sidecar.dialects.usage_readers import Reader

LONGEST_LIST: Final = 8 << 20
"""The longest list in bytes that is read: about 20,000 models with vLLM's 400 bytes each."""
_EMPTY: Final = b'{"object":"list","data":[]}'


_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_data = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class ModelListReader(Reader):
    """Keeps an answer until it is complete, and relays only the models of a scope, as the engine wrote them.

    Of an answer that is not a list of models, or too long, nothing is relayed but an empty list.
    """

    __slots__ = ("_models", "_parts", "_size")

    def __init__(self, models: frozenset[str]) -> None:
        super().__init__()
        self._models = models
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Keep the next part."""
        self._size += len(data)
        if self._size <= LONGEST_LIST:
            self._parts.append(data)
        return b""

    def end(self) -> bytes:
        """The list with the models of the scope."""
        try:
            found: dict[str, Any] = _decode_object(b"".join(self._parts))
            listed = _decode_data(found["data"])
            found["data"] = [each for each in listed if _decode_text(each["id"]) in self._models]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
            return _EMPTY
        return _encode(found)
