"""The endpoints of a server: one module for each API, without I/O. ``table`` lists them."""
