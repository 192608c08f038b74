"""The injector: adds the sidecar to pods that ask for it, as a mutating admission webhook or by hand.

``inject`` is the whole decision, and pure: a pod goes in, a JSON patch comes out. ``review`` speaks the
API server's language, ``app`` serves it over HTTPS, ``dry_run`` prints what would become of a manifest.
Nothing here talks to the API server, so nothing here needs a right in the cluster.
"""
