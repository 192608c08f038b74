"""The sidecar: a reverse proxy next to one engine, which admits, relays and settles requests."""
