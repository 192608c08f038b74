"""The parts that every process of tokenpool has: options, logs, TLS, file watching, child processes, pages.

Nothing here depends on sidecars or coordinators.
"""
