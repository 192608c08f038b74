"""Stand-ins for what a sidecar talks to."""
