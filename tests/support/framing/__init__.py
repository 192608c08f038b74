"""The framing corpus: bytes of clients and of engines, and the outcome that each must have.

There is one module per topic. Its tables have an RFC section and a reason per case; ``cases.py`` explains
them. ``tests/unit/sidecar/proxy/test_framing.py`` runs all cases of clients through the parser.
``test_framing_live.py`` sends a sample of them, and all replies of engines, through a running sidecar. A
deviation that is found becomes a case. Bodies that are well framed but not valid requests are in
``tests/support/corpus.py``.
"""

from __future__ import annotations

from tests.support.framing import (
    chunks,
    codings,
    connections,
    headers,
    hosts,
    lengths,
    lines,
    pipelines,
    replies,
    request_lines,
    sizes,
    targets,
    upgrades,
)
from tests.support.framing.cases import Case, Reply

_TOPICS = (
    request_lines, targets, hosts, lengths, codings, chunks, headers, lines, pipelines, connections, upgrades, sizes
)  # fmt: skip

CASES: list[Case] = [case for topic in _TOPICS for case in topic.cases()]
REPLIES: list[Reply] = list(replies.replies())
