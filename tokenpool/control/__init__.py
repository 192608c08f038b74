"""Admission control of one sidecar: leases, queue, rules and preemption together, and their driver."""
