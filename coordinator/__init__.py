"""The coordinator: recomputes every limit a few times a second, and says how many replicas to run.

One tick reads what the sidecars said, plans (purely, in ``tokenpool``) and publishes. Two or more run; one
leads.
"""
