"""Usage records in a coordinator: from the stream of the sidecars to the usage store."""
