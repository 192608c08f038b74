"""The injector: adds the sidecar to pods that ask for it, as a mutating admission webhook or by hand.

``inject`` is the whole decision, and pure: a pod goes in, a JSON patch comes out. ``review`` has the
API server's format, ``app`` serves it over HTTPS, ``dry_run`` prints the manifest that would result.
No part sends requests to the API server, so the injector needs no permissions in the cluster.
"""
