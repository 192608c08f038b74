"""The lease protocol: what each sidecar holds of every limit."""
