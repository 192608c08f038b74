"""Issued credentials: an authenticated API on the admin port, and the durable copy of what it issued.

``api`` has the routes, ``keeper`` changes credentials, and keeps the lease store and the database equal.
``database`` is the durable copy, ``administrators`` has the tokens of the API. All of it is off without
``--administrator-tokens``.
"""
