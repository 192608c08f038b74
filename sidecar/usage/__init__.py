"""Usage records in a sidecar: from the settlement to the stream of the lease store."""
