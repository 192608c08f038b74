"""Several processes that are one sidecar (``--workers N``): decision 0115.

``supervisor`` starts the workers, and starts a lost one again. Each worker is a whole sidecar
(``sidecar.app``) that listens on the same port. ``planner`` keeps the lease store and plans, if the sidecar
has no lease store of its pool. ``pages`` answers on the admin port for all workers. ``merging`` and
``metrics_page`` make one page of theirs, and ``restarts`` has the pauses between two starts.
"""
