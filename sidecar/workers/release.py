"""The release of a killed worker's leases, so that the others need not wait until they expire. Pure.

The kernel has closed the worker's connections to the engine, so nothing that it admitted runs any more.
"""

from __future__ import annotations

from tokenpool.leases.messages import Message
from tokenpool.leases.wire import SidecarReport, encode_report

LAST_NUMBER = 2**53 - 1
"""The number of the message. It is higher than that of any message of the worker. Redis keeps it exactly."""


NO_ENGINE = 2**31 - 1
"""The workers in an ended holder's report: its part of an engine is next to nothing. The store keeps the
report for one lifetime, and the other workers already report the whole engine."""


def release(holder: str) -> Message:
    """The last message of a holder that has ended: it holds nothing, and has no engine."""
    report = encode_report(SidecarReport(engine_up=True, workers=NO_ENGINE))
    return Message(holder, LAST_NUMBER, {}, is_complete=True, report=report)
