"""One sidecar's decisions put together: leases, queue, rules and preemption. It returns its effects."""
