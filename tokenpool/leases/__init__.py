"""The lease protocol: it divides every limit among the sidecars."""
