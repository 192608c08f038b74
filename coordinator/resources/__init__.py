"""Entitlements as Kubernetes resources: pools and tenants as ``TokenPool`` and ``Entitlement`` objects.

A coordinator imports this package only with ``--entitlements-from kubernetes``. ``fields``, ``schema``,
``reading``, ``merge``, ``rollout`` and ``status`` are pure: objects in, records, conditions and status out.
``api`` is the only module that talks to the API server. ``controller`` puts them together.
"""
