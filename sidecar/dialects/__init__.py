"""Dialects: the fields that price a request, and the form of errors and limits, for each API.

Each API has a file. ``routes`` has the table of paths. ``bodies`` has the functions that several dialects use
to read a body. ``dialect`` has the functions that every dialect must provide.
"""
