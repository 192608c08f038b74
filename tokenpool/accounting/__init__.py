"""Accounting: the amounts that each entitlement holds and has spent on one sidecar."""
