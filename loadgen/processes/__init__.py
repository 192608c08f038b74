"""A run in several processes: each sends a part of the load, and the results are merged.

The parent (`parent`) starts the children (`child`), tells them when the run begins, shows their progress and
merges their files (`merging`). `part` says which requests belong to a process, and `link` has the messages.
"""
