"""HTTP: from a client's bytes to the engine's and back."""
