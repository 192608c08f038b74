"""The live page: a pool and its entitlements as they change, for operators. Read-only.

``snapshot`` has the records by which a process describes its pools. ``view`` makes the content of the page
from them. ``server`` has the routes on the admin port. A browser loads ``page.html`` and nothing else.
``view``, ``recent``, ``history`` and ``words`` are pure. This package imports nothing of the domain:
coordinators and sidecars fill the records.
"""
