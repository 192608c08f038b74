"""The domain of tokenpool: what is counted, promised, admitted and divided.

Rules of this package: pure Python, no I/O, no clock (``now`` is an argument, in seconds of any
monotonic clock), no randomness and no logging. It imports neither ``sidecar`` nor ``coordinator``.
"""
