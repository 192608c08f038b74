"""Accounting: what each entitlement holds and has spent on one sidecar."""
