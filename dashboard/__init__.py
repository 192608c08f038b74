"""The live page: a pool and its entitlements as they change, for whoever looks after them. Read-only.

``look`` is what a process says of itself, ``view`` what the page shows of it (pure, as are ``recent`` and
``words``), and ``server`` the routes on the admin port; ``page.html`` is all that a browser loads. Knows no
domain: a coordinator and a sidecar describe themselves in ``look``'s records.
"""
