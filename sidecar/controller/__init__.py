"""The controller: authentication, admission and settlement of requests."""
