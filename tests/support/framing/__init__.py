"""The framing corpus: what may come over the proxied port, and from the engine, and what must become of it.

One module for each topic, each a few tables with an RFC section and a reason per case (``cases.py`` says how
to read them). ``tests/integration/sidecar/proxy/test_framing.py`` runs all of them; a deviation that is found becomes a case.
Bodies that are well framed but no valid requests are in ``tests/support/corpus.py``.
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
