"""Identity: the credential of a caller, and the entitlement that it stands for.

Keys are stored only as SHA-256 digests. A caller can never name its own entitlement. A trusted gateway can do
so in a header, if the operator configures it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from tokenpool.entitlements import Entitlement, KeyRef, KeySource, Quota

_INDEX_BYTES = 8
KEY_HEADERS = (b"x-api-key", b"api-key")
"""Headers whose value is a key. Anthropic's clients send the first, OpenAI's clients for Azure the second."""
ADMINISTRATOR = "administrator"
"""The owner of each key in the ring of the administrators' keys. It is no entitlement."""
ID_DIGITS = 8
"""The hex digits of its digest that name a key without an id."""
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


class Credential(msgspec.Struct, array_like=True, gc=False, eq=False):
    """An accepted credential. A source changes it in place, so a cached request head sees its end."""

    entitlement: str
    id: str = ""
    """Its name in logs and usage records. It is no secret."""
    ends_at: float = math.inf
    """The time from which it is refused, in seconds of Unix time; minus infinity after its revocation."""
    concurrency: int = 0
    """The most sequences at the same time; 0 without a limit of its own."""
    others: tuple[str, ...] = ()
    """The further entitlements with the same key. The model of a request chooses among all of them."""
    quotas: tuple[Quota, ...] = ()
    """The budgets of its requests, in addition to those of the entitlement."""


def has_ended(credential: Credential, wall_clock: Callable[[], float]) -> bool:
    """Whether a credential is refused now. Without an end, the clock is not read."""
    ends_at = credential.ends_at
    return ends_at != math.inf and ends_at <= wall_clock()


class CredentialSource(Protocol):
    """A source of credentials: the pool file's keys, issued keys, or tokens of an identity provider."""

    def find(self, key: bytes) -> Credential | None:
        """The credential that these bytes prove, or ``None``. It may have ended."""


class KeyRing:
    """The digests of all keys of one pool, and the credential of each.

    A digest is found by its first bytes, and then compared as a whole in constant time. So the duration
    reveals nothing useful about a key.
    """

    __slots__ = ("_by_index",)

    def __init__(self, by_digest: Mapping[bytes, Credential]) -> None:
        self._by_index: dict[bytes, list[tuple[bytes, Credential]]] = {}
        self.add(by_digest)

    def add(self, by_digest: Mapping[bytes, Credential]) -> None:
        """Add digests that the ring does not have."""
        for digest, credential in by_digest.items():
            self._by_index.setdefault(digest[:_INDEX_BYTES], []).append((digest, credential))

    def find(self, key: bytes) -> Credential | None:
        """The credential of a key, or ``None``."""
        digest = hashlib.sha256(key).digest()
        for known, credential in self._by_index.get(digest[:_INDEX_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return credential
        return None

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
) -> dict[bytes, Credential]:
    """The credential by the digest of each key. ``resolve`` reads a variable or a file.

    Entitlements with disjoint model scopes may have a common key: the credential has the id and the limits
    that the first of them states. Any other key of two entitlements is an error. With ``taken``, the earlier
    entitlement keeps it, and the pair of names (later, earlier) is added there. Raises ``KeyUnreadable``.
    """
    by_digest: dict[bytes, Credential] = {}
    owners: dict[bytes, list[Entitlement]] = {}
    for entitlement in entitlements:
        for ref in entitlement.api_keys:
            digest = _digest(ref, resolve)
            owned = owners.setdefault(digest, [])
            if entitlement in owned:
                continue
            clash = next((each for each in owned if not each.may_share_key(entitlement)), None)
            if clash is None:
                owned.append(entitlement)
                if digest in by_digest:
                    by_digest[digest].others += (entitlement.name,)
                else:
                    by_digest[digest] = _credential(entitlement.name, digest, ref)
            elif taken is not None:
                taken.append((entitlement.name, clash.name))
            else:
                raise KeyUnreadable(
                    ref.line,
                    f"{entitlement.name} and {clash.name} have the same key; each entitlement needs its own,"
                    " or they need models of which none is in both",
                )
    return by_digest


def administrator_digests(
    refs: Iterable[KeyRef],
    resolve: Callable[[KeyRef], str],
    others: dict[bytes, Credential],
    taken: list[tuple[str, str]] | None = None,
) -> dict[bytes, Credential]:
    """The digests of the administrators' keys. ``others`` are the entitlements' keys, which they must not be.

    With ``taken``, the administrators keep such a key, and the entitlement loses it. Raises
    ``KeyUnreadable``.
    """
    found: dict[bytes, Credential] = {}
    for ref in refs:
        digest = _digest(ref, resolve)
        if digest in others and taken is not None:
            taken.append((others.pop(digest).entitlement, "the administrators"))
        elif digest in others:
            raise KeyUnreadable(
                ref.line,
                f"{others[digest].entitlement} and the administrators have the same key; each needs its own",
            )
        found[digest] = _credential(ADMINISTRATOR, digest, ref)
    return found


def _credential(entitlement: str, digest: bytes, ref: KeyRef) -> Credential:
    return Credential(
        entitlement,
        ref.id or digest.hex()[:ID_DIGITS],
        math.inf if ref.expires_at is None else ref.expires_at,
        ref.concurrency or 0,
        quotas=ref.quotas,
    )


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
