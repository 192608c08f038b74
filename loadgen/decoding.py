"""What msgspec raises for JSON that cannot be decoded. Its base class does not cover all of it."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Another format, another encoding, or too many levels."""
