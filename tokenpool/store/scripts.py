"""The Redis scripts: their text, and the types of their results.

A script consists of the constants of ``row_layout``, mostly ``common.lua``, and its own file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources

import msgspec

from tokenpool.leases.messages import Lease, PeerRoom, Vector
from tokenpool.leases.row_layout import LAYOUTS, Layout, lua_prelude
from tokenpool.planning.idle import IdleTerms


class ExchangeResult(msgspec.Struct, array_like=True):
    """The result of ``exchange``: an ``Answer`` with leases in the order of the requests."""

    leases: list[Lease]
    is_open: bool
    sidecars: int
    file_version: str
    limits_age_s: float
    terms: IdleTerms
    is_known: bool
    rows: int
    free: Vector
    peers: list[PeerRoom]
    credentials: str = ""


class SnapshotResult(msgspec.Struct, array_like=True):
    """The result of ``snapshot``: a ``PoolSnapshot`` with names in place of records."""

    names: list[str]
    epoch: float
    is_open: bool
    at: float
    file_version: str
    limits: str = ""
    """The mark of the last publication of limits; empty if a coordinator of an older version wrote them."""


SCRIPT_LAYOUTS = (
    *LAYOUTS,
    Layout("ANSWER", ExchangeResult.__struct_fields__),
    Layout("SNAPSHOT", SnapshotResult.__struct_fields__),
)
"""The positional records of the scripts."""


class Script:
    """One script. The server finds it by the digest of its text, after the text was sent once."""

    def __init__(
        self,
        name: str,
        *,
        only_reads: bool = False,
        layouts: Sequence[Layout] = SCRIPT_LAYOUTS,
        needs_common: bool = True,
    ) -> None:
        folder = resources.files("tokenpool.store")
        names = ("common", name) if needs_common else (name,)
        parts = (folder.joinpath(f"{part}.lua").read_text() for part in names)
        self.text = lua_prelude(layouts) + "\n".join(parts)
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.only_reads = only_reads
        """Whether a replica may answer it. Then its success does not prove that the server is the primary."""


CREDENTIALS = Script("credentials", only_reads=True)
EXCHANGE = Script("exchange")
LEAD = Script("lead")
PUBLISH = Script("publish")
PRICES = Script("prices", only_reads=True)
PUBLISH_FILE = Script("publish_file")
PUBLISH_PRICES = Script("publish_prices")
PUT_CREDENTIALS = Script("put_credentials")
PUBLISH_SCALE_HINT = Script("publish_scale_hint")
REMOVE_CREDENTIALS = Script("remove_credentials")
RECORDS = Script("records", only_reads=True)
SCALE_HINT = Script("scale_hint", only_reads=True)
SECRET = Script("secret")
SNAPSHOT = Script("snapshot", only_reads=True)
USAGE_RECEIVE = Script("usage_receive")
USAGE_SEND = Script("usage_send")
USAGE_STORED = Script("usage_stored")
