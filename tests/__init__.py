"""The tests of tokenpool."""
