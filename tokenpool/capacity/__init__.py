"""The capacity of an engine: observations in; capacity, room and reserved slots out."""
