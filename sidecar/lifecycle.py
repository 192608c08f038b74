"""The draining state of the sidecar. It is set once, when the sidecar stops."""

from __future__ import annotations


class Lifecycle:
    """The state of this process that requests and reports depend on."""

    __slots__ = ("is_draining",)

    def __init__(self) -> None:
        self.is_draining = False
        """Whether the sidecar drains: running requests finish, and no new one begins."""
