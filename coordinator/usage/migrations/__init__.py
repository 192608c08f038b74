"""The schema of the usage store, as numbered SQL files that run once, in order.

The SQL is the part that SQLite and PostgreSQL share. A file of a release is never changed. A change adds
columns with defaults, or tables, so that coordinators of two releases can use one database.
"""
