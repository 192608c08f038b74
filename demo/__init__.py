"""The demo: a real engine without a GPU, a sidecar in front, three tenants under load.

The tests use its engine too. Nothing here is needed to run a sidecar.
"""
