"""The coordinator: recomputes every limit a few times a second, and the number of replicas to run.

One tick reads the reports of the sidecars, plans (in ``tokenpool``) and publishes. Several coordinators may
run. One of them leads each pool.
"""
