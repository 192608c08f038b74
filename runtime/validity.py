"""The end of a certificate's validity, read from its PEM text. Pure.

The standard library shows it only for a certificate of the other side, and a dependency for one number is not
worth it. So this module finds it in the DER encoding: certificate, its signed part, and there the sequence
after serial number, algorithm and issuer (RFC 5280, section 4.1).
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

_END = "-----END CERTIFICATE-----"
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


def not_after(pem: str) -> float | None:
    """The end of the first certificate in a PEM text, as Unix time; ``None`` if it cannot be read."""
    begin = pem.find("-----BEGIN CERTIFICATE-----")
    if begin < 0:
        return None
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : pem.index(_END) + len(_END)])
        return _time(*_validity(der))
    except (ValueError, IndexError):
        return None


def _validity(der: bytes) -> tuple[int, bytes]:
    """The tag and the text of ``notAfter``."""
    signed = _parts(_parts(der)[0][1])[0][1]
    fields = _parts(signed)
    if fields[0][0] == _VERSION:
        fields = fields[1:]
    return _parts(fields[3][1])[1]


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of an encoding, each with its tag."""
    found = []
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _time(tag: int, text: bytes) -> float:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError(f"tag {tag} is no time")
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
