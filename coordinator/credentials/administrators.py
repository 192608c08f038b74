"""The administrators of the API for credentials: a file with their names and tokens.

Each line has a name and a token with a space between them. A token alone has the name ``administrator``. The
file is read again when it changes, so a token can be replaced while both are accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DEFAULT_NAME = "administrator"
"""The name of the owner of a token without a name."""
SHORTEST_TOKEN = 16
"""The fewest characters of a token: 16 random letters and digits have 95 bits."""
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


class TokensInvalid(ValueError):
    """The file of tokens cannot be used. The text names the file, the line and the fix, and no token."""


def parse(text: str, name: str) -> dict[bytes, str]:
    """The names by the digests of their tokens. Raises ``TokensInvalid``."""
    found: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) > 2:
            raise TokensInvalid(f"{name}:{number}: there are {len(words)} words; write NAME TOKEN")
        who, token = words if len(words) == 2 else (DEFAULT_NAME, words[0])
        if not _NAME.fullmatch(who):
            raise TokensInvalid(f"{name}:{number}: the name may have 1 to 64 letters, digits and _ . @ -")
        if len(token) < SHORTEST_TOKEN:
            raise TokensInvalid(
                f"{name}:{number}: the token has {len(token)} characters; write at least {SHORTEST_TOKEN},"
                " such as the output of: openssl rand -hex 32"
            )
        found[hashlib.sha256(token.encode()).digest()] = who
    if not found:
        raise TokensInvalid(f"{name} has no token; write one line: NAME TOKEN")
    return found


class Administrators:
    """The tokens in force."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ``TokensInvalid`` and ``OSError``."""
        self.path = path
        self._by_digest: Mapping[bytes, str] = self._read()

    def _read(self) -> dict[bytes, str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise TokensInvalid(f"{self.path} is not a text file") from None
        return parse(text, str(self.path))

    async def follow(self) -> Sequence[Path]:
        """Read the file again, and return it to be watched. Raises ``TokensInvalid`` and ``OSError``."""
        self._by_digest = await asyncio.to_thread(self._read)
        return (self.path,)

    def name(self, authorization: str) -> str | None:
        """The administrator whose token an ``Authorization`` header has; ``None`` if it has no valid one.

        The duration depends on the number of tokens only: every digest is compared in constant time.
        """
        scheme, _, token = authorization.strip().partition(" ")
        # The server decodes bytes that are not UTF-8 to surrogates, which cannot be encoded otherwise.
        digest = hashlib.sha256(token.strip().encode(errors="surrogateescape")).digest()
        found = None
        for known, who in self._by_digest.items():
            if hmac.compare_digest(known, digest):
                found = who
        return found if scheme.lower() == "bearer" and token.strip() else None
