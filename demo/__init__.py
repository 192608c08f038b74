"""The demo: a real engine on the CPU, a sidecar in front of it, and three tenants under load.

The tests use the engine too. The product does not import this package.
"""
