"""What a sidecar knows of its engine."""
