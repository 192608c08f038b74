"""The protocol layer: bytes in, bytes out. It asks the gate what may pass and never decides itself."""
