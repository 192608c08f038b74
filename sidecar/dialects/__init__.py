"""Dialects: which fields of a request price it, and how errors look to its clients."""
