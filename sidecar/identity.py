"""Identity: the entitlement of a caller.

Keys are stored only as SHA-256 digests. A caller can never name its own entitlement. A trusted gateway can do
so in a header, if the operator configures it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence

from tokenpool.entitlements import Entitlement, KeyRef, KeySource

_INDEX_BYTES = 8
KEY_HEADERS = (b"x-api-key", b"api-key")
"""Headers whose value is a key. Anthropic's clients send the first, OpenAI's clients for Azure the second."""
ADMINISTRATOR = "administrator"
"""The owner of each key in the ring of the administrators' keys. It is no entitlement."""
MOST_KEYS = 4
"""The most different keys of one request that are looked up. Each costs a SHA-256."""


class KeyUnreadable(ValueError):
    """A key cannot be used, or its variable or file cannot be read.

    ``line`` is the key's line in the pool file, and ``text`` the reason and the fix.
    """

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        super().__init__(f"line {line}: {text}")


class KeyRing:
    """The digests of all keys of one pool, and the entitlement of each.

    A digest is found by its first bytes, and then compared as a whole in constant time. So the duration
    reveals nothing useful about a key.
    """

    __slots__ = ("_by_index", "_further")

    def __init__(self, by_digest: Mapping[bytes, str]) -> None:
        self._by_index: dict[bytes, list[tuple[bytes, str]]] = {}
        self._further: dict[bytes, list[str]] = {}
        """The further entitlements of keys that several entitlements have, by digest."""
        self.add(by_digest)

    def add(self, by_digest: Mapping[bytes, str]) -> None:
        """Add digests that the ring does not have."""
        for digest, name in by_digest.items():
            self._by_index.setdefault(digest[:_INDEX_BYTES], []).append((digest, name))

    def find(self, key: bytes) -> str | None:
        """The entitlement of a key, or ``None``."""
        digest = hashlib.sha256(key).digest()
        for known, name in self._by_index.get(digest[:_INDEX_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return name
        return None

    def share(self, further: Mapping[bytes, Sequence[str]]) -> None:
        """Add the further entitlements of keys that the ring has."""
        for digest, names in further.items():
            self._further.setdefault(digest, []).extend(names)

    def further(self, key: bytes) -> Sequence[str]:
        """The further entitlements of a key that ``find`` has found."""
        return self._further.get(hashlib.sha256(key).digest(), ()) if self._further else ()

    def __len__(self) -> int:
        return sum(len(each) for each in self._by_index.values())


def sent_keys(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], bool]:
    """The different keys of a request, and whether it has other credentials. Header names are in lower case.

    An empty credential is ignored. A scheme other than Bearer is not a key: it is for a proxy in between.
    """
    keys: dict[bytes, None] = {}
    has_other = False
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                has_other = has_other or bool(scheme)
                continue
            key = key.strip()
        elif name in KEY_HEADERS:
            key = value.strip()
        else:
            continue
        if key:
            keys[key] = None
    return list(keys), has_other


def digests(
    entitlements: Iterable[Entitlement],
    resolve: Callable[[KeyRef], str],
    taken: list[tuple[str, str]] | None = None,
    further: dict[bytes, list[str]] | None = None,
) -> dict[bytes, str]:
    """The entitlement's name by the digest of each key. ``resolve`` reads a variable or a file.

    Entitlements with disjoint model scopes may have a common key: the names of all but the first are added to
    ``further``. Any other key of two entitlements is an error. With ``taken``, the earlier entitlement keeps
    it, and the pair of names (later, earlier) is added there. Raises ``KeyUnreadable``.
    """
    owners: dict[bytes, list[Entitlement]] = {}
    for entitlement in entitlements:
        for ref in entitlement.api_keys:
            owned = owners.setdefault(_digest(ref, resolve), [])
            if entitlement in owned:
                continue
            clash = next((each for each in owned if not each.may_share_key(entitlement)), None)
            if clash is None:
                owned.append(entitlement)
            elif taken is not None:
                taken.append((entitlement.name, clash.name))
            else:
                raise KeyUnreadable(
                    ref.line,
                    f"{entitlement.name} and {clash.name} have the same key; each entitlement needs its own,"
                    " or they need models of which none is in both",
                )
    if further is not None:
        further.update(
            {d: [each.name for each in owned[1:]] for d, owned in owners.items() if len(owned) > 1}
        )
    return {digest: owned[0].name for digest, owned in owners.items()}


def administrator_digests(
    refs: Iterable[KeyRef],
    resolve: Callable[[KeyRef], str],
    others: dict[bytes, str],
    taken: list[tuple[str, str]] | None = None,
) -> dict[bytes, str]:
    """The digests of the administrators' keys. ``others`` are the entitlements' keys, which they must not be.

    With ``taken``, the administrators keep such a key, and the entitlement loses it. Raises
    ``KeyUnreadable``.
    """
    found: dict[bytes, str] = {}
    for ref in refs:
        digest = _digest(ref, resolve)
        if digest in others and taken is not None:
            taken.append((others.pop(digest), "the administrators"))
        elif digest in others:
            raise KeyUnreadable(
                ref.line,
                f"{others[digest]} and the administrators have the same key; each needs its own",
            )
        found[digest] = ADMINISTRATOR
    return found


def _digest(ref: KeyRef, resolve: Callable[[KeyRef], str]) -> bytes:
    if ref.source is KeySource.SHA256:
        return bytes.fromhex(ref.value)
    text = resolve(ref).strip()
    if not text:
        raise KeyUnreadable(ref.line, f"{ref.source.value} {ref.value} holds no key")
    return hashlib.sha256(text.encode()).digest()


def resolver(environment: Mapping[str, str], read: Callable[[str], str]) -> Callable[[KeyRef], str]:
    """A ``resolve`` for ``digests`` over an environment and a way to read files."""

    def resolve(ref: KeyRef) -> str:
        if ref.source is KeySource.PLAIN:
            return ref.value
        try:
            return environment[ref.value] if ref.source is KeySource.ENV else read(ref.value)
        except KeyError:
            raise KeyUnreadable(
                ref.line, f"the variable {ref.value} is not set; set it or remove the key"
            ) from None
        except OSError as error:
            raise KeyUnreadable(ref.line, f"cannot read the key file {ref.value}: {error.strerror}") from None

    return resolve
