"""The domain of tokenpool: pricing, accounting, admission, planning and leases.

All modules but ``store`` are pure: no I/O, no randomness, no logging and no clock. ``now`` is an argument, in
seconds of any monotonic clock. The package imports neither ``sidecar`` nor ``coordinator``.
"""
