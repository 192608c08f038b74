"""Whether a request may run now, who waits, and who is ended for a guarantee."""
