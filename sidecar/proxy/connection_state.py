"""The states of a client connection, and the transitions between them, as tables.

The rules of this file:

1. A connection has three states at any time: what the parser reads (``Phase``), what the connection serves
   (``Serving``), and its stage towards the end (``Life``). Each has a table of its own.
2. A table has one row per state: the states that may follow. Any other transition is a defect of the
   program and raises ``IllegalTransition``. Only this file decides which transitions are legal.
3. A state changes in one place: ``RequestParser._enter``, ``ClientConnection._serve_by`` and
   ``ReceivingConnection._become``.
4. This file knows no parser, no transport and no request.

Reading: the parser is ``IDLE`` between two requests. The first byte of a request leads to ``HEAD``, the
end of its head to ``BODY`` (also where no body follows), the end of the body to ``IDLE`` again. After a
request that ends the connection, and after an error, the parser has ``ENDED``: what still arrives cannot
be trusted.

Serving: one request at a time. A request may wait for its admission (``WAITING``), be relayed
(``EXCHANGING``), or have its answer delayed (``DELAYED``). A request that is answered at once leaves the
connection at ``NOTHING``.

Ending: after a refusal that ends the connection it is ``LINGERING``: the answer is written, and what the
client still sends is dropped for a while. A reset would destroy the answer on its way. Any other end is
``CLOSING``: written bytes are sent first. ``CLOSED`` is the end.
"""

from __future__ import annotations

import enum


class IllegalTransition(Exception):
    """A transition that no table allows."""


class Phase(enum.Enum):
    """The part of a request that the parser reads."""

    following: tuple[Phase, ...]
    """The states that may follow this one."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    ENDED = "ended"


class Serving(enum.Enum):
    """The thing that the connection serves."""

    following: tuple[Serving, ...]
    """The states that may follow this one."""

    NOTHING = "nothing"
    WAITING = "waiting"
    EXCHANGING = "exchanging"
    DELAYED = "delayed"


class Life(enum.Enum):
    """The stage of the connection towards its end."""

    following: tuple[Life, ...]
    """The states that may follow this one."""

    OPEN = "open"
    LINGERING = "lingering"
    CLOSING = "closing"
    CLOSED = "closed"


PHASES = {
    Phase.IDLE: (Phase.HEAD, Phase.ENDED),
    Phase.HEAD: (Phase.BODY, Phase.ENDED),
    Phase.BODY: (Phase.IDLE, Phase.ENDED),
    Phase.ENDED: (),
}
SERVING = {
    Serving.NOTHING: (Serving.WAITING, Serving.EXCHANGING, Serving.DELAYED),
    Serving.WAITING: (Serving.NOTHING,),
    Serving.EXCHANGING: (Serving.NOTHING,),
    Serving.DELAYED: (Serving.NOTHING,),
}
LIFE = {
    Life.OPEN: (Life.LINGERING, Life.CLOSING, Life.CLOSED),
    Life.LINGERING: (Life.CLOSING, Life.CLOSED),
    Life.CLOSING: (Life.CLOSED,),
    Life.CLOSED: (),
}
# Each state has its row as an attribute. A dict look-up by an enum member would call its hash: 0.1 µs.
for _phase, _phases in PHASES.items():
    _phase.following = _phases
for _serving, _servings in SERVING.items():
    _serving.following = _servings
for _life, _lives in LIFE.items():
    _life.following = _lives
