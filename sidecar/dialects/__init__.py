"""Dialects: which fields of a request price it, and how errors and limits look to its clients.

One file for each way of speaking; ``sidecar/dialects/routes.py`` says on which paths. What several of them
need to read a body is in ``bodies``, what all of them must be able to say in ``dialect``.
"""
