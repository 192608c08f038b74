"""Fakes of the servers that a sidecar uses."""
