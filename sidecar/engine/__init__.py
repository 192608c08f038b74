"""The engine: its address, the polls of its pages, and the state that the sidecar keeps of it."""
